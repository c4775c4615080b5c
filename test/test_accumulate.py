"""A network over a volume gives nnU-Net's own logits, bit for bit in float16."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from torch import nn

from pantherseg.arrays import Array, like, namespace
from pantherseg.inference.accumulate import Network, Sweep
from pantherseg.preprocessing.preprocess import CERTAIN

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3
EVERY_COMBINATION = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]
SMALLER_THAN_THE_PATCH = [(1, 1, 1), (5, 7, 3), (20, 4, 8), (7, 30, 5)]


def small_network(dimensions: int) -> nn.Module:
    """Two convolutions with random weights, so that neighbouring voxels and mirroring change the result."""
    torch.manual_seed(dimensions)
    convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
    return nn.Sequential(
        convolution(1, 4, 3, padding=1), nn.LeakyReLU(), convolution(4, CLASSES, 3, padding=1)
    ).requires_grad_(False)


NETWORKS = {dimensions: small_network(dimensions) for dimensions in (2, 3)}


def as_callable(network: nn.Module) -> Network:
    def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = network(torch.from_numpy(np.ascontiguousarray(tile))).numpy()
        return result

    return run


def nnunet_logits(
    data: NDArray[np.float32], patch: tuple[int, ...], *, step: float, axes: tuple[int, ...]
) -> NDArray[np.float16]:
    predictor = nnUNetPredictor(
        tile_step_size=step,
        use_mirroring=bool(axes),
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.network = NETWORKS[len(patch)]
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    predictor.allowed_mirroring_axes = axes or None
    logits: NDArray[np.float16] = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).numpy()
    return logits


def constant(value: float) -> Network:
    """Return a network that gives one value everywhere."""

    def run(tile: Array) -> Array:
        return namespace(tile).concat([tile * 0 + value] * CLASSES, axis=1)

    return run


def sum_of(sweep: Sweep, numbers: Iterable[int]) -> NDArray[np.float64]:
    """Return the sum of the weights of some tiles in double precision, (z, y, x)."""
    total = np.zeros(sweep.shape)
    for number in numbers:
        total[sweep.tiles[number]] += sweep.tile_weights
    return total


def logits_of(sweep: Sweep, network: Network) -> Array:
    sums = sweep.start(network, CLASSES)
    passes = [tile_done for _, tile_done in sums.passes()]
    assert len(passes) == len(sweep.tiles) * len(sweep.flips)
    assert sums.is_complete
    assert sum(passes) == sums.tiles_done == len(sweep.tiles)
    return sums.logits()


def check(shape: tuple[int, ...], patch: tuple[int, ...], *, step: float = 0.5, axes: tuple[int, ...] = ()) -> None:
    data = np.random.default_rng(sum(shape)).normal(size=(1, *shape)).astype(np.float32)
    before = data.copy()
    sweep = Sweep(data, patch, step=step, mirroring_axes=axes)
    logits = logits_of(sweep, as_callable(NETWORKS[len(patch)]))
    assert logits.dtype == np.float16
    np.testing.assert_array_equal(data, before)
    expected = nnunet_logits(data, patch, step=step, axes=axes)
    np.testing.assert_array_equal(logits.view(np.uint16), expected.view(np.uint16))
    on_device = Sweep(torch.from_numpy(data), patch, step=step, mirroring_axes=axes)
    with torch.inference_mode():
        tensor = logits_of(on_device, NETWORKS[len(patch)])
    np.testing.assert_array_equal(tensor.numpy().view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    ("patch", "shape", "axes"),
    [
        *(((6, 8, 8), (9, 17, 14), axes) for axes in EVERY_COMBINATION),
        *(((8, 6), shape, axes) for shape in ((3, 17, 14), (1, 5, 14), (4, 3, 2)) for axes in ((), (0,), (1,), (0, 1))),
        *(((6, 8, 8), shape, axes) for shape in SMALLER_THAN_THE_PATCH for axes in ((), (0, 2))),
    ],
)
def test_equals_nnunet(patch: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """A patch with two axes runs on every slice."""
    check(shape, patch, axes=axes)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    patch=st.lists(st.integers(2, 9), min_size=2, max_size=3).map(tuple),
    step=st.sampled_from([0.3, 0.5, 0.75, 1.0]),
    mirrored=st.booleans(),
)
@pytest.mark.slow
def test_equals_nnunet_for_any_volume_and_patch(
    shape: tuple[int, ...], patch: tuple[int, ...], step: float, mirrored: bool
) -> None:
    check(shape, patch, step=step, axes=(0, 1) if mirrored else ())


def test_sweep_can_be_used_for_several_networks() -> None:
    data = np.random.default_rng(0).normal(size=(1, 9, 12, 12)).astype(np.float32)
    sweep = Sweep(data, (6, 8, 8), step=0.5)
    network = as_callable(NETWORKS[3])
    first, other, again = (logits_of(sweep, run) for run in (network, lambda tile: -network(tile), network))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, -other)


def test_voxels_outside_of_the_tiles_so_far_are_background() -> None:
    data = np.random.default_rng(0).normal(size=(1, 6, 8, 20)).astype(np.float32)
    sweep = Sweep(data, (6, 8, 8), step=1.0)
    sums = sweep.start(as_callable(NETWORKS[3]), CLASSES)
    next(sums.passes())
    assert not sums.is_complete
    assert sums.tiles_done == 1
    logits = sums.logits()
    assert (logits[0, :, :, 8:] == CERTAIN).all()
    assert (logits[1:, :, :, 8:] == 0).all()
    whole = logits_of(Sweep(data[..., :8], (6, 8, 8), step=1.0), as_callable(NETWORKS[3]))
    np.testing.assert_array_equal(logits[..., :8], whole)


def test_earlier_folds_stand_in_where_less_than_half_of_the_weight_was_run() -> None:
    """Elsewhere the tiles that were run speak for the others."""
    data = np.zeros((1, 6, 8, 20), np.float32)
    own, mean, folds = 3.0, -1.0, 2
    before = np.full((CLASSES, 6, 8, 20), mean * folds, np.float16)
    found = []
    for array in (data, torch.from_numpy(data)):
        sweep = Sweep(array, (6, 8, 8), step=0.5)
        assert len(sweep.tiles) == 4
        sums = sweep.start(constant(own), CLASSES, [2, 0])
        list(sums.passes())
        assert sums.is_complete
        assert sums.tiles_done == 2
        found.append(np.asarray(sums.logits(like(array, before), folds)))
    sweep = Sweep(data, (6, 8, 8), step=0.5)
    share = np.minimum(1, 2 * sum_of(sweep, [0, 2]) / sum_of(sweep, range(4)))
    assert share.min() == 0
    assert share.max() == 1
    assert ((share > 0) & (share < 1)).any()
    # At the edges of tiles, where weights are small, float16 sums are little more precise than integers.
    expected = np.broadcast_to(share * own + (1 - share) * mean, found[0].shape)
    for logits in found:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=0.51)
        np.testing.assert_allclose(logits[:, 2:4, 2:6], expected[:, 2:4, 2:6], rtol=0, atol=0.02)


@pytest.mark.parametrize("axes", [(), (0, 1)], ids=["plain", "mirrored"])
@pytest.mark.parametrize("value", [1e6, -np.inf])
def test_values_beyond_float16_become_infinite_without_a_warning(value: float, axes: tuple[int, ...]) -> None:
    """The predictor looks for such logits afterwards and names the fold; nnU-Net raises an error at this point."""
    sweep = Sweep(np.ones((1, 6, 8, 12), np.float32), (6, 8, 8), step=0.5, mirroring_axes=axes)
    signs = itertools.cycle([1, -1] if np.isinf(value) else [1])

    def network(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((1, CLASSES, *tile.shape[2:]), value * next(signs), np.float32)

    assert not np.isfinite(logits_of(sweep, network)).any()
