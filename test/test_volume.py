"""Volumes, grids and boxes, and volumes that are written and read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pantherseg.errors import InputError, OutputError
from pantherseg.events import Event, EventCode
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.io.itk import from_itk, to_itk
from pantherseg.orientation import Turn
from pantherseg.volume import Box, Grid, Shape, Triple, Volume, uncrop

SHAPE = (4, 5, 7)
SUFFIXES = [".mha", ".nrrd", ".nii", ".nii.gz"]
Direction = tuple[Triple, Triple, Triple]


def rotation(about_z: float, about_x: float) -> NDArray[np.float64]:
    c, s = np.cos(about_z), np.sin(about_z)
    d, t = np.cos(about_x), np.sin(about_x)
    matrix: NDArray[np.float64] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, d, -t], [0, t, d]]
    return matrix


def direction(matrix: NDArray[np.float64]) -> Direction:
    a, b, c = ((float(x), float(y), float(z)) for x, y, z in matrix)
    return a, b, c


OBLIQUE = direction(rotation(0.3, -0.2))
LEFT_HANDED = direction(rotation(0.3, -0.2) @ np.diag([1.0, -1.0, 1.0]))
PERMUTED = direction(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))
GRID = Grid(SHAPE, (5.0, 0.75, 1.25), (-120.5, 33.25, 780.125), OBLIQUE)


def counting(grid: Grid, dtype: str = "int16") -> Volume:
    return Volume(np.arange(np.prod(grid.shape)).reshape(grid.shape).astype(dtype), grid)


def world(image: Any, index_zyx: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index_zyx[::-1]]))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Shape, Box]:
    """A small shape and a box in it, which may touch the border or be one voxel wide."""
    shape = tuple(draw(st.integers(1, 7)) for _ in range(3))
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return shape, Box(start, stop)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float64"])
@pytest.mark.parametrize("orientation", [OBLIQUE, LEFT_HANDED, PERMUTED])
def test_reads_back_the_voxels_and_the_grid(tmp_path: Path, suffix: str, dtype: str, orientation: Direction) -> None:
    path = tmp_path / f"deeper/volume{suffix}"
    volume = counting(Grid(SHAPE, GRID.spacing, GRID.origin, orientation), dtype)
    write_volume(volume, path)
    back = read_labels(path)
    assert back.array.dtype == volume.array.dtype
    assert np.array_equal(back.array, volume.array)
    assert back.grid.shape == SHAPE
    assert np.allclose(back.grid.spacing, GRID.spacing, rtol=0, atol=1e-5)
    assert np.allclose(back.grid.origin, GRID.origin, rtol=0, atol=1e-3)
    assert np.allclose(back.grid.direction, orientation, rtol=0, atol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    image, events = read_image(path)
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array, volume.array)
    assert events == ()


def test_itk_finds_a_voxel_at_the_same_position(tmp_path: Path) -> None:
    volume = counting(Grid(SHAPE, GRID.spacing, GRID.origin, LEFT_HANDED))
    write_volume(volume, tmp_path / "a.mha")
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    expected = np.array(GRID.origin) + np.array(LEFT_HANDED) @ (np.array([6, 4, 3]) * [1.25, 0.75, 5.0])
    assert np.allclose(world(image, (3, 4, 6)), expected)
    assert image.GetPixel(6, 4, 3) == volume.array[3, 4, 6]
    assert from_itk(to_itk(volume)).grid == volume.grid


def test_refuses_to_write_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.nothing: expected a file name that ends with one of \.mha"):
        write_volume(counting(GRID), tmp_path / "a.nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 0, 0), (1, 0, 1)), ((-1, 0, 0), (1, 1, 1)), ((2, 0, 0), (1, 1, 1)), ((1, 1, 1), (1, 1, 1))]
)
def test_refuses_an_empty_box_and_a_negative_start(start: Shape, stop: Shape) -> None:
    with pytest.raises(ValueError, match="a box needs 0 <= start < stop"):
        Box(start, stop)


def test_the_box_around_a_mask_includes_its_last_voxel() -> None:
    mask = np.zeros(SHAPE, bool)
    assert Box.around(mask) is None
    mask[3, 4, 6] = True
    assert Box.around(mask) == Box((3, 4, 6), (4, 5, 7))
    mask[1, 2, 3] = True
    assert Box.around(mask) == Box((1, 2, 3), (4, 5, 7))
    assert Box.around(np.ones(SHAPE, bool)) == Box.whole(SHAPE)


@pytest.mark.parametrize(
    ("margin", "spacing", "expected"),
    [
        (0.0, (1.0, 1.0, 1.0), Box((10, 10, 10), (12, 12, 12))),
        (2.0, (2.0, 1.0, 3.0), Box((9, 8, 9), (13, 14, 13))),
        # 0.3 / 0.1 is slightly less than 3, and 2.1 / 0.7 slightly more.
        (0.3, (0.1, 0.1, 0.1), Box((7, 7, 7), (15, 15, 15))),
        (2.1, (0.7, 0.7, 0.7), Box((7, 7, 7), (15, 15, 15))),
        (30.0, (3.0, 2.0, 2.5), Box((0, 0, 0), (20, 20, 20))),
        (9.0, (1.0, 20.0, 1.0), Box((1, 9, 1), (20, 13, 20))),
    ],
)
def test_a_box_expands_by_whole_voxels_within_the_grid(margin: float, spacing: Triple, expected: Box) -> None:
    assert Box((10, 10, 10), (12, 12, 12)).expanded(margin, Grid((20, 20, 20), spacing)) == expected


def test_a_box_expands_by_another_margin_on_each_axis() -> None:
    grid = Grid((40, 40, 40), (5.0, 2.0, 1.0))
    assert Box((10, 15, 16), (20, 22, 24)).expanded((15.0, 7.0, 0.0), grid) == Box((7, 11, 16), (23, 26, 24))


@settings(deadline=None, max_examples=100)
@given(boxes(), st.tuples(*[st.floats(0, 60)] * 3))
def test_a_grown_box_has_the_extent_or_that_of_the_grid(shape_and_box: tuple[Shape, Box], extent: Triple) -> None:
    shape, box = shape_and_box
    grid = Grid(shape, (3.0, 1.5, 1.0))
    grown = box.grown(extent, grid)
    assert box.joined(grown) == grown
    assert grown.joined(Box.whole(shape)) == Box.whole(shape)
    for size, mm, wanted, before, whole in zip(grown.shape, grid.spacing, extent, box.shape, shape, strict=True):
        assert size == whole or size * mm >= wanted - 1e-5
        assert size == before or (size - 2) * mm < wanted, "no more than needed to grow on both sides"
    turn = Turn((2, 0, 1), (True, False, True))
    turned = box.turned(turn, shape).grown(turn.order(extent), grid.turned(turn))
    assert turned == grown.turned(turn, shape), "whatever the order of the voxels"


@settings(deadline=None, max_examples=60)
@given(boxes(), st.integers(0, 10**6))
def test_uncrop_is_the_inverse_of_crop(shape_and_box: tuple[Shape, Box], seed: int) -> None:
    shape, box = shape_and_box
    whole = Volume(np.random.default_rng(seed).integers(0, 9, shape, np.uint8), Grid(shape, (3.0, 1.0, 2.0)))
    crop = whole.crop(box)
    assert crop.array.shape == crop.grid.shape == box.shape
    back = uncrop(crop.array, box, shape)
    assert np.array_equal(back[box.slices], whole.array[box.slices])
    assert back.sum() == crop.array.sum()
    assert Box.around(uncrop(np.ones(box.shape, np.uint8), box, shape) > 0) == box


@settings(deadline=None, max_examples=40)
@given(boxes(), st.floats(-3, 3), st.floats(-1.5, 1.5), st.booleans())
def test_a_crop_agrees_with_itk(shape_and_box: tuple[Shape, Box], a: float, b: float, mirrored: bool) -> None:
    shape, box = shape_and_box
    matrix = rotation(a, b) @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
    volume = counting(Grid(shape, (5.0, 0.75, 1.25), (-12.5, 33.25, 78.125), direction(matrix)))
    crop = volume.crop(box)
    by_itk = sitk.RegionOfInterest(to_itk(volume), [int(n) for n in box.shape[::-1]], [int(n) for n in box.start[::-1]])
    assert np.array_equal(crop.array, sitk.GetArrayFromImage(by_itk))
    assert crop.grid.difference(from_itk(by_itk).grid) == ""
    last = tuple(n - 1 for n in box.shape)
    whole_last = tuple(n - 1 for n in box.stop)
    assert np.allclose(world(to_itk(crop), last), world(to_itk(volume), whole_last), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(boxes(), st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_a_box_is_the_same_on_a_permuted_and_flipped_grid(
    shape_and_box: tuple[Shape, Box], order: list[int], flips: tuple[bool, bool, bool]
) -> None:
    shape, box = shape_and_box
    inside = Volume(uncrop(np.ones(box.shape, np.uint8), box, shape), Grid(shape, (3.3, 0.7, 1.1), (1, -2, 3), OBLIQUE))
    image = sitk.Flip(sitk.PermuteAxes(to_itk(inside), order), list(flips), False)
    other = from_itk(image)
    assert other.grid.box_from(inside.grid, box) == Box.around(other.array > 0)
    assert inside.grid.box_from(other.grid, other.grid.box_from(inside.grid, box)) == box


@settings(deadline=None, max_examples=60)
@given(boxes(), st.floats(1.3, 4), st.floats(-0.5, 0.5))
def test_the_box_on_a_coarser_grid_covers_the_box(shape_and_box: tuple[Shape, Box], factor: float, turn: float) -> None:
    shape, box = shape_and_box
    fine = Grid(shape, (1.0, 1.0, 1.0), (5.0, 6.0, 7.0), OBLIQUE)
    # Rotated around the centre of the first voxel, and large enough to enclose the fine grid.
    matrix = np.array(OBLIQUE) @ rotation(turn, 0.1)
    origin = np.array(fine.origin) - matrix @ np.full(3, 20.0)
    coarse = Grid((48, 48, 48), (factor, factor, factor), tuple(origin.tolist()), direction(matrix))
    held = coarse.box_from(fine, box)
    corners = np.array(np.meshgrid(*[(a - 0.5, b - 0.5) for a, b in zip(box.start, box.stop, strict=True)]))
    points = np.array(fine.origin) + corners.reshape(3, -1).T[:, ::-1] @ np.array(OBLIQUE).T
    index = ((points - origin) @ matrix / factor)[:, ::-1]
    assert (index >= np.array(held.start) - 0.5 - 2e-3).all()
    assert (index <= np.array(held.stop) - 0.5 + 2e-3).all()


def test_a_box_outside_the_grid_is_clipped_to_its_border() -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0))
    far = Grid((4, 4, 4), (1.0, 1.0, 1.0), (100.0, 0.0, 0.0))
    assert grid.box_from(far, Box.whole((4, 4, 4))) == Box((0, 0, 3), (4, 4, 4))
    assert far.box_from(grid, Box.whole((4, 4, 4))) == Box((0, 0, 0), (4, 4, 1))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Grid((4, 5, 6), GRID.spacing, GRID.origin, OBLIQUE), r"size \(4, 5, 6\) .* instead of \(4, 5, 7\)"),
        (Grid(SHAPE, (5.0, 0.75, 1.26), GRID.origin, OBLIQUE), r"spacing .*1\.26"),
        (Grid(SHAPE, GRID.spacing, (-120.5, 33.25, 780.2), OBLIQUE), r"origin .*780\.2"),
        (Grid(SHAPE, GRID.spacing, GRID.origin, LEFT_HANDED), "direction"),
    ],
)
def test_names_the_difference_of_two_grids(other: Grid, named: str) -> None:
    assert re.match(named, GRID.difference(other))


def test_ignores_differences_by_rounding() -> None:
    rounded = Grid(SHAPE, (5.0, 0.7500001, 1.25), (-120.5001, 33.25, 780.125), direction(np.round(OBLIQUE, 5)))
    assert GRID.difference(rounded) == ""


def test_refuses_an_array_of_another_shape_than_the_grid() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) does not fit a grid of shape \(4, 5, 7\)"):
        Volume(np.zeros((1, 2, 3)), GRID)


@pytest.mark.fault(
    "inputs", "a few voxels of a {suffix} are {value}", "the volume with these voxels set to its minimum, and an event"
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_replaces_a_few_non_finite_voxels_by_the_minimum(tmp_path: Path, suffix: str, value: float) -> None:
    array = np.linspace(-7, 50, 1000).reshape(10, 10, 10)
    array[2, 3, 4] = array[9, 9, 9] = value
    write_volume(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))), tmp_path / f"a{suffix}")
    image, (event,) = read_image(tmp_path / f"a{suffix}")
    assert event.code == EventCode.NON_FINITE_VOXELS
    which = "NaN" if np.isnan(value) else "infinite or too large"
    assert event.message == f"2 {which} voxels (of 1000) were set to the smallest other value"
    assert image.array.dtype == np.float32
    assert image.array[2, 3, 4] == image.array[9, 9, 9] == image.array.min() == -7
    assert image.array[9, 9, 8] == np.float32(array[9, 9, 8])


@pytest.mark.fault(
    "inputs",
    "{share} of the voxels of a {suffix} are NaN, around a region that was cut out",
    "the volume with these voxels set to its minimum, and an event that says how many",
)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("count", "share"), [(11, "1.1 %"), (500, "half"), (990, "99 %")])
def test_replaces_a_background_of_nan(tmp_path: Path, suffix: str, count: int, share: str) -> None:
    array = np.arange(1000.0, dtype=np.float32).reshape(10, 10, 10)
    array.flat[:count] = np.nan
    write_volume(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))), tmp_path / f"a{suffix}")
    image, (event,) = read_image(tmp_path / f"a{suffix}")
    assert event.message == f"{count} NaN voxels (of 1000) were set to the smallest other value"
    assert (image.array.flat[:count] == count).all()
    assert np.array_equal(image.array.flat[count:], array.flat[count:])


@pytest.mark.fault(
    "inputs", "{bad} of 1000 voxels of a {suffix} are {value}, the others not", "an error that says how many"
)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("bad", "value", "problem"),
    [
        (991, np.nan, "at most 99% NaN voxels, found 991 of 1000"),
        (1000, np.nan, "at most 99% NaN voxels, found 1000 of 1000"),
        (11, np.inf, "at most 1% of the voxels infinite or beyond 1e+15, found 11 of 1000; the file is truncated"),
        (11, -1e30, "at most 1% of the voxels infinite or beyond 1e+15, found 11 of 1000; the file is truncated"),
        (1000, np.inf, "at most 1% of the voxels infinite or beyond 1e+15, found 1000 of 1000"),
    ],
)
def test_refuses_too_many_voxels_without_a_usable_value(
    tmp_path: Path, suffix: str, bad: int, value: float, problem: str
) -> None:
    path, array = tmp_path / f"a{suffix}", np.arange(1000.0, dtype=np.float32).reshape(10, 10, 10)
    array.flat[:bad] = value
    write_volume(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))), path)
    with pytest.raises(InputError, match=re.escape(f"a{suffix}: expected {problem}")):
        read_image(path)


def test_says_how_many_voxels_are_nan_and_how_many_infinite(tmp_path: Path) -> None:
    array = np.arange(1000.0, dtype=np.float32).reshape(10, 10, 10)
    array.flat[:300], array.flat[300:304] = np.nan, (np.inf, -np.inf, 2e15, -1e20)
    write_volume(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))), tmp_path / "a.mha")
    image, (event,) = read_image(tmp_path / "a.mha")
    message = "300 NaN and 4 infinite or too large voxels (of 1000) were set to the smallest other value"
    assert event.message == message
    assert (image.array.flat[:305] == 304).all()
    array.flat[304:991] = np.nan
    write_volume(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))), tmp_path / "b.mha")
    expected = "expected at most 99% NaN, infinite or too large voxels, found 991 of 1000"
    with pytest.raises(InputError, match=re.escape(expected)):
        read_image(tmp_path / "b.mha")


@pytest.mark.fault("inputs", "every voxel has the same value", "the volume, and an event")
def test_reports_a_constant_image(tmp_path: Path) -> None:
    write_volume(Volume(np.full(SHAPE, 3, np.int16), GRID), tmp_path / "a.mha")
    image, events = read_image(tmp_path / "a.mha")
    assert (image.array == 3).all()
    assert events == (Event(EventCode.CONSTANT_IMAGE, "every voxel has the value 3"),)


@pytest.mark.fault("inputs", "a fourth axis of length 1", "the volume without it, and an event")
def test_drops_a_fourth_axis_of_length_one(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([to_itk(counting(GRID))]), str(tmp_path / "a.mha"))
    volume, events = read_image(tmp_path / "a.mha")
    assert np.array_equal(volume.array, counting(GRID).array)
    assert volume.grid.difference(GRID) == ""
    assert [event.code for event in events] == [EventCode.FOURTH_AXIS_DROPPED]


@pytest.mark.fault("inputs", "the labels of a {suffix} are decimals within 0.001 of whole numbers", "the whole numbers")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounds_labels_that_are_almost_whole_numbers(tmp_path: Path, suffix: str, dtype: type) -> None:
    array = np.zeros(SHAPE, dtype)
    array.flat[:5] = (1.000001, 0.9995, -1e-9, 2.0009, 1)
    write_volume(Volume(array, GRID), tmp_path / f"a{suffix}")
    labels = read_labels(tmp_path / f"a{suffix}").array
    assert labels.flat[:5].tolist() == [1, 1, 0, 2, 1]
    assert not labels.flat[5:].any()


@pytest.mark.fault("inputs", "a label of a {suffix} is {value}", "an error that names the value")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("value", [1.5, 1.002, np.nan, np.inf])
def test_refuses_labels_that_are_not_whole_numbers(tmp_path: Path, suffix: str, value: float) -> None:
    array = np.zeros(SHAPE, np.float64)
    array[1, 1, 1] = 2
    array[0, 0, 0] = value
    write_volume(Volume(array, GRID), tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match=rf"a{suffix}: expected whole numbers as labels, found the value {value}"):
        read_labels(tmp_path / f"a{suffix}")
