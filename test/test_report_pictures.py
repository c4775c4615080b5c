"""The pictures and the viewer's volumes of a case on a page, and how they are made to fit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pantherseg.io import read_labels, read_volume
from pantherseg.report.planes import Scene
from pantherseg.report.tiles import FORMS, MIN_SIDE_MM, around_tumour, tiles_of
from pantherseg.report.viewer_volumes import MAX_SPACING_MM, viewer_volumes
from pantherseg.volume import Box, Grid, Shape, Volume

GRID = Grid((20, 60, 72), (4.0, 2.0, 2.0), (10.0, -20.0, 30.0))
PLENTY = 10e6
Region = tuple[slice, slice, slice]
TUMOUR: Region = (slice(8, 12), slice(30, 38), slice(40, 50))


def volume(grid: Grid = GRID) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)


def labels(*regions: Region, grid: Grid = GRID) -> Volume:
    array = np.zeros(grid.shape, np.uint8)
    for region in regions:
        array[region] = 1
    return Volume(array, grid)


def scene(*predicted: Region, reference: Region | None = None, grid: Grid = GRID) -> Scene:
    truth = None if reference is None else labels(reference, grid=grid)
    return Scene.of(volume(grid), labels(*predicted, grid=grid), truth, title="case")


def test_the_slices_are_those_with_tumour_and_one_more_at_each_end() -> None:
    tiles = tiles_of(scene(TUMOUR, reference=(slice(9, 14), *TUMOUR[1:])), max_bytes=PLENTY)
    assert [tile.name for tile in tiles.slices] == [f"axial slice {number} of 20" for number in range(8, 16)]
    assert tiles.left_out == 0
    assert tiles.slices[tiles.main].name == "axial slice 10 of 20"
    assert [bool(tile.predicted) for tile in tiles.slices] == [False, *[True] * 4, *[False] * 3]
    assert [bool(tile.reference) for tile in tiles.slices] == [False, False, *[True] * 5, False]
    assert [tile.name.split()[0] for tile in tiles.cuts] == ["axial", "coronal", "sagittal"]


def test_a_slice_says_how_much_tumour_it_shows() -> None:
    tiles = tiles_of(scene(TUMOUR, reference=TUMOUR), max_bytes=PLENTY)
    assert tiles.slices[1].description == "axial slice 9 of 20: predicted tumour 3.20 cm², reference 3.20 cm²"
    assert tiles_of(scene(TUMOUR), max_bytes=PLENTY).slices[0].description.endswith("predicted tumour 0.00 cm²")


def test_a_long_tumour_is_shown_by_evenly_spread_slices_with_the_largest_area_among_them() -> None:
    grid = Grid((60, 20, 20), (3.0, 2.0, 2.0))
    largest = (slice(7, 8), slice(2, 18), slice(2, 18))
    tiles = tiles_of(scene((slice(2, 58), slice(8, 12), slice(8, 12)), largest, grid=grid), max_bytes=PLENTY)
    assert len(tiles.slices) == FORMS[0][0]
    assert tiles.slices[tiles.main].name == "axial slice 8 of 60"
    assert tiles.left_out == 56 - sum(bool(tile.predicted) for tile in tiles.slices)


@pytest.mark.parametrize("reference", [None, (slice(0), slice(0), slice(0))])
def test_without_a_tumour_slices_of_the_whole_volume_are_shown(reference: Region | None) -> None:
    tiles = tiles_of(scene(reference=reference), max_bytes=PLENTY)
    assert len(tiles.slices) == FORMS[0][0]
    assert tiles.left_out == 0
    first, middle = tiles.slices[0], tiles.slices[tiles.main]
    assert (first.name, middle.name) == ("axial slice 1 of 20", "axial slice 11 of 20")
    assert (first.columns, first.rows) == (72, 60)
    assert first.predicted == first.reference == ""


def test_pictures_hold_the_voxels_as_they_are() -> None:
    shown = scene(TUMOUR)
    tile = tiles_of(shown, max_bytes=PLENTY).cuts[0]
    picture = np.asarray(Image.open(io.BytesIO(tile.png)))
    assert np.array_equal(picture, np.rint(shown.grey[8] * 255))
    assert (tile.width_mm, tile.height_mm) == (144.0, 120.0)


def test_pictures_become_smaller_and_fewer_where_there_is_less_room() -> None:
    grid = Grid((30, 140, 140), (3.0, 1.0, 1.0))
    shown = scene((slice(5, 25), slice(50, 90), slice(50, 90)), grid=grid)
    sizes, counts = [], []
    for room in (8e5, 9e4, 3e4):
        tiles = tiles_of(shown, max_bytes=room)
        used = sum(tile.bytes_on_page for tile in (*tiles.slices, *tiles.cuts))
        assert used <= room
        sizes.append(max(Image.open(io.BytesIO(tile.png)).size[0] for tile in tiles.slices))
        counts.append(len(tiles.slices))
        # What is shown of the patient stays the same.
        assert tiles.slices[0].columns == 80
    assert sizes == sorted(sizes, reverse=True)
    assert counts == sorted(counts, reverse=True)
    assert sizes[0] > sizes[-1]
    smallest = tiles_of(shown, max_bytes=1)
    assert (smallest.smaller, tiles_of(shown, max_bytes=PLENTY).smaller) == (True, False)
    assert len(smallest.slices) == FORMS[-1][0]


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 9)] * 3),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_volume_has_pictures_and_a_crop(
    shape: Shape, spacing: tuple[float, float, float], data: st.DataObject
) -> None:
    voxel = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    region: Region = tuple(slice(index, index + 1) for index in voxel)  # type: ignore[assignment]
    shown = scene(region, grid=Grid(shape, spacing))
    box = around_tumour(shown, 1.0, MIN_SIDE_MM)
    assert shown.predicted[box.slices].sum() == 1
    for start, stop, size, mm in zip(box.start, box.stop, shape, spacing, strict=True):
        assert stop - start == size or (stop - start) * mm > MIN_SIDE_MM - mm
    tiles = tiles_of(shown, max_bytes=PLENTY)
    assert tiles.slices[tiles.main].predicted
    assert viewer_volumes(shown, max_bytes=PLENTY) is not None


def saved(data: bytes, folder: Path, name: str) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_the_viewers_volumes_lie_where_the_volume_lies(tmp_path: Path) -> None:
    reference: Region = (slice(9, 13), *TUMOUR[1:])
    crops = viewer_volumes(scene(TUMOUR, reference=reference), max_bytes=PLENTY)
    assert crops is not None
    assert crops.reference is not None
    assert (crops.spacing, crops.coarser) == (GRID.spacing, False)
    image = read_volume(saved(crops.image, tmp_path, "image.nii.gz")).turned_to("LPS")
    predicted = read_labels(saved(crops.predicted, tmp_path, "predicted.nii.gz")).turned_to("LPS")
    truth = read_labels(saved(crops.reference, tmp_path, "reference.nii.gz")).turned_to("LPS")
    assert image.grid.difference(predicted.grid) == image.grid.difference(truth.grid) == ""
    box = GRID.box_from(image.grid, Box.whole(image.grid.shape))
    assert np.array_equal(predicted.array, labels(TUMOUR).array[box.slices])
    assert np.array_equal(truth.array, labels(reference).array[box.slices])
    assert image.array.min() >= 0
    assert image.array.max() <= 255


def test_the_viewers_volumes_do_not_depend_on_the_voxel_order(tmp_path: Path) -> None:
    crops = []
    for order in ("LPS", "SAR"):
        turned = Scene.of(volume().turned_to(order), labels(TUMOUR).turned_to(order), None, title="case")
        made = viewer_volumes(turned, max_bytes=PLENTY)
        assert made is not None
        crops.append(read_volume(saved(made.image, tmp_path, "image.nii.gz")))
    assert np.array_equal(crops[0].array, crops[1].array)
    assert crops[0].grid.difference(crops[1].grid) == ""


def test_the_viewers_volumes_become_coarser_and_are_then_left_out() -> None:
    shown = scene(TUMOUR)
    whole = viewer_volumes(shown, max_bytes=PLENTY)
    assert whole is not None
    room = len(whole.image) * 0.9
    coarser = viewer_volumes(shown, max_bytes=room)
    assert coarser is not None
    assert coarser.coarser
    assert (len(coarser.image) + len(coarser.predicted)) * 4 / 3 <= room
    assert max(coarser.spacing) <= MAX_SPACING_MM
    assert viewer_volumes(shown, max_bytes=100) is None


def test_a_coarser_crop_keeps_the_tumours_place(tmp_path: Path) -> None:
    whole = viewer_volumes(scene(TUMOUR), max_bytes=PLENTY)
    assert whole is not None
    crops = viewer_volumes(scene(TUMOUR), max_bytes=len(whole.image))
    assert crops is not None
    assert crops.coarser
    mask = read_labels(saved(crops.predicted, tmp_path, "predicted.nii.gz")).turned_to("LPS")
    centre = np.argwhere(mask.array).mean(axis=0)
    place = np.array(mask.grid.origin) + centre[::-1] * mask.grid.spacing[::-1]
    expected = np.array(GRID.origin) + np.array([44.5, 33.5, 9.5]) * GRID.spacing[::-1]
    assert place == pytest.approx(expected, abs=1.0)
