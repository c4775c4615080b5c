"""Boxes around the pancreas: margin, extent, components, plausibility, and what is reported about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from pantherseg.events import Event, EventCode
from pantherseg.localize import Located, localize
from pantherseg.machine.deadline import Deadline
from pantherseg.orientation import ORIENTATIONS, Orientation, Turn
from pantherseg.recipe import Localizer
from pantherseg.volume import Box, Grid, Volume

# A body of 200x180x180 mm with a voxel of 45 mm3, and a pancreas of 135 ml in it.
SHAPE, SPACING = (40, 60, 60), (5.0, 3.0, 3.0)
BODY = np.s_[4:36, 10:50, 10:50]
PANCREAS = np.s_[10:20, 20:40, 25:40]
# Far from the pancreas, in the body: 0.54 and 2.16 ml. In the air, and larger than the pancreas: 423 ml.
SMALL, LARGE, AIR = np.s_[30:33, 44:48, 12:13], np.s_[30:33, 44:48, 12:16], np.s_[8:32, 0:7, 2:58]
THIN = np.s_[10:20, 20:23, 20:40]

Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class FixedLocalizer:
    """A localizer that finds a given label map, and its logits."""

    label_map: NDArray[np.uint8]
    events: tuple[Event, ...] = ()
    is_complete: bool = True
    trained_orientation: Orientation = "LPS"

    def predict(self, volume: Volume, deadline: Deadline) -> FixedLocalizer:
        assert volume.array.shape == self.label_map.shape
        return self

    def mask(self, label: int) -> NDArray[np.bool_]:
        return self.label_map == label


def body(shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, float, float] = SPACING, **grid: Any) -> Volume:
    array = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    array[BODY] += 300
    return Volume(array, Grid(shape, spacing, **grid))


def marked(*found: Region, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    for region in found:
        labels[region] = 7
    return labels


def located(
    *found: Region, volume: Volume | None = None, labels: NDArray[np.uint8] | None = None, **keys: Any
) -> Located:
    """Localize a body where the localizer finds the pancreas in some regions (z, y, x)."""
    settings = Localizer(model="localizer", label=7, **{"margin_mm": 10.0, **keys})
    finder = FixedLocalizer(marked(*found) if labels is None else labels)
    return localize(volume or body(), finder, settings)  # type: ignore[arg-type]


def box_of(region: Region, margin: tuple[int, int, int] = (2, 4, 4)) -> Box:
    """Return the box of a region with a margin in voxels (z, y, x), within the volume."""
    start, stop = zip(*((s.start - m, s.stop + m) for s, m in zip(region, margin, strict=True)), strict=True)
    return Box(tuple(max(0, a) for a in start), tuple(min(a, b) for a, b in zip(stop, SHAPE, strict=True)))  # type: ignore[arg-type]


# Plausibility


@pytest.mark.fault("localizer", "the localizer's box {id}", "the whole volume is searched, and an event says why")
@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (np.s_[10:11, 20:40, 20:40], "is 5x60x60 mm (z, y, x) before the margin, which is too small"),
        (THIN, "is 50x9x60 mm (z, y, x) before the margin, which is too small"),
        (np.s_[1:39, 1:59, 1:59], "holds 100% of the volume"),
        (np.s_[10:20, 0:10, 0:50], "lies outside the body: "),
    ],
    ids=["is one slice", "is thinner than any pancreas", "is nearly the whole volume", "lies outside the body"],
)
@pytest.mark.parametrize("components", ["all", "largest"])
def test_rejects_an_implausible_box(found: Region, reason: str, components: str) -> None:
    result = located(found, components=components)
    assert (result.box, result.pancreas) == (None, None)
    (event,) = result.events
    assert event.code == EventCode.IMPLAUSIBLE_BOX
    assert f"the localizer's box {reason}" in event.message


def test_accepts_a_box_of_the_smallest_size_in_the_recipe() -> None:
    assert located(PANCREAS).box is not None
    result = located(THIN, min_side_mm=5.0)
    assert result.box is not None
    assert result.events == ()


@pytest.mark.fault(
    "localizer", "the localizer marks nothing at all", "no box and no pancreas in the report, and an event that says so"
)
def test_finds_no_box_without_a_pancreas() -> None:
    result = located()
    assert (result.box, result.pancreas) == (None, None)
    assert [event.code for event in result.events] == [EventCode.NO_PANCREAS_FOUND]


# Components


def test_a_small_detached_false_positive_does_not_change_the_box() -> None:
    expected = located(PANCREAS)
    for components in ("all", "largest"):
        result = located(PANCREAS, SMALL, components=components)
        assert result.box == expected.box == box_of(PANCREAS)
        assert result.pancreas is not None
        assert result.pancreas.ml == pytest.approx(135.0)
        assert result.pancreas.left_out_ml == pytest.approx(0.54)


def test_a_large_detached_component_counts_unless_the_largest_is_wanted() -> None:
    both = located(PANCREAS, LARGE)
    assert both.box == box_of(PANCREAS).joined(box_of(LARGE))
    assert both.pancreas is not None
    assert both.pancreas.left_out_ml == 0
    largest = located(PANCREAS, LARGE, components="largest")
    assert largest.box == box_of(PANCREAS)
    assert largest.pancreas is not None
    assert largest.pancreas.left_out_ml == pytest.approx(2.16)


def test_a_pancreas_that_a_tumour_splits_is_whole_by_default() -> None:
    head, tail = np.s_[10:20, 20:40, 20:26], np.s_[10:20, 20:40, 32:40]
    assert located(head, tail).box == box_of(np.s_[10:20, 20:40, 20:40])
    assert located(head, tail, components="largest").box == box_of(tail)


@pytest.mark.fault(
    "localizer",
    "the largest component that the localizer marks lies in the air beside the body",
    'with `components = "largest"`, the box around the next one',
)
def test_the_largest_component_must_be_plausible() -> None:
    result = located(PANCREAS, AIR, components="largest")
    assert result.box == box_of(PANCREAS)
    assert result.pancreas is not None
    assert result.pancreas.left_out_ml == pytest.approx(423.36)
    none = located(AIR, THIN, components="largest", min_side_mm=15.0)
    assert none.box is None
    assert "lies outside the body" in none.events[-1].message, "the reason is that of the largest"


def test_small_components_count_where_there_is_no_larger_one() -> None:
    result = located(SMALL, np.s_[30:33, 40:43, 12:13], min_side_mm=1.0)
    assert result.box == box_of(np.s_[30:33, 40:48, 12:13])
    assert located(PANCREAS, SMALL, min_component_mm3=0.0).box == box_of(PANCREAS).joined(box_of(SMALL))


# Margin and extent


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_margin_and_extent_are_along_the_axes_of_the_patient(code: Orientation) -> None:
    """15, 48 and 99 mm along the patient, front to back and side to side, whatever the order of the voxels."""
    result = located(PANCREAS, volume=body().turned_to(code), margin_mm=(15.0, 48.0, 99.0), max_share=1.0)
    assert result.box == box_of(PANCREAS, (3, 16, 33)).turned(Turn.between("LPS", code), SHAPE)
    grown = located(PANCREAS, volume=body().turned_to(code), margin_mm=0.0, min_extent_mm=(100.0, 0.0, 90.0))
    expected = Box((5, 20, 17), (25, 40, 48))
    assert grown.box == expected.turned(Turn.between("LPS", code), SHAPE)
    assert grown.pancreas is not None
    assert grown.pancreas.box == box_of(PANCREAS, (0, 0, 0)).turned(Turn.between("LPS", code), SHAPE)


def test_a_small_box_grows_to_the_minimum_extent_and_moves_inwards_at_the_edge() -> None:
    corner = np.s_[4:14, 10:20, 10:20]
    result = located(corner, margin_mm=0.0, min_extent_mm=100.0)
    assert result.box is not None
    assert result.box == Box((0, 0, 0), (20, 34, 34))
    assert located(PANCREAS, margin_mm=0.0, min_extent_mm=20.0).box == box_of(PANCREAS, (0, 0, 0))
    assert located(PANCREAS, min_extent_mm=1e4).box == Box.whole(SHAPE), "a wanted extent is no implausible box"


@pytest.mark.fault(
    "localizer", "the pancreas reaches the last voxel of the volume in every axis", "a box with that voxel"
)
def test_the_box_holds_the_last_voxel() -> None:
    volume = body()
    volume.array[:] += 300
    last = np.s_[30:40, 45:60, 45:60]
    for margin in (0.0, 10.0):
        box = located(last, volume=volume, margin_mm=margin).box
        assert box is not None
        assert box.stop == SHAPE
        assert volume.crop(box).array[-1, -1, -1] == volume.array[-1, -1, -1]


# The copy


@pytest.mark.parametrize("shape", [(40, 60, 60), (41, 61, 59), (39, 63, 55)])
def test_sees_a_copy_at_half_resolution_or_at_a_spacing(shape: tuple[int, int, int]) -> None:
    volume = body(shape)
    half = tuple(int(np.rint(size / 2)) for size in shape)
    found = np.s_[5:10, 10:20, 12:20]
    result = located(volume=volume, labels=marked(found, shape=half), half_resolution=True, margin_mm=0.0)
    assert result.box == Box((10, 20, 24), (20, 40, 40))
    assert result.pancreas is not None
    assert result.pancreas.ml == pytest.approx(5 * 10 * 8 * 10 * 6 * 6 / 1000)
    same = located(volume=volume, labels=marked(found, shape=half), spacing=(10.0, 6.0, 6.0), margin_mm=0.0)
    assert same == result


# What is reported


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR"])
def test_reports_place_and_volume_of_the_pancreas(code: Orientation) -> None:
    rows = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix(), (3, 3)).tolist()
    volume = body(origin=(3.0, -40.0, 5.0), direction=tuple(map(tuple, rows)))
    result = located(PANCREAS, volume=volume.turned_to(code))
    assert result.pancreas is not None
    image = sitk.GetImageFromArray(marked(PANCREAS))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(volume.grid.origin)
    image.SetDirection(np.ravel(rows).tolist())
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    np.testing.assert_allclose(result.pancreas.centre_mm, shapes.GetCentroid(7), atol=1e-6)
    assert result.pancreas.ml == pytest.approx(shapes.GetPhysicalSize(7) / 1000)
    assert result.pancreas.box == box_of(PANCREAS, (0, 0, 0)).turned(Turn.between("LPS", code), SHAPE)
