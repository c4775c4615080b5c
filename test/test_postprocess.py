"""Tumour voxels to masks: components kept and dropped, and what an empty mask becomes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, special

from matrix import saw
from pantherseg.postprocess import TOUCHING, tumour_mask
from pantherseg.recipe import Postprocess

SHAPE = (8, 9, 10)
VOXEL_MM3 = 2.0


def logits(tumour: NDArray[np.bool_], classes: int = 3, label: int = 1) -> NDArray[np.float32]:
    """Logits whose largest class is the tumour's in the mask and background elsewhere."""
    values = np.zeros((classes, *tumour.shape), np.float32)
    values[0] = 1
    values[label][tumour] = 5
    return values


def blobs(*boxes: tuple[tuple[int, int, int], tuple[int, int, int]]) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    for start, size in boxes:
        mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


LARGE, MIDDLE, SMALL = ((0, 0, 0), (3, 3, 3)), ((5, 5, 5), (2, 2, 2)), ((0, 7, 8), (1, 1, 2))
THREE = blobs(LARGE, MIDDLE, SMALL)


def mask_of(
    values: NDArray[np.float32], settings: Postprocess, *, rescue: bool = False
) -> tuple[NDArray[np.bool_], list[str]]:
    asked = []

    def probability() -> NDArray[np.float32]:
        asked.append(True)
        return special.softmax(values, axis=0)[1]

    mask, events = tumour_mask(values.argmax(axis=0) == 1, probability, VOXEL_MM3, settings, rescue=rescue)
    rescued = "empty_mask_rescued" in [event.code for event in events]
    assert len(asked) == rescued, "the probability costs time, and only a rescue needs it"
    assert mask.dtype == np.uint8
    assert mask.shape == values.shape[1:]
    assert set(np.unique(mask)) <= {0, 1}
    return mask > 0, [event.code for event in events]


def test_without_settings_every_voxel_found_is_in_the_mask() -> None:
    values = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    mask, events = mask_of(values, Postprocess(), rescue=True)
    np.testing.assert_array_equal(mask, values.argmax(axis=0) == 1)
    assert events == []


def test_the_voxels_found_are_left_as_they_are() -> None:
    found = THREE.copy()
    tumour_mask(found, pytest.fail, VOXEL_MM3, Postprocess(max_components=1), rescue=True)
    np.testing.assert_array_equal(found, THREE)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (Postprocess(), (LARGE, MIDDLE, SMALL)),
        (Postprocess(min_component_mm3=4.0), (LARGE, MIDDLE, SMALL)),
        (Postprocess(min_component_mm3=4.1), (LARGE, MIDDLE)),
        (Postprocess(min_component_mm3=16.0), (LARGE, MIDDLE)),
        (Postprocess(min_component_mm3=16.5), (LARGE,)),
        (Postprocess(max_components=3), (LARGE, MIDDLE, SMALL)),
        (Postprocess(max_components=2), (LARGE, MIDDLE)),
        (Postprocess(max_components=1), (LARGE,)),
        (Postprocess(max_components=2, min_component_mm3=50.0), (LARGE,)),
    ],
)
def test_components_are_kept_by_size_and_number(settings: Postprocess, kept: tuple[object, ...]) -> None:
    mask, events = mask_of(logits(THREE), settings)
    assert np.array_equal(mask, blobs(*kept))  # type: ignore[arg-type]
    assert events == ([] if len(kept) == 3 else ["components_dropped"])


def test_what_was_dropped_is_said_in_mm3() -> None:
    _, events = tumour_mask(THREE, pytest.fail, VOXEL_MM3, Postprocess(max_components=1), rescue=False)
    assert events[0].message.startswith("20 mm3 ")


def test_voxels_that_touch_in_a_corner_belong_together() -> None:
    corner = blobs(((0, 0, 0), (2, 2, 2)), ((2, 2, 2), (1, 1, 1)))
    mask, events = mask_of(logits(corner), Postprocess(max_components=1, min_component_mm3=18.0))
    assert np.array_equal(mask, corner)
    assert events == []
    apart = blobs(((0, 0, 0), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)))
    assert mask_of(logits(apart), Postprocess(max_components=1))[0].sum() == 8


@pytest.mark.fault("models", "nothing is found, and the recipe wants no rescue", "an empty mask, and an event")
def test_an_empty_mask_stays_empty_with_an_event_unless_rescued() -> None:
    empty = logits(np.zeros(SHAPE, bool))
    mask, events = mask_of(empty, Postprocess(), rescue=False)
    saw(f"a mask of {mask.sum()} voxels", events)
    assert not mask.any()
    assert events == ["empty_mask"]
    mask, events = mask_of(logits(THREE), Postprocess(min_component_mm3=1000.0), rescue=False)
    assert not mask.any()
    assert events == ["components_dropped", "empty_mask"]


def hill(peak: tuple[int, int, int], width: float, height: float = -1.0) -> NDArray[np.float32]:
    """Logits of two classes with the tumour's highest probability at the peak, everywhere below one half."""
    distance = sum((axis - p) ** 2 for axis, p in zip(np.indices(SHAPE), peak, strict=True))
    values = np.zeros((2, *SHAPE), np.float32)
    values[1] = height - distance / width
    return values


@pytest.mark.parametrize("peak", [(4, 4, 4), (0, 0, 0), (7, 8, 9), (3, 0, 9)])
@pytest.mark.parametrize("cap_mm3", [20_000.0, 60.0, 2.0, 0.5])
def test_a_rescue_is_one_component_with_the_peak_within_the_cap(peak: tuple[int, int, int], cap_mm3: float) -> None:
    mask, events = mask_of(hill(peak, 3.0), Postprocess(rescue_max_mm3=cap_mm3), rescue=True)
    assert events == ["empty_mask_rescued"]
    assert mask[peak]
    assert ndimage.label(mask, TOUCHING)[1] == 1
    assert 1 <= mask.sum() <= max(1, cap_mm3 / VOXEL_MM3)
    probability = special.softmax(hill(peak, 3.0), axis=0)[1]
    assert (probability[mask] >= 0.5 * probability[peak] * 0.999).all()
    assert probability[mask].min() >= probability[~mask & (probability >= 0.5 * probability[peak])].max(initial=0)


def test_only_the_component_of_the_highest_peak_is_rescued() -> None:
    two = np.maximum(hill((1, 1, 1), 0.5), hill((6, 7, 8), 0.5, height=-1.1))
    mask, _ = mask_of(two, Postprocess(), rescue=True)
    assert mask[1, 1, 1]
    assert not mask[6, 7, 8]


@pytest.mark.fault(
    "models",
    "nothing is found, and every voxel is as probable as the others",
    "a small mask in one piece, and an event",
)
def test_a_rescue_of_uniform_probability_grows_around_one_voxel_to_the_cap() -> None:
    mask, events = mask_of(logits(np.zeros(SHAPE, bool)), Postprocess(rescue_max_mm3=2 * 27), rescue=True)
    saw(f"a mask of {mask.sum()} voxels", events)
    assert events == ["empty_mask_rescued"]
    assert mask.sum() == 27
    assert mask[0, 0, 0]  # the first of equals is the peak
    assert ndimage.label(mask, TOUCHING)[1] == 1


def test_two_plateaus_below_the_cap_stay_one_component() -> None:
    # A ridge of two equal ends: by probability alone both ends would stay and the middle go.
    values = np.zeros((2, 1, 1, 9), np.float32)
    values[1] = -9
    values[1, 0, 0] = [-1, -1, -1.2, -1.2, -1.2, -1.2, -1.2, -1, -1]
    mask, _ = mask_of(values, Postprocess(rescue_max_mm3=4 * VOXEL_MM3), rescue=True)
    assert ndimage.label(mask, TOUCHING)[1] == 1
    assert 1 <= mask.sum() <= 4


@pytest.mark.fault(
    "models",
    "post-processing drops all that was found",
    "a mask that is not empty: the most probable place, and an event",
)
def test_components_that_were_all_dropped_are_rescued_too() -> None:
    mask, events = mask_of(logits(THREE), Postprocess(min_component_mm3=1000.0), rescue=True)
    saw(f"a mask of {mask.sum()} voxels", events)
    assert events == ["components_dropped", "empty_mask_rescued"]
    assert mask.any()
    assert ndimage.label(mask, TOUCHING)[1] == 1
