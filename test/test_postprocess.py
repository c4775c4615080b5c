"""Post-processing steps: which components of a tumour mask are kept, and how an empty mask is rescued."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, special

from pantherseg.events import EventCode
from pantherseg.postprocess import Components, Prediction, Rescue, Step, Threshold
from pantherseg.postprocess.prediction import CONNECTIVITY
from pantherseg.volume import Grid

SHAPE = (8, 9, 10)
VOXEL_MM3 = 2.0
DROPPED, RESCUED = EventCode.COMPONENTS_DROPPED, EventCode.EMPTY_MASK_RESCUED

Mask = NDArray[np.bool_]
Corner = tuple[int, int, int]


def boxes(*corners_and_sizes: tuple[Corner, Corner]) -> Mask:
    """Return a mask of boxes, each given by its first voxel and its size."""
    mask = np.zeros(SHAPE, bool)
    for start, size in corners_and_sizes:
        mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


LARGE, MIDDLE, SMALL = ((0, 0, 0), (3, 3, 3)), ((5, 5, 5), (2, 2, 2)), ((0, 7, 8), (1, 1, 2))
THREE = boxes(LARGE, MIDDLE, SMALL)


def logits_of(mask: Mask) -> NDArray[np.float32]:
    """Return logits of three classes, the largest of which is the tumour's in the mask and the background's outside."""
    values = np.zeros((3, *mask.shape), np.float32)
    values[0] = 1
    values[1][mask] = 5
    return values


def hill(peak: Corner, width: float, height: float = -1.0) -> NDArray[np.float32]:
    """Return logits of two classes: the tumour's probability has a peak, and is below one half everywhere."""
    distance = sum((axis - p) ** 2 for axis, p in zip(np.indices(SHAPE), peak, strict=True))
    values = np.zeros((2, *SHAPE), np.float32)
    values[1] = height - distance / width
    return values


def apply(values: NDArray[np.float32], *steps: Step) -> tuple[Mask, list[EventCode]]:
    """Apply steps to a prediction with these logits, and return its mask and event codes."""
    labels = values.argmax(axis=0).astype(np.uint8)
    computed = []

    def probability() -> NDArray[np.float32]:
        computed.append(1)
        softmax: NDArray[np.float32] = special.softmax(values, axis=0)[1]
        return softmax

    before = labels == 1
    mask = before.copy()
    grid = Grid(labels.shape, (1.0, 1.0, VOXEL_MM3))
    prediction = Prediction(mask, grid, probability)
    for step in steps:
        prediction = step.apply(prediction)
    codes = [event.code for event in prediction.events]
    needed = codes.count(RESCUED) + sum(isinstance(step, Threshold) for step in steps)
    assert computed == [1] * needed, "the probability takes long, and only a rescue or a threshold needs it"
    np.testing.assert_array_equal(mask, before, "a step must not change the mask that it is given")
    assert prediction.mask.dtype == bool
    assert prediction.mask.shape == labels.shape
    return prediction.mask, codes


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (Components(), (LARGE, MIDDLE, SMALL)),
        (Components(min_mm3=4.0), (LARGE, MIDDLE, SMALL)),
        (Components(min_mm3=4.1), (LARGE, MIDDLE)),
        (Components(min_mm3=16.0), (LARGE, MIDDLE)),
        (Components(min_mm3=16.5), (LARGE,)),
        (Components(max_count=3), (LARGE, MIDDLE, SMALL)),
        (Components(max_count=2), (LARGE, MIDDLE)),
        (Components(max_count=1), (LARGE,)),
        (Components(max_count=2, min_mm3=50.0), (LARGE,)),
        (Components(min_mm3=1000.0), ()),
        (Rescue(), (LARGE, MIDDLE, SMALL)),
    ],
)
def test_keeps_components_by_volume_and_number(step: Step, kept: tuple[tuple[Corner, Corner], ...]) -> None:
    mask, codes = apply(logits_of(THREE), step)
    np.testing.assert_array_equal(mask, boxes(*kept))
    assert codes == ([] if len(kept) == 3 else [DROPPED])


def test_event_gives_the_dropped_volume_in_mm3() -> None:
    grid = Grid(SHAPE, (1.0, 1.0, VOXEL_MM3))
    prediction = Prediction(THREE, grid, lambda: logits_of(THREE)[1])
    (event,) = Components(max_count=1).apply(prediction).events
    assert event.message.startswith("20 mm3 ")


def test_voxels_that_touch_in_a_corner_are_connected() -> None:
    corner = boxes(((0, 0, 0), (2, 2, 2)), ((2, 2, 2), (1, 1, 1)))
    mask, codes = apply(logits_of(corner), Components(max_count=1, min_mm3=18.0))
    np.testing.assert_array_equal(mask, corner)
    assert codes == []
    apart = boxes(((0, 0, 0), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)))
    assert apply(logits_of(apart), Components(max_count=1))[0].sum() == 8


@pytest.mark.parametrize("peak", [(4, 4, 4), (0, 0, 0), (7, 8, 9), (3, 0, 9)])
@pytest.mark.parametrize("max_mm3", [20_000.0, 60.0, 2.0, 0.5])
def test_rescue_marks_one_component_around_the_peak(peak: Corner, max_mm3: float) -> None:
    values = hill(peak, 3.0)
    mask, codes = apply(values, Rescue(max_mm3=max_mm3))
    assert codes == [RESCUED]
    assert mask[peak]
    assert ndimage.label(mask, CONNECTIVITY)[1] == 1
    assert 1 <= mask.sum() <= max(1, max_mm3 / VOXEL_MM3)
    probability = special.softmax(values, axis=0)[1]
    assert (probability[mask] >= 0.5 * probability[peak] * 0.999).all()
    assert probability[mask].min() >= probability[~mask & (probability >= 0.5 * probability[peak])].max(initial=0)


def test_rescue_marks_only_the_component_of_the_highest_peak() -> None:
    two = np.maximum(hill((1, 1, 1), 0.5), hill((6, 7, 8), 0.5, height=-1.1))
    mask, _ = apply(two, Rescue())
    assert mask[1, 1, 1]
    assert not mask[6, 7, 8]


@pytest.mark.fault(
    "models", "no tumour is found, and every voxel is equally probable", "a small mask in one piece, and an event"
)
def test_rescue_of_a_uniform_probability_grows_around_one_voxel() -> None:
    mask, codes = apply(logits_of(np.zeros(SHAPE, bool)), Rescue(max_mm3=2 * 27))
    assert codes == [RESCUED]
    assert mask.sum() == 27
    assert mask[0, 0, 0], "the peak is the first of equal voxels"
    assert ndimage.label(mask, CONNECTIVITY)[1] == 1


def test_rescue_of_a_ridge_with_two_equal_ends_is_one_component() -> None:
    # By probability alone both ends would stay and the middle would go.
    values = np.zeros((2, 1, 1, 9), np.float32)
    values[1] = -9
    values[1, 0, 0] = [-1, -1, -1.2, -1.2, -1.2, -1.2, -1.2, -1, -1]
    mask, _ = apply(values, Rescue(max_mm3=4 * VOXEL_MM3))
    assert ndimage.label(mask, CONNECTIVITY)[1] == 1
    assert 1 <= mask.sum() <= 4


@pytest.mark.fault(
    "models",
    "post-processing drops every component",
    "a mask that is not empty: the most probable component, and an event",
)
def test_rescue_fills_a_mask_whose_components_were_all_dropped() -> None:
    mask, codes = apply(logits_of(THREE), Components(min_mm3=1000.0), Rescue())
    assert codes == [DROPPED, RESCUED]
    assert mask.any()
    assert ndimage.label(mask, CONNECTIVITY)[1] == 1


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.25])
def test_a_threshold_takes_the_place_of_the_mask(probability: float) -> None:
    values = hill((4, 4, 4), 3.0)
    mask, codes = apply(values, Rescue(), Threshold(probability=probability))
    np.testing.assert_array_equal(mask, special.softmax(values, axis=0)[1] >= probability)
    assert mask.any()
    assert codes == [RESCUED]


def test_a_threshold_marks_a_voxel_that_has_just_its_probability() -> None:
    grid = Grid(SHAPE, (1.0, 1.0, VOXEL_MM3))
    half = np.full(SHAPE, 0.5, np.float32)
    prediction = Prediction(THREE, grid, lambda: half)
    assert Threshold(probability=0.5).apply(prediction).mask.all()
    assert not Threshold(probability=0.51).apply(prediction).mask.any()


def test_steps_are_applied_in_their_order() -> None:
    mask, codes = apply(hill((4, 4, 4), 3.0), Rescue(max_mm3=10.0), Components(min_mm3=1000.0))
    assert codes == [RESCUED, DROPPED]
    assert not mask.any()
