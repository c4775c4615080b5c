"""Contours of masks along the edges of voxels, as paths of SVG and as polygons with keyholes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg.contours import Point, polygons
from pantherseg.report.contours import contour_path


def filled(path: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return what a path of M, H, V and Z encloses by the even-odd rule: voxels right of an odd number of its edges."""
    inside = np.zeros(shape, bool)
    for contour in path.split("Z")[:-1]:
        column, row = map(int, re.findall(r"\d+", contour)[:2])
        for command, number in [*re.findall(r"([HV])(\d+)", contour), ("V", str(row))]:
            if command == "H":
                column = int(number)
            else:
                low, high = sorted((row, int(number)))
                inside[low:high, column:] ^= True
                row = int(number)
    return inside


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=7)))
@settings(deadline=None)
def test_a_contour_encloses_exactly_its_mask(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(filled(contour_path(mask), mask.shape), mask)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (4, 3)])
def test_a_rectangle_has_four_corners(rows: int, columns: int) -> None:
    mask = np.pad(np.ones((rows, columns), bool), 2)
    assert contour_path(mask) == f"M2 2H{2 + columns}V{2 + rows}H2Z"


def test_an_empty_mask_has_no_contour() -> None:
    assert contour_path(np.zeros((4, 5), bool)) == ""


@pytest.mark.parametrize(
    ("rows", "contours"), [(["#.", ".#"], 2), ([".#", "#."], 2), (["###", "#.#", "###"], 2), (["##", "##"], 1)]
)
def test_voxels_that_touch_at_a_corner_and_holes_have_their_own_contours(rows: list[str], contours: int) -> None:
    mask = np.array([[character == "#" for character in row] for row in rows])
    assert contour_path(mask).count("Z") == contours


def winding(polygon: list[Point], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return how often a polygon runs around the middle of each voxel, counted along the line to its left."""
    turns = np.zeros(shape, np.int64)
    for (row, column), (next_row, next_column) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        assert (row == next_row) != (column == next_column), "an edge along voxels, of some length"
        low, high = sorted((row, next_row))
        turns[low:high, column:] += 1 if next_row < row else -1
    return turns


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(deadline=None)
def test_polygons_enclose_each_component_once_and_no_hole(mask: NDArray[np.bool_]) -> None:
    components, count = ndimage.label(mask)
    found = polygons(mask)
    assert len(found) == count
    for polygon in found:
        turns = winding(polygon, mask.shape)
        (number,) = np.unique(components[turns != 0])
        assert np.array_equal(turns, (components == number).astype(int))


def test_a_component_in_the_hole_of_another_is_a_polygon_of_its_own() -> None:
    mask = np.ones((7, 9), bool)
    mask[1:6, 1:5] = mask[2:4, 6:8] = False
    mask[3, 3] = True
    ring, inner = polygons(mask)
    assert len(inner) == 4
    # Twice four corners of holes, of which the first is visited again, and twice both ends of a cut.
    assert len(ring) == 4 + 2 * (4 + 1) + 2 * 2
