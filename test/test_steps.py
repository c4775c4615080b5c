"""Post-processing steps in mm: shape, holes, distance to the pancreas, overlap with it, and limits of the volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg.events import EventCode
from pantherseg.postprocess import (
    Closing,
    Components,
    FillHoles,
    Near,
    Opening,
    Overlap,
    Prediction,
    Rescue,
    Step,
    Threshold,
    VolumeLimits,
)
from pantherseg.postprocess.prediction import CONNECTIVITY
from pantherseg.volume import Grid

Mask = NDArray[np.bool_]
Triple = tuple[float, float, float]

spacings = st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (3.0, 1.1875, 1.1875), (0.5, 2.0, 1.5), (7.0, 0.7, 0.7)])
shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape))
radii = st.floats(0.3, 4)
every_step = st.one_of(
    st.builds(Opening, mm=radii),
    st.builds(Closing, mm=radii),
    st.builds(FillHoles, max_mm3=st.none() | st.floats(1, 50)),
    st.builds(Components, min_mm3=st.floats(0, 20), max_count=st.none() | st.integers(1, 3)),
    st.builds(Components, second_share=st.floats(0.1, 1), min_voxels=st.integers(1, 4)),
    st.builds(Overlap, min_share=st.none() | st.floats(0.1, 1), min_voxels=st.integers(1, 4)),
    st.builds(Near, max_mm=st.floats(0, 8)),
    st.builds(VolumeLimits, min_mm3=st.floats(0, 20), max_mm3=st.floats(20, 60)),
)


def prediction(
    mask: Mask, spacing: Triple = (1.0, 1.0, 1.0), pancreas: Mask | None = None, **fields: Any
) -> Prediction:
    """Return a prediction whose probability is 0.9 in the mask and 0.2 outside, unless it is given."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    pancreases = {} if pancreas is None else {"members": lambda: pancreas}
    defaults = {"probability": lambda: np.where(mask, 0.9, 0.2).astype(np.float32), "pancreases": pancreases}
    return Prediction(mask, Grid(shape, spacing), **{**defaults, **fields})


def applied(step: Step, mask: Mask, spacing: Triple = (1.0, 1.0, 1.0), pancreas: Mask | None = None) -> Mask:
    """Return the mask after a step, which must leave the one that it is given as it is."""
    before = mask.copy()
    after = step.apply(prediction(mask, spacing, pancreas)).mask
    np.testing.assert_array_equal(mask, before)
    assert (after.dtype, after.shape) == (bool, mask.shape)
    return after


def codes(found: Prediction) -> list[EventCode]:
    return [event.code for event in found.events]


def ball(radius: float, spacing: Triple) -> Mask:
    """Return the offsets within a radius in mm as a structuring element."""
    sizes = [int(radius / mm + 1e-6) for mm in spacing]
    offsets = np.stack(np.meshgrid(*[np.arange(-size, size + 1) for size in sizes], indexing="ij"), axis=-1)
    inside: Mask = (offsets * spacing) ** 2 @ np.ones(3) <= (radius + 1e-6) ** 2
    return inside


@settings(max_examples=60, deadline=None)
@given(mask=masks, radius=radii, spacing=spacings)
def test_opening_and_closing_are_those_by_a_ball_in_mm(mask: Mask, radius: float, spacing: Triple) -> None:
    element = ball(radius, spacing)
    opened = ndimage.binary_opening(mask, element)
    np.testing.assert_array_equal(applied(Opening(mm=radius), mask, spacing), opened)
    room = [(size, size) for size in element.shape]
    closed = ndimage.binary_closing(np.pad(mask, room), element)
    inner = tuple(slice(size, -size) for size in element.shape)
    np.testing.assert_array_equal(applied(Closing(mm=radius), mask, spacing), closed[inner])


@settings(max_examples=40, deadline=None)
@given(mask=masks, radius=radii, spacing=spacings)
def test_opening_shrinks_closing_grows_and_twice_is_once(mask: Mask, radius: float, spacing: Triple) -> None:
    opened, closed = (applied(step, mask, spacing) for step in (Opening(mm=radius), Closing(mm=radius)))
    assert (opened <= mask).all()
    assert (mask <= closed).all()
    np.testing.assert_array_equal(applied(Opening(mm=radius), opened, spacing), opened)
    # What a volume cuts off of the closed mask is missing in a second closing, so it is closed with room.
    roomy = applied(Closing(mm=radius), np.pad(mask, 10), spacing)
    np.testing.assert_array_equal(applied(Closing(mm=radius), roomy, spacing), roomy)


@settings(max_examples=60, deadline=None)
@given(mask=masks, step=every_step, spacing=spacings, data=st.data())
def test_background_around_the_volume_changes_nothing(mask: Mask, step: Step, spacing: Triple, data: Any) -> None:
    pancreas = data.draw(hnp.arrays(bool, mask.shape))
    expected = applied(step, mask, spacing, pancreas)
    wide = applied(step, np.pad(mask, 3), spacing, np.pad(pancreas, 3))
    np.testing.assert_array_equal(wide[3:-3, 3:-3, 3:-3], expected)


@settings(max_examples=60, deadline=None)
@given(mask=masks, step=every_step, spacing=spacings, data=st.data())
def test_turning_the_volume_turns_the_result(mask: Mask, step: Step, spacing: Triple, data: Any) -> None:
    if isinstance(step, (VolumeLimits, Components)):
        return  # of equal voxels or components, those that come first in the array are kept
    pancreas = data.draw(hnp.arrays(bool, mask.shape))
    axes = data.draw(st.permutations(range(3)))
    z, y, x = (spacing[axis] for axis in axes)
    turned = applied(step, mask.transpose(axes)[::-1], (z, y, x), pancreas.transpose(axes)[::-1])
    np.testing.assert_array_equal(turned, applied(step, mask, spacing, pancreas).transpose(axes)[::-1])


def test_a_ball_is_flat_on_thick_slices() -> None:
    mask = np.zeros((5, 21, 21), bool)
    mask[2, 5:16, 5:16] = True
    # 2 mm: two voxels in the plane, and no neighbouring slice of 3 mm.
    np.testing.assert_array_equal(
        applied(Opening(mm=2), mask, (3.0, 1.0, 1.0)), ndimage.binary_opening(mask, ball(2, (3.0, 1.0, 1.0)))
    )
    assert applied(Opening(mm=2), mask, (3.0, 1.0, 1.0)).sum() > 100
    assert not applied(Opening(mm=3), mask, (3.0, 1.0, 1.0)).any(), "one slice of 3 mm is thinner than the ball"
    assert applied(Opening(mm=3), mask, (3.1, 1.0, 1.0)).any()


def test_closing_joins_what_is_nearer_than_the_ball_is_wide() -> None:
    mask = np.zeros((1, 9, 30), bool)
    mask[:, :, :8] = mask[:, :, 12:20] = mask[:, :, 26:] = True
    # The gaps are 4 and 6 voxels of 1.5 mm wide.
    joined = applied(Closing(mm=3.1), mask, (5.0, 1.5, 1.5))
    assert joined[0, 4, 8:12].all()
    assert not joined[0, 4, 20:26].any()


def test_fills_holes_up_to_a_volume() -> None:
    mask = np.zeros((7, 12, 9), bool)
    mask[1:6, 1:11, 1:8] = True
    mask[3, 3, 3] = False
    mask[3, 6:9, 3:6] = False
    holes = {1: np.zeros_like(mask), 9: np.zeros_like(mask)}
    holes[1][3, 3, 3] = holes[9][3, 6:9, 3:6] = True
    spacing = (2.0, 1.0, 1.5)
    np.testing.assert_array_equal(applied(FillHoles(), mask, spacing), mask | holes[1] | holes[9])
    np.testing.assert_array_equal(applied(FillHoles(max_mm3=27.0), mask, spacing), mask | holes[1] | holes[9])
    np.testing.assert_array_equal(applied(FillHoles(max_mm3=26.9), mask, spacing), mask | holes[1])
    np.testing.assert_array_equal(applied(FillHoles(max_mm3=2.9), mask, spacing), mask)
    open_ = mask.copy()
    open_[3, :4, 3] = False
    assert not applied(FillHoles(max_mm3=27.0), open_, spacing)[3, 3, 3], "it is open to the outside"


@settings(max_examples=60, deadline=None)
@given(mask=masks, spacing=spacings, max_mm=st.floats(0, 8), data=st.data())
def test_near_keeps_components_by_their_distance_in_mm(mask: Mask, spacing: Triple, max_mm: float, data: Any) -> None:
    pancreas = data.draw(hnp.arrays(bool, mask.shape).filter(lambda array: array.any()))
    distance = ndimage.distance_transform_edt(~pancreas, sampling=spacing)
    numbers, count = ndimage.label(mask, CONNECTIVITY)
    kept = [number for number in range(1, count + 1) if distance[numbers == number].min() <= max_mm + 1e-6]
    np.testing.assert_array_equal(applied(Near(max_mm=max_mm), mask, spacing, pancreas), np.isin(numbers, kept))


@settings(max_examples=60, deadline=None)
@given(mask=masks, share=st.none() | st.sampled_from([0.15, 0.5, 1.0]), voxels=st.integers(1, 4), data=st.data())
def test_overlap_keeps_components_by_their_part_in_the_pancreas(
    mask: Mask, share: float | None, voxels: int, data: Any
) -> None:
    pancreas = data.draw(hnp.arrays(bool, mask.shape).filter(lambda array: array.any()))
    numbers, count = ndimage.label(mask, CONNECTIVITY)
    kept = [
        number
        for number in range(1, count + 1)
        if (inside := (pancreas & (numbers == number)).sum()) >= voxels
        and inside >= (share or 0) * (numbers == number).sum() - 1e-6
    ]
    step = Overlap(min_share=share, min_voxels=voxels)
    np.testing.assert_array_equal(applied(step, mask, pancreas=pancreas), np.isin(numbers, kept))


def test_distances_at_the_limit_count_as_within() -> None:
    mask, pancreas = np.zeros((3, 1, 8), bool), np.zeros((3, 1, 8), bool)
    pancreas[0, 0, 0] = True
    mask[2, 0, 0] = True
    assert applied(Near(max_mm=6.0), mask, (3.0, 1.0, 1.0), pancreas).any()
    assert not applied(Near(max_mm=5.99), mask, (3.0, 1.0, 1.0), pancreas).any()


@pytest.mark.parametrize("step", [Near(max_mm=1.0), Overlap(min_share=0.15)])
@pytest.mark.parametrize("pancreas", [None, np.zeros((3, 4, 5), bool)])
@pytest.mark.fault("models", "a step looks at the pancreas, and none is found", "the mask as it was, and an event")
def test_without_a_pancreas_components_stay(step: Step, pancreas: Mask | None) -> None:
    mask = np.ones((3, 4, 5), bool)
    found = step.apply(prediction(mask, pancreas=pancreas))
    np.testing.assert_array_equal(found.mask, mask)
    assert codes(found) == [EventCode.STEP_SKIPPED]
    empty = step.apply(prediction(np.zeros((3, 4, 5), bool), pancreas=pancreas))
    assert codes(empty) == []


def test_a_step_looks_at_the_pancreas_that_it_names() -> None:
    mask, here, elsewhere = (np.zeros((1, 1, 9), bool) for _ in range(3))
    mask[0, 0, :2] = here[0, 0, 0] = elsewhere[0, 0, 8] = True
    given_ = prediction(mask, pancreases={"members": lambda: here, "localizer": lambda: elsewhere})
    assert Near(max_mm=2).apply(given_).mask.any()
    assert not Near(max_mm=2, of="localizer").apply(given_).mask.any()
    assert [step.needs for step in (Near(max_mm=2), Overlap(of="localizer"), Opening(mm=1))] == [
        "members",
        "localizer",
        None,
    ]


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (Components(second_share=0.2), [27, 6]),
        (Components(second_share=6 / 27), [27, 6]),
        (Components(second_share=0.23), [27]),
        (Components(max_count=2, second_share=0.1), [27, 6]),
        (Components(min_voxels=4), [27, 6]),
        (Components(min_voxels=3), [27, 6, 3]),
        (Components(max_count=3, min_voxels=2, second_share=0.05), [27, 6, 3]),
    ],
)
def test_components_by_share_of_the_largest_and_voxels(step: Step, kept: list[int]) -> None:
    mask = np.zeros((3, 3, 20), bool)
    mask[:, :, :3] = True  # 27 voxels
    mask[0, :2, 6:9] = True  # 6
    mask[0, 0, 11:14] = True  # 3
    mask[0, 0, 18] = True
    numbers, count = ndimage.label(applied(step, mask), CONNECTIVITY)
    assert sorted(np.bincount(numbers.ravel())[1 : count + 1].tolist(), reverse=True) == kept


def test_a_mask_that_is_too_small_is_emptied_for_the_rescue() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, :3] = True
    small = prediction(mask, (2.0, 1.0, 1.0))
    assert VolumeLimits(min_mm3=6.0).apply(small) is small
    emptied = VolumeLimits(min_mm3=6.1).apply(small)
    assert not emptied.mask.any()
    rescued = Rescue().apply(emptied)
    assert rescued.mask.any()
    assert codes(rescued) == [EventCode.VOLUME_LIMITED, EventCode.EMPTY_MASK_RESCUED]


@settings(max_examples=40, deadline=None)
@given(mask=masks, max_mm3=st.floats(0.5, 200), spacing=spacings, seed=st.integers(0, 99))
def test_of_a_mask_that_is_too_large_the_most_probable_voxels_stay(
    mask: Mask, max_mm3: float, spacing: Triple, seed: int
) -> None:
    probability = np.random.default_rng(seed).choice(np.float32([0.5, 0.7, 1.0]), mask.shape)
    before = prediction(mask, spacing, probability=lambda: probability)
    after = VolumeLimits(max_mm3=max_mm3).apply(before)
    voxel = before.grid.voxel_mm3
    assert (after.mask <= mask).all()
    assert after.mask.sum() == min(
        mask.sum(), max(1, int(max_mm3 / voxel + 1e-6)) if mask.sum() > max_mm3 / voxel + 1e-6 else mask.sum()
    )
    assert probability[after.mask].min(initial=1) >= probability[mask & ~after.mask].max(initial=0)


@pytest.mark.parametrize("voxels", range(1, 30))
@pytest.mark.parametrize("spacing", [(0.1, 0.1, 0.1), (0.3, 0.7, 0.7), (3.0, 1.1875, 1.1875)])
def test_limits_of_so_many_voxels_hold_whatever_the_rounding(voxels: int, spacing: Triple) -> None:
    mask = np.zeros((3, 4, 40), bool)
    mask[1, 1, 2 : 2 + voxels] = True
    before = prediction(mask, spacing)
    limit = round(voxels * float(np.prod(spacing)), 9)
    for step in (
        VolumeLimits(min_mm3=limit),
        VolumeLimits(max_mm3=limit),
        Components(min_mm3=limit),
    ):
        np.testing.assert_array_equal(step.apply(before).mask, mask)


def test_of_a_mask_that_is_too_large_at_least_one_voxel_stays() -> None:
    assert applied(VolumeLimits(max_mm3=0.001), np.ones((2, 2, 2), bool)).sum() == 1


def test_of_equally_probable_voxels_the_deepest_stay() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    kept = applied(VolumeLimits(max_mm3=27.0), mask)
    assert kept[2:5, 2:5, 2:5].all()
    assert kept.sum() == 27


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_mm3 = 5\.0 is less than min_mm3 = 6\.0"):
        VolumeLimits(min_mm3=6.0, max_mm3=5.0)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(every_step, max_size=4), mask=masks, data=st.data())
def test_any_order_of_steps_ends_with_a_mask(steps: list[Step], mask: Mask, data: Any) -> None:
    found = prediction(mask, (3.0, 1.0, 1.0), data.draw(hnp.arrays(bool, mask.shape)))
    for step in (*steps, Rescue()):
        found = step.apply(found)
    assert found.mask.any()
    assert (found.mask.dtype, found.mask.shape) == (bool, mask.shape)


def test_steps_are_applied_in_the_recipes_order() -> None:
    mask = np.zeros((1, 7, 20), bool)
    mask[0, :, :7] = mask[0, :, 12:19] = True
    mask[0, 3, 7:12] = True  # a bridge
    steps = (Opening(mm=2.0), Components(max_count=1))
    there, back = prediction(mask, (9.0, 1.0, 1.0)), prediction(mask, (9.0, 1.0, 1.0))
    for step in steps:
        there = step.apply(there)
    for step in reversed(steps):
        back = step.apply(back)
    assert there.tumour_mm3 < 0.6 * back.tumour_mm3, "the bridge made one component of two"


def test_system_d_keeps_what_is_near_the_pancreas() -> None:
    mask, pancreas = np.zeros((6, 40, 60), bool), np.zeros((6, 40, 60), bool)
    pancreas[2:4, 18:24, 20:30] = True
    probability = np.full(mask.shape, 0.01, np.float32)
    probability[2:4, 8:18, 20:30] = 0.46  # touches the pancreas
    probability[2:4, 24:29, 32:38] = 0.5  # 25 % of it, two voxels away
    probability[2:4, 2:12, 45:55] = 0.99  # far away
    found = prediction(mask, (3.0, 1.2, 1.2), pancreas, probability=lambda: probability)
    for step in (
        Threshold(probability=0.45),
        Opening(mm=1.2),
        Closing(mm=1.2),
        Components(min_mm3=50.0, max_count=2, second_share=0.2),
        Near(max_mm=6.0),
    ):
        found = step.apply(found)
    assert found.mask[2, 10, 25]
    assert not found.mask[2, 5, 50]
    assert not found.mask[:, :, :19].any()
