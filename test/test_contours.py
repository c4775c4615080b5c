"""Contours of masks as paths of SVG."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

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
