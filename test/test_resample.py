"""Resampling axis by axis, compared with nnU-Net's own functions."""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray

from pantherseg.preprocessing.resample import Resampling
from pantherseg.volume import Shape, Triple

with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints a greeting on import
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

NNUNET = {
    "resample_data_or_seg_to_shape": resample_data_or_seg_to_shape,
    "resample_torch_fornnunet": resample_torch_fornnunet,
}
SPLINE, TORCH = NNUNET
IMAGES = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LOGITS = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}

shapes = st.tuples(*[st.integers(1, 14)] * 3)
spacings = st.tuples(*[st.sampled_from([0.7, 1.0, 1.19, 2.5, 3.0, 5.0])] * 3)


def random_data(shape: Shape, dtype: str, channels: int = 2) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).normal(scale=8, size=(channels, *shape)).astype(dtype)


def resample_with_both(
    data: NDArray[Any], name: str, arguments: dict[str, Any], new_shape: Shape, spacing: Triple, new_spacing: Triple
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return our result and nnU-Net's, which takes tensors and returns tensors or arrays."""
    resizer = Resampling.from_plans(name, arguments).resizer(data.shape[1:], new_shape, spacing, new_spacing)
    theirs = NNUNET[name](torch.from_numpy(data.copy()), new_shape, spacing, new_spacing, **arguments)
    return resizer.resize(data), np.asarray(theirs)


def assert_equal_up_to_ties(ours: NDArray[Any], theirs: NDArray[Any], unrounded: NDArray[np.float64]) -> None:
    """Assert equal bits, except if the exact value is in the middle between two numbers of the dtype.

    Weights such as 9/20 and 11/20 cause such ties. Rounding them depends on the last bit of a sum in float64.
    """
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.argmax(axis=0), theirs.argmax(axis=0))
    differ = ours != theirs
    middle = (ours.astype(np.float64) + theirs) / 2
    np.testing.assert_allclose(unrounded[differ], middle[differ], rtol=0, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(shape=shapes, new_shape=shapes, spacing=spacings, new_spacing=spacings, data=st.data())
def test_splines_match_nnunet(
    shape: Shape, new_shape: Shape, spacing: Triple, new_spacing: Triple, data: st.DataObject
) -> None:
    arguments = {
        "order": data.draw(st.sampled_from([0, 1, 2, 3, 5])),
        "order_z": data.draw(st.sampled_from([0, 1, 3])),
        "force_separate_z": data.draw(st.sampled_from([None, True, False])),
    }
    values = random_data(shape, data.draw(st.sampled_from(["float16", "float32"])))
    ours, theirs = resample_with_both(values, SPLINE, arguments, new_shape, spacing, new_spacing)
    resizer = Resampling.from_plans(SPLINE, arguments).resizer(shape, new_shape, spacing, new_spacing)
    assert_equal_up_to_ties(ours, theirs, resizer.resize(values.astype(np.float64)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1])
def test_clips_each_slice_across_a_separate_axis(axis: int, order_z: int) -> None:
    """Splines overshoot at a sharp edge, and the values of each slice have their own range."""
    image = np.zeros((1, 6, 6, 6), np.float32)
    image[:, :3, :3, :3] = 100
    np.moveaxis(image[0], axis, 0)[:] += np.arange(6, dtype=np.float32)[:, None, None]
    spacing: Triple = ((5.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 5.0))[axis]
    arguments = {**IMAGES, "order_z": order_z}
    ours, theirs = resample_with_both(image, SPLINE, arguments, (11, 12, 13), spacing, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.max() <= image.max()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, new_shape=shapes, spacing=spacings, new_spacing=spacings, data=st.data())
def test_torch_resampling_matches_nnunet(
    shape: Shape, new_shape: Shape, spacing: Triple, new_spacing: Triple, data: st.DataObject
) -> None:
    modes = st.sampled_from(["linear", "nearest", "nearest-exact"])
    arguments = {
        "mode": data.draw(modes),
        "aniso_axis_mode": data.draw(modes),
        "force_separate_z": data.draw(st.sampled_from([None, True, False])),
        "num_threads": 1,
    }
    values = random_data(shape, data.draw(st.sampled_from(["float16", "float32"])))
    ours, theirs = resample_with_both(values, TORCH, arguments, new_shape, spacing, new_spacing)
    assert ours.dtype == theirs.dtype
    # Mostly the same bits: torch's order of additions depends on the processor and on the memory layout.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * float(np.abs(values).max()))
    np.testing.assert_array_equal(ours.argmax(axis=0), theirs.argmax(axis=0))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, new_shape=shapes, spacing=spacings, data=st.data())
def test_slabs_equal_the_whole_result(shape: Shape, new_shape: Shape, spacing: Triple, data: st.DataObject) -> None:
    plans = [(SPLINE, LOGITS), (SPLINE, {**LOGITS, "order": 0, "order_z": 1}), (SPLINE, IMAGES), (TORCH, {})]
    resizer = Resampling.from_plans(*data.draw(st.sampled_from(plans))).resizer(
        shape, new_shape, spacing, (1.0, 1.0, 1.0)
    )
    logits = random_data(shape, "float16", channels=3)
    whole = resizer.resize(logits)
    assert str(whole.dtype) == resizer.result_type(logits)
    for axis, size in enumerate(new_shape):
        cuts = sorted({0, data.draw(st.integers(0, size)), size})
        slabs = [resizer.slab(logits, axis, a, b) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(slabs, axis=axis + 1), whole, strict=True)


def test_a_slab_reads_only_the_rows_it_depends_on() -> None:
    logits = random_data((20, 4, 4), "float16")
    logits[:, 8:] = np.nan
    resizer = Resampling.from_plans(SPLINE, LOGITS).resizer((20, 4, 4), (10, 6, 6), (1.0,) * 3, (2.0, 1.0, 1.0))
    assert np.isfinite(resizer.slab(logits, 0, 0, 4)).all()
    assert np.isnan(resizer.slab(logits, 0, 4, 5)).all()


def test_slabs_of_splines_use_the_given_array() -> None:
    resizer = Resampling.from_plans(SPLINE, IMAGES).resizer((4, 4, 4), (8, 8, 8), (1.0,) * 3, (1.0,) * 3)
    first, second = (np.full((1, 4, 4, 4), value, np.float32) for value in (1, 2))
    values = [float(resizer.slab(data, 0, 2, 3).max()) for data in (first, second, first)]
    np.testing.assert_allclose(values, [1, 2, 1])


@pytest.mark.parametrize("name", list(NNUNET))
def test_returns_the_same_object_for_the_same_shape(name: str) -> None:
    data = random_data((3, 4, 5), "float16")
    resizer = Resampling.from_plans(name, {}).resizer((3, 4, 5), (3, 4, 5), (1.0,) * 3, (2.0,) * 3)
    assert resizer.resize(data) is data
    assert resizer.result_type(data) == "float16"


def test_computes_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.preprocessing.resample.BLOCK_BYTES", 1)
    image = random_data((7, 8, 9), "float32")
    for arguments in (IMAGES, LOGITS):
        ours, theirs = resample_with_both(image, SPLINE, arguments, (13, 12, 11), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "arguments"), [(SPLINE, {}), (TORCH, {"num_threads": 1, "memefficient_seg_resampling": True})]
)
@pytest.mark.parametrize("spacing", [(2.9, 1.0, 1.0), (3.1, 1.0, 1.0)])
def test_has_the_defaults_of_nnunet(name: str, arguments: dict[str, Any], spacing: Triple) -> None:
    image = random_data((5, 6, 7), "float32")
    ours, theirs = resample_with_both(image, name, {"is_seg": False, **arguments}, (11, 9, 8), spacing, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("no_resampling_hack", {}, "'no_resampling_hack' is not supported"),
        (SPLINE, {"is_seg": True}, "is_seg is for label maps"),
        (SPLINE, {"order": 6}, "resample_data_or_seg_to_shape: Invalid enum value 6"),
        (SPLINE, {"order": -1}, "Invalid enum value -1"),
        (SPLINE, {"mode": "linear"}, "has no argument mode"),
        (TORCH, {"order": 1}, "has no argument order"),
        (TORCH, {"mode": "bicubic"}, "Invalid enum value 'bicubic'"),
        (TORCH, {"separate_z_anisotropy_threshold": 0}, "> 0"),
    ],
)
def test_refuses_unsupported_arguments(name: str, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Resampling.from_plans(name, arguments)


def test_refuses_wrong_shapes() -> None:
    resampling = Resampling.from_plans(SPLINE, LOGITS)
    with pytest.raises(ValueError, match="at least one voxel along each axis"):
        resampling.resizer((2, 2, 2), (2, 0, 2), (1.0,) * 3, (1.0,) * 3)
    resizer = resampling.resizer((2, 2, 2), (3, 3, 3), (1.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), got \(1, 2, 2, 3\)"):
        resizer.resize(np.zeros((1, 2, 2, 3)))
    for start, stop in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="rows must be in the shape"):
            resizer.slab(np.zeros((1, 2, 2, 2)), 0, start, stop)
