"""Tiles, their weights and the padding equal nnU-Net's, bit for bit."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import given, settings
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from pantherseg.inference.tiles import padding, tile_starts, tile_weights, tiles

STEPS = st.sampled_from([0.5, 0.25, 0.3, 0.75, 1.0, 1 / 3, 0.9]) | st.floats(0.05, 1)
# Patches that nnU-Net's planner chooses for data of the challenge, and unusual ones.
PATCHES = [(48, 160, 224), (40, 224, 192), (64, 128, 128), (48, 80, 112), (512, 512), (256, 224), (1, 1, 1), (5, 3, 2)]


@st.composite
def volumes(draw: st.DrawFn, *, at_least_a_patch: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Generate the shape of a volume (z, y, x), and a patch with two or three axes."""
    patch = draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
    beyond = st.integers(0 if at_least_a_patch else -39, 90)
    shape = [max(1, size + draw(beyond)) for size in patch]
    if len(patch) == 2:
        shape.insert(0, draw(st.integers(1, 4)))
    return tuple(shape), tuple(patch)


@settings(max_examples=500, deadline=None)
@given(tile=st.integers(1, 300), beyond=st.integers(0, 1000), step=STEPS)
def test_tile_positions_equal_nnunets(tile: int, beyond: int, step: float) -> None:
    expected = compute_steps_for_sliding_window((tile + beyond,), (tile,), step)[0]
    assert tile_starts(tile + beyond, tile, step) == expected


@settings(max_examples=100, deadline=None)
@given(volume=volumes(at_least_a_patch=True), step=st.sampled_from([0.5, 0.7, 1.0]))
def test_order_of_tiles_equals_nnunets(volume: tuple[tuple[int, ...], tuple[int, ...]], step: float) -> None:
    shape, patch = volume
    starts = compute_steps_for_sliding_window(shape[-len(patch) :], patch, step)
    slices = [range(size) for size in shape[: -len(patch)]]
    expected = [
        tuple(slice(start, start + size) for start, size in zip(position, (1, *patch)[-3:], strict=True))
        for position in itertools.product(*slices, *starts)
    ]
    assert tiles(shape, patch, step) == expected


@settings(max_examples=100, deadline=None)
@given(patch=st.sampled_from(PATCHES) | st.lists(st.integers(1, 60), min_size=2, max_size=3).map(tuple))
def test_weights_equal_nnunets(patch: tuple[int, ...]) -> None:
    expected = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    found = tile_weights(patch)
    assert (found.dtype, found.shape) == (np.float16, patch)
    assert (found > 0).all()
    np.testing.assert_array_equal(found.view(np.uint16), expected.numpy().view(np.uint16))


def test_weights_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        tile_weights((3, 3, 3))[0, 0, 0] = 0


@settings(max_examples=200, deadline=None)
@given(volume=volumes(at_least_a_patch=False))
def test_padding_equals_nnunets(volume: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, patch = volume
    data = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
    expected, inside = pad_nd_image(torch.from_numpy(data), patch, "constant", {"value": 0}, True, None)
    pads = padding(shape, patch)
    np.testing.assert_array_equal(np.pad(data, [(0, 0), *pads]), expected.numpy())
    assert [(part.start, part.stop) for part in inside[1:]] == [
        (before, before + size) for (before, _), size in zip(pads, shape, strict=True)
    ]
