"""Preprocessing, and logits on the grid of the volume, compared with nnU-Net's own."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.model_sources.nnunet import read_configuration
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.preprocessing.intensity import Unchanged
from pantherseg.preprocessing.preprocess import CERTAIN, Prepared, Preprocessing
from pantherseg.tables import decode_registered
from pantherseg.volume import Shape, Triple

with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints a greeting on import
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

PLANS = json.loads((DEMO_WEIGHTS / "task1" / "plans.json").read_text(encoding="utf-8"))
DATASET = json.loads((DEMO_WEIGHTS / "task1" / "dataset.json").read_text(encoding="utf-8"))
FOREGROUND = {"mean": 83.7, "std": 41.3, "percentile_00_5": 5.5, "percentile_99_5": 171.25}
SCHEMES: list[dict[str, Any]] = [
    {"scheme": "ZScoreNormalization", "use_mask": False},
    {"scheme": "ZScoreNormalization", "use_mask": True},
    {"scheme": "CTNormalization", **FOREGROUND},
    {"scheme": "NoNormalization"},
    {"scheme": "RescaleTo01Normalization"},
    {"scheme": "RGBTo01Normalization"},
]
TORCH = "resample_torch_fornnunet"


def plans_with(
    *,
    scheme: str = "ZScoreNormalization",
    use_mask: bool = False,
    transpose: tuple[int, int, int] = (0, 1, 2),
    spacing: tuple[float, ...] = (3.0, 2.4, 2.4),
    resampling: str | None = None,
) -> dict[str, Any]:
    """Return the demo's plans with other entries."""
    plans: dict[str, Any] = copy.deepcopy(PLANS)
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = [int(axis) for axis in np.argsort(transpose)]
    plans["foreground_intensity_properties_per_channel"] = {"0": FOREGROUND}
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"normalization_schemes": [scheme], "use_mask_for_norm": [use_mask], "spacing": list(spacing)}
    if resampling:
        for kind in ("data", "seg", "probabilities"):
            configuration[f"resampling_fn_{kind}"] = resampling
            configuration[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", "num_threads": 1}
    return plans


def preprocessing_of(plans: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing of a model folder with these plans."""
    with TemporaryDirectory() as folder:
        for name, content in (("plans.json", plans), ("dataset.json", DATASET)):
            Path(folder, name).write_text(json.dumps(content))
        return read_configuration(Path(folder), "3d_fullres").preprocessing


def nnunet_preprocessing(
    plans: dict[str, Any], array: NDArray[np.float32], spacing: Triple
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return nnU-Net's data and properties."""
    manager = PlansManager(copy.deepcopy(plans))
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        array[None], None, {"spacing": list(spacing)}, manager, manager.get_configuration("3d_fullres"), DATASET
    )
    return data, properties


def logits_on_volume(prepared: Prepared, logits: NDArray[Any], step: int) -> NDArray[Any]:
    """Return logits on the grid of the volume, computed slab by slab."""
    depth = prepared.back.shape[0]
    slabs = [prepared.back.slab(logits, z, min(z + step, depth)) for z in range(0, depth, step)]
    return np.concatenate(slabs, axis=1)


def random_volume(shape: Shape = (9, 14, 17)) -> NDArray[np.float32]:
    """Values from 0 to 200 in a border of zeros, with a hole of zeros inside."""
    array = np.random.default_rng(0).uniform(1, 200, shape).astype(np.float32)
    array[:2], array[:, -3:], array[..., :1] = 0, 0, 0
    array[4:6, 4:7, 5:9] = 0
    return array


@pytest.mark.parametrize("settings", SCHEMES, ids=str)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("array", [random_volume(), random_volume().transpose(2, 0, 1)[::-1]], ids=["dense", "strided"])
def test_normalises_bit_for_bit_as_nnunet(
    settings: dict[str, Any], transpose: tuple[int, int, int], array: NDArray[np.float32]
) -> None:
    """At the network's own spacing nothing is resampled, so every bit comes from the normalisation.

    However the array lies in memory, the result is that of nnU-Net for a contiguous one.
    """
    use_mask = settings.get("use_mask", False)
    plans = plans_with(scheme=settings["scheme"], use_mask=use_mask, transpose=transpose, spacing=(2.0, 2.0, 2.0))
    given = array.copy()
    expected, _ = nnunet_preprocessing(plans, np.ascontiguousarray(array), (2.0, 2.0, 2.0))
    prepared = preprocessing_of(plans).run(array, (2.0, 2.0, 2.0))
    np.testing.assert_array_equal(prepared.data, expected, strict=True)
    np.testing.assert_array_equal(array, given)


CASES = {
    "whole": ({}, (3.0, 1.2, 1.2)),
    "separate axis": ({}, (9.0, 1.2, 1.2)),
    "upwards": ({"spacing": (1.0, 1.0, 1.0)}, (5.0, 1.19, 1.19)),
    "mask": ({"use_mask": True}, (4.0, 1.7, 1.3)),
    "transposed": ({"transpose": (1, 2, 0)}, (1.4, 2.3, 3.0)),
    "transposed, separate axis": ({"transpose": (2, 1, 0), "spacing": (1.0, 1.5, 4.0)}, (4.5, 1.1, 0.9)),
    "2-D": ({"spacing": (1.7, 1.9)}, (6.0, 1.2, 1.3)),
    "2-D, transposed": ({"spacing": (1.7, 1.9), "transpose": (1, 0, 2)}, (1.1, 6.0, 1.3)),
    "torch": ({"resampling": TORCH}, (3.0, 1.2, 1.2)),
    "torch, separate axis": ({"resampling": TORCH}, (9.0, 1.2, 1.2)),
}


@pytest.mark.parametrize(("entries", "spacing"), CASES.values(), ids=CASES.keys())
def test_prepares_and_maps_logits_back_as_nnunet(entries: dict[str, Any], spacing: Triple) -> None:
    plans, array = plans_with(**entries), random_volume()
    expected, properties = nnunet_preprocessing(plans, array, spacing)
    prepared = preprocessing_of(plans).run(array, spacing)
    assert prepared.data.dtype == expected.dtype == np.float32
    assert prepared.data.shape == expected.shape
    if "resampling" in entries:
        np.testing.assert_allclose(prepared.data, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(prepared.data, expected)

    shape = (len(DATASET["labels"]), *expected.shape[1:])
    logits = np.random.default_rng(1).normal(scale=9, size=shape).astype(np.float16)
    manager = PlansManager(copy.deepcopy(plans))
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits.copy()),
        manager,
        manager.get_configuration("3d_fullres"),
        manager.get_label_manager(DATASET),
        properties,
        num_threads_torch=1,
    )
    assert mask.any()
    back = logits_on_volume(prepared, logits, step=4)
    np.testing.assert_array_equal(back.argmax(axis=0), mask)
    np.testing.assert_array_equal(back, logits_on_volume(prepared, logits, step=9), strict=True)
    assert (back[0, :2] == CERTAIN).all()
    assert (back[1:, :2] == 0).all()
    assert back.dtype == (np.float32 if "resampling" in entries else np.float16)


@pytest.mark.parametrize("use_mask", [False, True])
def test_does_not_crop_a_volume_of_zeros(use_mask: bool) -> None:
    plans = plans_with(use_mask=use_mask)
    prepared = preprocessing_of(plans).run(np.zeros((2, 3, 4), np.float32), (3.0, 2.4, 2.4))
    np.testing.assert_array_equal(prepared.data, np.zeros((1, 2, 3, 4), np.float32))


def test_keeps_one_voxel_of_a_volume_thinner_than_half_a_voxel() -> None:
    prepared = preprocessing_of(plans_with()).run(np.ones((1, 3, 4), np.float32), (1.0, 1.0, 1.0))
    assert prepared.data.shape == (1, 1, 1, 2)


@pytest.mark.parametrize("value", [-1, 256])
def test_refuses_values_that_are_not_colours(value: int) -> None:
    array = random_volume()
    array[5, 5, 1] = value
    with pytest.raises(InputError, match="expected values from 0 to 255"):
        preprocessing_of(plans_with(scheme="RGBTo01Normalization")).run(array, (3.0, 2.4, 2.4))


def preprocessing_data(**changes: object) -> dict[str, object]:
    """Return valid preprocessing as plain data, with changes."""
    resampling = {"function": TORCH}
    data = {"spacing": [1, 1], "transpose": [0, 1, 2], "normalization": SCHEMES[0], "images": resampling}
    return data | {"logits": resampling} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transpose": [0, 0, 1]}, r"once each, got \(0, 0, 1\)"),
        ({"transpose": [0, 1]}, r"\$.transpose"),
        ({"spacing": [1]}, r"\$.spacing"),
        ({"spacing": [1, 0, 1]}, r"\$.spacing"),
        ({"normalization": {"scheme": "MyNormalization"}}, "Unknown intensity scheme 'MyNormalization'"),
        ({"normalization": {"use_mask": True}}, "key 'scheme' is one of ZScoreNormalization, NonZ"),
        ({"normalization": {"scheme": "CTNormalization", "mean": 1.0}}, "missing required field `std`"),
        ({"normalization": {"scheme": "NoNormalization", "mean": 1.0}}, "unknown key 'mean', expected one of scheme"),
    ],
)
def test_refuses_invalid_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(preprocessing_data(**changes), Preprocessing, dec_hook=decode_registered)


def test_equal_preprocessing_can_be_shared() -> None:
    """Members of an ensemble look up prepared volumes by their preprocessing."""
    first, same, other = (
        msgspec.convert(preprocessing_data(normalization=scheme), Preprocessing, dec_hook=decode_registered)
        for scheme in (SCHEMES[3], SCHEMES[3], SCHEMES[4])
    )
    assert len({first, same, other}) == 2
    assert first == same != other
    assert first.normalization == Unchanged()


def test_refuses_slices_outside_the_volume() -> None:
    prepared = preprocessing_of(plans_with()).run(random_volume(), (3.0, 1.2, 1.2))
    logits = np.zeros((2, *prepared.data.shape[1:]), np.float16)
    for start, stop in ((0, 10), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="slices must be in a volume of 9 slices"):
            prepared.back.slab(logits, start, stop)
