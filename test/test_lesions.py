"""Lesions: components, what is found and what is false, classes of volume, and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from pantherseg.evaluation.lesions import BOUNDS_ML, CLASSES, CaseLesions, Lesion, detection, detection_intervals
from pantherseg.evaluation.lesions import find_lesions as find
from pantherseg.volume import Grid, Volume

SHAPE = (6, 20, 20)
GRID = Grid(SHAPE, (2.0, 1.0, 1.0))


def mask(*boxes: tuple[slice, slice, slice]) -> Volume:
    array = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        array[box] = 1
    return Volume(array, GRID)


def box(z: int, y: int, x: int, size: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    return slice(z, z + size[0]), slice(y, y + size[1]), slice(x, x + size[2])


TWO = mask(box(0, 0, 0, (1, 1, 10)), box(3, 10, 10, (2, 5, 5)))


def test_lesions_are_components_with_26_neighbours_the_largest_first() -> None:
    corner = mask(box(0, 0, 0, (1, 1, 1)), box(1, 1, 1, (1, 1, 1)), box(3, 3, 3, (1, 1, 1)))
    lesions = find(None, corner)
    assert [lesion.volume_ml for lesion in lesions.reference] == pytest.approx([0.004, 0.002])
    assert lesions.predicted == ()
    assert lesions.found == lesions.false_positives == 0


@pytest.mark.parametrize(("voxels", "found"), [(0, 0), (1, 1), (2, 1)])
def test_a_lesion_is_found_if_a_tenth_of_it_is_predicted(voxels: int, found: int) -> None:
    lesions = find(mask(box(0, 0, 0, (1, 1, voxels))), TWO)
    assert [lesion.overlap for lesion in lesions.reference] == pytest.approx([0, voxels / 10])
    assert lesions.found == found
    lesions = find(mask(box(3, 10, 10, (1, 2, 2))), TWO)
    assert lesions.reference[0].overlap == pytest.approx(4 / 50)
    assert (lesions.found, lesions.false_positives) == (0, 0)


def test_a_prediction_of_which_less_than_a_tenth_is_right_is_a_false_positive() -> None:
    lesions = find(mask(box(0, 0, 0, (6, 20, 19))), TWO)
    assert lesions.found == 2
    assert lesions.false_positives == 1
    assert lesions.predicted[0].overlap == pytest.approx(60 / (6 * 20 * 19))


def test_one_prediction_may_find_two_lesions_and_two_may_find_one() -> None:
    one, two = mask(box(0, 0, 0, (1, 1, 12))), mask(box(0, 0, 0, (1, 1, 5)), box(0, 0, 7, (1, 1, 5)))
    assert find(one, two).found == 2
    lesions = find(two, one)
    assert (lesions.found, len(lesions.predicted), lesions.false_positives) == (1, 2, 0)


@pytest.mark.parametrize("prediction", [None, mask(), mask(box(0, 0, 0, SHAPE))])
def test_missing_empty_and_full_predictions_have_no_lesions(prediction: Volume | None) -> None:
    lesions = find(prediction, TWO)
    assert lesions.predicted == ()
    assert [lesion.overlap for lesion in lesions.reference] == [0, 0]


def test_lesions_do_not_depend_on_the_voxel_order_of_the_prediction() -> None:
    prediction = mask(box(0, 0, 2, (2, 3, 10)))
    assert find(prediction.turned_to("RAI"), TWO) == find(prediction, TWO)
    assert find(prediction.turned_to("SPL"), TWO) == find(prediction, TWO)


CASES = [
    CaseLesions((Lesion(0.2, 0.5), Lesion(10, 0)), (Lesion(0.4, 0.9), Lesion(5, 0.05))),
    CaseLesions((Lesion(10, 0.1),), (Lesion(40, 0.1),)),
]


def test_detection_is_counted_by_volume() -> None:
    everything = detection(CASES)
    assert (everything.reference, everything.found, everything.predicted, everything.false_positives) == (3, 2, 3, 1)
    assert everything.sensitivity == pytest.approx(2 / 3)
    assert everything.false_positives_per_case == pytest.approx(0.5)
    assert (everything.from_ml, everything.to_ml) == (0, None)
    rows = [detection(CASES, low_ml=low, high_ml=high) for low, high in CLASSES]
    assert [row.reference for row in rows] == [1, 0, 2, 0]
    assert [row.found for row in rows] == [1, 0, 1, 0]
    assert [row.sensitivity for row in rows] == [1, None, 0.5, None]
    assert [row.predicted for row in rows] == [1, 0, 1, 1]
    assert [row.false_positives for row in rows] == [0, 0, 1, 0]


def test_classes_are_balls_of_1_2_and_4_cm() -> None:
    balls = [4 / 3 * np.pi * (cm / 2) ** 3 for cm in (1, 2, 4)]
    assert list(BOUNDS_ML) == pytest.approx(balls, abs=0.005)
    on_the_bound = CaseLesions((Lesion(BOUNDS_ML[0], 1),), ())
    assert [detection([on_the_bound], low_ml=low, high_ml=high).reference for low, high in CLASSES] == [0, 1, 0, 0]


def test_intervals_draw_cases_and_a_single_case_has_none() -> None:
    assert detection_intervals(CASES[:1]) is None
    intervals = detection_intervals(CASES)
    assert intervals is not None
    # Two cases: one alone is drawn in a quarter of the samples, each.
    assert intervals["sensitivity"] == pytest.approx((0.5, 1))
    assert intervals["false_positives_per_case"] == pytest.approx((0, 1))
