"""Orientations, and turns between them."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pantherseg.io.itk import from_itk, to_itk
from pantherseg.orientation import ORIENTATIONS, Turn, nearest_orientation
from pantherseg.volume import Box, Grid, Volume

codes = st.sampled_from(ORIENTATIONS)


def oblique(degrees: float = 20.0) -> Volume:
    """A volume (z, y, x) of 2 x 3 x 4 different voxels, rotated away from the patient's axes."""
    matrix = Rotation.from_rotvec(np.array([0.5, -0.3, 0.8]) * degrees, degrees=True).as_matrix()
    rows = tuple(map(tuple, matrix.tolist()))
    grid = Grid((2, 3, 4), (4.0, 1.5, 1.25), (-20.0, 30.0, 7.5), rows)  # type: ignore[arg-type]
    return Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), grid)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48
    assert ORIENTATIONS[0] == "LPS"


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_turns_an_oblique_volume_as_simpleitk_does(code: str) -> None:
    volume = oblique()
    expected = sitk.DICOMOrient(to_itk(volume), code)
    turned = volume.turned_to(code)
    np.testing.assert_array_equal(turned.array, sitk.GetArrayFromImage(expected))
    assert not turned.grid.difference(from_itk(expected).grid)
    assert turned.grid.orientation == code


@given(codes, codes)
def test_a_turn_and_its_inverse_change_nothing(start: str, end: str) -> None:
    turn = Turn.between(start, end)
    assert turn.inverse == Turn.between(end, start)
    volume = oblique().turned_to(start)
    back = volume.turned(turn).turned(turn.inverse)
    np.testing.assert_array_equal(back.array, volume.array)
    assert not back.grid.difference(volume.grid)


@pytest.mark.parametrize("code", ["ras", "RRR", "", "LP"])
def test_refuses_an_unknown_orientation(code: str) -> None:
    with pytest.raises(ValueError, match=f"expected an orientation such as LPS, found '{code}'"):
        oblique().turned_to(code)  # type: ignore[arg-type]


def test_a_volume_that_already_lies_so_is_returned_unchanged() -> None:
    volume = oblique()
    assert volume.turned_to("LPS") is volume


@given(codes, codes)
def test_a_box_turns_with_its_voxels(start: str, end: str) -> None:
    volume = oblique().turned_to(start)
    turn = volume.grid.turn_to(end)
    mask = np.zeros(volume.grid.shape, bool)
    box = Box((0, 1, 1), tuple(np.subtract(volume.grid.shape, (1, 0, 0)).tolist()))
    mask[box.slices] = True
    assert Box.around(turn.view(mask)) == box.turned(turn, volume.grid.shape)


@given(st.floats(-180, 180), st.floats(-180, 180), st.floats(-180, 180))
def test_an_oblique_direction_goes_to_the_axes_that_nibabel_and_itk_name(a: float, b: float, c: float) -> None:
    matrix = Rotation.from_euler("xyz", (a, b, c), degrees=True).as_matrix()
    components = np.sort(np.abs(matrix).ravel())
    assume(np.diff(components).min() > 1e-3)  # no two axes are about equally near
    itk = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(matrix.ravel().tolist())
    assert nearest_orientation(matrix) == itk
    affine = np.diag([-1, -1, 1, 1.0]) @ np.block([[matrix, np.zeros((3, 1))], [np.zeros((1, 3)), 1]])
    assert nearest_orientation(matrix) == "".join(nibabel.aff2axcodes(affine))


@given(st.sampled_from([45.0, 135.0, -45.0]), st.integers(0, 2), codes)
def test_axes_that_are_equally_near_are_chosen_alike_in_each_voxel_order(degrees: float, axis: int, code: str) -> None:
    matrix = Rotation.from_rotvec(np.eye(3)[axis] * degrees, degrees=True).as_matrix()
    rows = tuple(map(tuple, matrix.tolist()))
    volume = Volume(oblique().array, Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), rows))  # type: ignore[arg-type]
    other = volume.turned(Turn.between("LPS", code))
    np.testing.assert_array_equal(other.turned_to("LPS").array, volume.turned_to("LPS").array)


def test_every_permutation_with_flips_is_one_orientation() -> None:
    found = set()
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        found.add(nearest_orientation(np.eye(3)[:, order] * signs))
    assert found == set(ORIENTATIONS)
