"""Where NIfTI files lie in space, as nibabel, SimpleITK and FSL see it; masks that lie where their inputs do; shear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import nibabel.processing
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from faults import refused
from pantherseg.events import Event, EventCode
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.io.itk import from_itk, to_itk
from pantherseg.volume import Grid, Volume, as_triple
from volume_files import GRID, VOXELS, compress_as_named, metaimage, nrrd, refusal, uncompressed

pytestmark = pytest.mark.usefixtures("quiet_itk")

LPS = np.array([-1.0, -1.0, 1.0])
MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
OBLIQUE = np.array([[0.6, -0.64, 0.48], [0.8, 0.48, -0.36], [0.0, 0.6, 0.8]])
AFFINE = np.eye(4)
AFFINE[:3] = np.column_stack([OBLIQUE * [1.5, 0.75, 5.0], [-120.5, 33.25, 780.125]])


def nifti(
    path: Path, array: NDArray[Any] = VOXELS, *, sform: Any = None, qform: Any = None, unit: str = "mm", **fields: Any
) -> Path:
    """Write an array (z, y, x) with forms (RAS, in `unit`) that are set or not, and other fields of the header."""
    image = nibabel.Nifti1Image(array.transpose(), None)
    header = image.header
    header.set_xyzt_units(unit)
    header.set_qform(qform, code=0 if qform is None else 1)
    header.set_sform(sform, code=0 if sform is None else 2)
    if qform is None and sform is not None:
        header["pixdim"][1:4] = np.linalg.norm(np.array(sform)[:3, :3], axis=0)
    for name, value in fields.items():
        header[name][...] = value
    content = header.copy()
    content["vox_offset"], content["magic"] = 352, b"n+1"
    content["datatype"], content["bitpix"] = nibabel.nifti1.data_type_codes[array.dtype], array.dtype.itemsize * 8
    content["scl_slope"], content["scl_inter"] = 1, 0
    content["dim"] = [3, *array.shape[::-1], 1, 1, 1, 1]
    return compress_as_named(path, content.binaryblock + bytes(4) + array.tobytes())


def pixdim(*lengths: float, qfac: float = 1) -> list[float]:
    return [qfac, *lengths, 0, 0, 0, 0]


def affine_of(grid: Grid) -> NDArray[np.float64]:
    """Return the matrix from voxels (x, y, z) to RAS in mm."""
    affine = np.eye(4)
    affine[:3, :3] = LPS[:, None] * grid.direction * grid.spacing[::-1]
    affine[:3, 3] = LPS * grid.origin
    return affine


def close(affine: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    return np.allclose(affine, expected, rtol=0, atol=1e-3)


def codes(events: tuple[Event, ...]) -> list[EventCode]:
    return [event.code for event in events]


def in_mm(path: Path, index: NDArray[np.float64], scale: float = 1.0) -> list[NDArray[np.float64] | None]:
    """Return the position of a voxel index (x, y, z) as nibabel, SimpleITK and this library see it, RAS in mm.

    scale: mm in the unit of the header, which nibabel leaves alone. None where SimpleITK cannot read the file.
    """
    by_nibabel = nibabel.affines.apply_affine(nibabel.load(path).affine, index) * scale
    by_itk: NDArray[np.float64] | None
    try:
        by_itk = LPS * sitk.ReadImage(str(path)).TransformContinuousIndexToPhysicalPoint(index.tolist())
    except RuntimeError:
        by_itk = None
    return [by_nibabel, by_itk, nibabel.affines.apply_affine(affine_of(read_labels(path).grid), index)]


def itk_tolerance_mm(path: Path, index: NDArray[np.float64], scale: float) -> float:
    """Return how far the position of a voxel index (x, y, z) by SimpleITK may be from nibabel's; scale as in `in_mm`.

    A header stores b, c and d of a quaternion, and a² = 1 - b² - c² - d² is lost in their rounding where the rotation
    is by nearly 180 degrees: ITK takes an a² below 1e-7 as 0, and nibabel does not. They then differ by up to 1e-3 rad.
    """
    header = nibabel.load(path).header
    squared = 1 - sum(float(header[f"quatern_{name}"]) ** 2 for name in "bcd")
    distance = float(np.linalg.norm(index * header.get_zooms()[:3])) * scale
    return 1e-3 + (1e-3 * distance if squared < 1e-6 else 0)


def random_affine(seed: int, shear: float) -> NDArray[np.float64]:
    """Return a matrix (RAS, mm): any of the 48 voxel orders, oblique for half of the seeds, with one axis sheared."""
    rng = np.random.default_rng(seed)
    direction = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    if rng.integers(2):
        direction = direction @ Rotation.random(rng=seed).as_matrix()
    sheared = np.eye(3)
    column, row = rng.permutation(3)[:2]
    sheared[row, column] = shear
    affine = np.eye(4)
    affine[:3, :3] = direction @ (sheared / np.linalg.norm(sheared, axis=0)) * rng.uniform(0.3, 6, 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    return affine


@pytest.mark.slow
@pytest.mark.fault(
    "inputs",
    "a NIfTI of any orientation, handedness, slight shear and unit, with a qform, an sform or both",
    "a mask at the place of the input by nibabel, by SimpleITK and by this library, which agree",
)
@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.0, 5e-5, 5e-4, 2e-3, 0.015]),
    st.sampled_from(["qform", "sform", "both"]),
    st.sampled_from(sorted(MM)),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_input_and_mask_lie_at_the_same_place_for_every_reader(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shear: float, forms: str, unit: str, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    affine = random_affine(seed, shear)
    affine[:3] /= MM[unit]
    rng = np.random.default_rng(seed)
    array = np.zeros(rng.integers(4, 13, 3), np.uint8)
    start = np.array([rng.integers(0, side - 2) for side in array.shape])
    array[tuple(slice(a, a + 3) for a in start)] = rng.integers(1, 9, (3, 3, 3))
    chosen = {form: affine for form in ("qform", "sform") if forms in (form, "both")}
    source = nifti(folder / f"a{suffix}", array, unit=unit, **chosen)
    volume = read_labels(source)
    mask = folder / f"mask{suffix}"
    write_volume(Volume(volume.array, volume.grid), mask, like=source)
    centroids, tolerance = [], 0.0
    for path in (source, mask):
        voxels = np.asarray(nibabel.load(path).dataobj).astype(float)
        assert np.array_equal(voxels, array.transpose())
        index = np.array(np.nonzero(voxels)) @ voxels[voxels > 0] / voxels.sum()
        centroids.append(in_mm(path, index, MM[unit]))
        tolerance = itk_tolerance_mm(path, index, MM[unit])
    for of_input, of_mask in zip(*centroids, strict=True):
        assert (of_input is None) == (of_mask is None)
        assert of_input is None or close(of_input, of_mask)
    by_nibabel, by_itk, ours = centroids[0]
    if shear == 0 or forms == "qform":  # a qform has no shear
        assert close(ours, by_nibabel)
        assert by_itk is not None
        assert np.allclose(ours, by_itk, rtol=0, atol=tolerance)
    assert read_labels(mask).grid == volume.grid


@pytest.mark.slow
def test_the_property_test_covers_all_voxel_orders_in_both_hands() -> None:
    orders = {nibabel.aff2axcodes(random_affine(seed, 0)) for seed in range(2000)}
    assert len(orders) == 48


@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize("flip", [1, -1])
def test_reads_one_form_as_nibabel_and_simpleitk_do(tmp_path: Path, form: str, flip: int) -> None:
    affine = AFFINE @ np.diag([1, flip, 1, 1])
    path = nifti(tmp_path / "a.nii", **{form: affine})
    volume, events = read_image(path)
    assert events == ()
    assert close(affine_of(volume.grid), affine)
    assert close(affine_of(volume.grid), nibabel.load(path).affine)
    assert from_itk(sitk.ReadImage(str(path))).grid.difference(volume.grid) == ""


@pytest.mark.fault(
    "inputs",
    "qform and sform of a NIfTI differ",
    "the volume by the sform, as in nibabel and FSL, and an event with the distance in mm",
)
def test_takes_the_sform_where_the_qform_differs(tmp_path: Path) -> None:
    other = AFFINE.copy()
    other[:3, 3] += [0, 3, 4]
    path = nifti(tmp_path / "a.nii", sform=AFFINE, qform=other)
    volume, events = read_image(path)
    assert close(affine_of(volume.grid), AFFINE)
    assert close(nibabel.load(path).affine, AFFINE)
    message = "qform and sform differ by up to 5 mm; the sform was used, as in nibabel and FSL"
    assert events == (Event(EventCode.QFORM_CONTRADICTS_SFORM, message),)


def test_names_a_difference_that_only_a_far_corner_shows(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 101), np.uint8)
    array[0, 0, 0] = 1
    for degrees, expected in ((0.03, []), (0.1, [EventCode.QFORM_CONTRADICTS_SFORM])):
        turned = AFFINE.copy()
        turned[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ AFFINE[:3, :3]
        assert codes(read_image(nifti(tmp_path / "a.nii", array, sform=AFFINE, qform=turned))[1]) == expected


@pytest.mark.fault(
    "inputs",
    "neither the qform nor the sform of a NIfTI is set",
    "the volume as FSL and nibabel assume it to lie, and an event",
)
def test_assumes_what_nibabel_and_fsl_assume_without_a_form(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", pixdim=pixdim(1.5, 0.75, 5))
    volume, events = read_image(path)
    expected = [[-1.5, 0, 0, 3], [0, 0.75, 0, -1.125], [0, 0, 5, -5], [0, 0, 0, 1]]
    assert close(affine_of(volume.grid), np.array(expected))
    assert close(nibabel.load(path).affine, np.array(expected))
    assert codes(events) == [EventCode.GEOMETRY_ASSUMED]
    assert events[0].message.startswith("neither qform nor sform is set; the voxels are assumed to run from right to")


@pytest.mark.fault(
    "inputs",
    "the spacing of a NIfTI is 1 1 1 mm by pixdim and 2.8 mm by the sform",
    "the volume with the sform's spacing, and an event that states both",
)
def test_takes_the_spacing_of_the_sform_where_pixdim_differs(tmp_path: Path) -> None:
    affine = np.diag([-2.8, -2.8, 3.0, 1])
    path = nifti(tmp_path / "a.nii", sform=affine, pixdim=pixdim(1, 1, 1))
    volume, events = read_image(path)
    assert np.allclose(volume.grid.spacing, (3.0, 2.8, 2.8))
    message = "pixdim states a spacing of 1 1 1 mm (x, y, z), the sform 2.8 2.8 3 mm; the sform was used"
    assert events == (Event(EventCode.PIXDIM_CONTRADICTS_SFORM, message),)
    _, events = read_image(nifti(path, sform=affine, pixdim=pixdim(2.79, 2.81, 3.01)))
    assert events == (), "numbers with few digits are no contradiction"
    for missing in (0, np.nan):
        volume, events = read_image(nifti(path, sform=affine, pixdim=pixdim(missing, 2.8, 3)))
        assert np.allclose(volume.grid.spacing, (3.0, 2.8, 2.8))
        assert codes(events) == [EventCode.PIXDIM_CONTRADICTS_SFORM]


@pytest.mark.fault("inputs", "a spacing of a NIfTI is negative", "the volume with its magnitude, as in nibabel")
@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ({"sform": AFFINE}, []),
        ({"qform": AFFINE}, [EventCode.NEGATIVE_SPACING]),
        ({"sform": AFFINE, "qform": AFFINE}, []),
        ({}, [EventCode.GEOMETRY_ASSUMED, EventCode.NEGATIVE_SPACING]),
    ],
)
def test_takes_the_magnitude_of_a_negative_spacing(
    tmp_path: Path, forms: dict[str, Any], expected: list[EventCode]
) -> None:
    path = nifti(tmp_path / "a.nii", **forms, pixdim=pixdim(-1.5, 0.75, -5))
    volume, events = read_image(path)
    assert codes(events) == expected
    assert np.allclose(volume.grid.spacing, (5, 0.75, 1.5))
    assert close(affine_of(volume.grid), nibabel.load(path).affine)
    assert not forms or close(affine_of(volume.grid), AFFINE)


@pytest.mark.parametrize("qfac", [0.0, 2.0, np.nan])
def test_reads_any_qfac_as_nibabel_does(tmp_path: Path, qfac: float) -> None:
    path = nifti(tmp_path / "a.nii", qform=AFFINE, pixdim=pixdim(1.5, 0.75, 5, qfac=qfac))
    assert close(affine_of(read_labels(path).grid), nibabel.load(path).affine)
    assert close(nibabel.load(path).affine, AFFINE)


@pytest.mark.fault("inputs", "a NIfTI gives lengths in {unit}", "the volume in mm, and an event")
@pytest.mark.parametrize(("unit", "name"), [("micron", "microns"), ("meter", "metres")])
@pytest.mark.parametrize("forms", [("sform",), ("qform",), ("sform", "qform"), ()])
def test_converts_other_units_to_mm(tmp_path: Path, unit: str, name: str, forms: tuple[str, ...]) -> None:
    scaled = AFFINE / MM[unit]
    path = nifti(
        tmp_path / "a.nii",
        unit=unit,
        **dict.fromkeys(forms, scaled),
        pixdim=pixdim(*(np.array([1.5, 0.75, 5]) / MM[unit])),
    )
    volume, events = read_image(path)
    event = Event(EventCode.CONVERTED_TO_MM, f"the header gives lengths in {name}; they were converted to mm")
    assert event in events
    assert len(events) == (1 if forms else 2)
    assert np.allclose(volume.grid.spacing, (5, 0.75, 1.5))
    if forms:
        assert close(affine_of(volume.grid), AFFINE)
        assert from_itk(sitk.ReadImage(str(path))).grid.difference(volume.grid) == "", "ITK converts too"


@refused("a NIfTI with a spacing in mm says that it is in metres")
def test_names_the_unit_where_the_spacing_is_impossible(tmp_path: Path) -> None:
    text = refusal(nifti(tmp_path / "a.nii", qform=AFFINE, unit="meter"))
    assert text == (
        "expected a spacing between 0.001 and 1000 mm, found 1500 750 5000; its header gives lengths in metres"
    )


@pytest.mark.parametrize(
    ("forms", "fields", "expected"),
    [
        (["qform"], {"pixdim": pixdim(1, 0, 1)}, "a spacing between 0.001 and 1000 mm, found 1 0 1"),
        (["qform"], {"pixdim": pixdim(1, 1, np.nan)}, "a spacing between 0.001 and 1000 mm, found 1 1 nan"),
        ([], {"pixdim": pixdim(np.inf, 1, 1)}, "a spacing between 0.001 and 1000 mm, found inf 1 1"),
        (["sform"], {"srow_x": 0, "srow_y": 0}, "a spacing between 0.001 and 1000 mm, found 0 0.45 4"),
        (["sform"], {"srow_x": [np.nan, 1, 1, 0]}, "a spacing between 0.001 and 1000 mm, found nan"),
        (["sform"], {"srow_z": [3e38, 1, 1, 0]}, "a spacing between 0.001 and 1000 mm, found 3e+38"),
        (["qform"], {"qoffset_y": np.inf}, "an origin within 1e+06 mm of zero, found"),
        (["qform"], {"quatern_b": np.nan}, "expected a unit quaternion as qform, found nan"),
        (["qform"], {"quatern_b": 1, "quatern_c": 1}, "expected a unit quaternion as qform, found 1 1 "),
        (["sform"], {"srow_x": [1, 0, 0, 0], "srow_y": [1, 0, 1, 0], "srow_z": [0, 0, 1, 0]}, "found 1.41421 0 1"),
        (["sform"], {"srow_x": [1, 1, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}, "45 degrees off"),
        (["sform"], {"srow_x": [1, 1, 0, 0], "srow_y": [0, 0, 1, 0], "srow_z": [0, 0, 1, 0]}, "90 degrees off"),
    ],
)
def test_refuses_an_invalid_geometry(tmp_path: Path, forms: list[str], fields: dict[str, Any], expected: str) -> None:
    text = refusal(nifti(tmp_path / "a.nii", **dict.fromkeys(forms, AFFINE), **fields))
    assert expected in text


def test_an_unused_damaged_qform_is_an_event(tmp_path: Path) -> None:
    for fields in ({"quatern_b": np.nan}, {"quatern_b": 3e38}, {"quatern_b": 1, "quatern_c": 1}, {"qoffset_x": np.nan}):
        volume, events = read_image(nifti(tmp_path / "a.nii", sform=AFFINE, qform=AFFINE, **fields))
        assert close(affine_of(volume.grid), AFFINE)
        message = "the qform is damaged; the sform was used, as in nibabel and FSL"
        assert events == (Event(EventCode.QFORM_CONTRADICTS_SFORM, message),)


def sheared(shear: float) -> NDArray[np.float64]:
    """Return direction cosines (LPS) with the second axis leaning towards the first."""
    matrix = np.array([[1, shear, 0], [0, np.sqrt(1 - shear**2), 0], [0, 0, 1]])
    return np.array(OBLIQUE @ matrix)


def with_direction(path: Path, direction: NDArray[np.float64]) -> Path:
    """Write VOXELS with a spacing of 1, 1 and 2 mm and direction cosines (LPS) in the format of the suffix."""
    if path.suffix == ".mha":
        return metaimage(path, changes={"TransformMatrix": " ".join(f"{n!r}" for n in direction.T.ravel().tolist())})
    if path.suffix == ".nrrd":
        axes = (direction * [1, 1, 2]).T.tolist()
        text = " ".join(f"({','.join(map(repr, axis))})" for axis in axes)
        return nrrd(path, b"(1,0,0) (0,1,0) (0,0,2)", text.encode())
    affine = np.eye(4)
    affine[:3, :3] = LPS[:, None] * direction * [1, 1, 2]
    return nifti(path, sform=affine)


FORMATS = [".mha", ".nrrd", ".nii"]


@pytest.mark.fault(
    "inputs",
    "the axes of a {suffix} are slightly off right angles",
    "the volume with the nearest orthogonal axes, and an event that says by how much",
)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize(("shear", "degrees"), [(5e-4, "0.029"), (2e-3, "0.11"), (4.9e-3, "0.28"), (0.017, "0.97")])
def test_corrects_slightly_sheared_axes(tmp_path: Path, suffix: str, flip: int, shear: float, degrees: str) -> None:
    direction = sheared(shear) * [1, 1, flip]
    volume, events = read_image(with_direction(tmp_path / f"a{suffix}", direction))
    assert np.array_equal(volume.array, VOXELS)
    corrected = np.array(volume.grid.direction)
    assert np.allclose(corrected.T @ corrected, np.eye(3), rtol=0, atol=1e-9)
    assert np.allclose(corrected, direction, rtol=0, atol=shear)
    # The error is shared by both axes.
    angles = np.degrees(np.arccos(np.sum(corrected * direction, axis=0)[:2]))
    assert np.allclose(angles, float(degrees) / 2, rtol=0.05)
    assert np.sign(np.linalg.det(corrected)) == flip
    assert np.allclose(volume.grid.spacing, (2, 1, 1))
    assert codes(events) == [EventCode.DIRECTION_CORRECTED]
    assert f"the axes are {degrees} degrees off right angles" in events[0].message


@pytest.mark.parametrize("suffix", FORMATS)
def test_keeps_directions_that_are_as_exact_as_float32(tmp_path: Path, suffix: str) -> None:
    direction = sheared(5e-5)
    volume, events = read_image(with_direction(tmp_path / f"a{suffix}", direction))
    assert np.allclose(volume.grid.direction, direction, rtol=0, atol=1e-6)
    assert events == ()


def test_reads_direction_cosines_of_two_digits(tmp_path: Path) -> None:
    exact = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    for suffix in FORMATS:
        volume, events = read_image(with_direction(tmp_path / f"a{suffix}", np.round(exact, 2)))
        assert np.allclose(volume.grid.direction, exact, rtol=0, atol=2e-3)
        # In the other formats, the lengths of the vectors are the spacing.
        assert codes(events) == ([EventCode.DIRECTION_CORRECTED] if suffix == ".mha" else [])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.slow
def test_reads_random_rotations_with_two_digits(tmp_path: Path, suffix: str) -> None:
    for seed in range(200):
        exact = Rotation.random(rng=seed).as_matrix()
        volume = read_labels(with_direction(tmp_path / f"a{suffix}", np.round(exact, 2)))
        assert np.allclose(volume.grid.direction, exact, rtol=0, atol=0.01)


@pytest.mark.fault(
    "inputs", "the axes of a {suffix} are sheared by 11 degrees", "an error that says how to resample the volume"
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_refuses_sheared_axes_and_names_a_call_that_resamples(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_direction(tmp_path / f"scan{suffix}", sheared(0.2))
    text = refusal(path)
    assert text.startswith(
        "the axes of the volume are not at right angles (12 degrees off); resample it, for example in "
    )
    if suffix == ".nii":
        packed = nibabel.load(path)
        packed.to_filename(tmp_path / "scan.nii.gz")
        monkeypatch.chdir(tmp_path)
        eval(text.partition("Python: ")[2], {"nibabel": nibabel})
        resampled = tmp_path / "resampled.nii.gz"
    else:
        image = sitk.ReadImage(str(path), sitk.sitkFloat64)
        resampled = tmp_path / f"resampled{suffix}"
        sitk.WriteImage(eval(text.partition("Python: ")[2], {"SimpleITK": sitk, "image": image}), str(resampled))
    volume, events = read_image(resampled)
    assert events == ()
    # Every voxel of the sheared volume lies within the new one.
    corners = np.array(np.meshgrid([0, 4], [0, 3], [0, 2])).reshape(3, -1)
    places = sheared(0.2) * [1, 1, 2] @ corners
    index = np.linalg.solve(
        np.array(volume.grid.direction) * volume.grid.spacing[::-1], places - np.array(volume.grid.origin)[:, None]
    )
    assert (index > -1e-3).all()
    assert (index < np.array(volume.grid.shape[::-1])[:, None] - 1 + 1e-3).all()


FIELDS = """qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z srow_x srow_y srow_z
xyzt_units"""


@pytest.mark.parametrize(
    ("forms", "fields"),
    [
        (["qform"], {"qform_code": 3, "pixdim": pixdim(-1.5, 0.75, 5, qfac=-1)}),
        (["sform"], {"sform_code": 4, "xyzt_units": 10, "pixdim": pixdim(1, 1, 1, qfac=0)}),
        (["qform", "sform"], {"srow_x": [1, 0, 0, 7]}),
        ([], {"pixdim": pixdim(1.5, 0.75, 5)}),
        ([], {"srow_y": 4, "quatern_d": 7, "xyzt_units": 0, "pixdim": pixdim(1.5, 0.75, 5)}),
    ],
)
def test_a_mask_has_the_geometry_of_the_input_as_it_is_stored(
    tmp_path: Path, forms: list[str], fields: dict[str, Any]
) -> None:
    if "srow_x" in fields:  # a right angle again
        fields = {**fields, "srow_y": [0, 1, 0, 8], "srow_z": [0, 0, 1, 9]}
    source = nifti(tmp_path / "a.nii", **dict.fromkeys(forms, AFFINE), **fields)
    volume, _ = read_image(source)
    mask = tmp_path / "mask.nii.gz"
    write_volume(Volume((volume.array > 30).astype(np.uint8), volume.grid), mask, like=source)
    stored, kept = (nibabel.Nifti1Header(uncompressed(path)[:348], check=False) for path in (source, mask))
    for name in FIELDS.split():
        assert np.array_equal(stored[name], kept[name]), name
    assert np.array_equal(stored["pixdim"][:4], kept["pixdim"][:4])
    assert (kept.get_data_dtype(), kept["scl_slope"], kept["scl_inter"]) == (np.uint8, 1, 0)
    assert np.array_equal(nibabel.load(mask).affine, nibabel.load(source).affine)
    assert read_labels(mask).grid == volume.grid
    assert from_itk(sitk.ReadImage(str(mask))).grid == from_itk(sitk.ReadImage(str(source))).grid


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_mask_keeps_the_stored_direction_where_it_was_corrected(tmp_path: Path, suffix: str) -> None:
    source = with_direction(tmp_path / f"a{suffix}", sheared(2e-3))
    volume, _ = read_image(source)
    write_volume(volume, tmp_path / f"mask{suffix}", like=source)
    stored, kept = (sitk.ReadImage(str(path)) for path in (source, tmp_path / f"mask{suffix}"))
    assert np.allclose(kept.GetDirection(), stored.GetDirection(), rtol=0, atol=1e-15)
    assert (kept.GetSpacing(), kept.GetOrigin()) == (stored.GetSpacing(), stored.GetOrigin())
    assert read_labels(tmp_path / f"mask{suffix}").grid.difference(volume.grid) == ""


@pytest.mark.fault(
    "outputs", "the input is gone or replaced by another when its mask is written", "a mask at the place that was read"
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mask_gets_the_grid_of_the_volume_where_the_input_is_gone(tmp_path: Path, suffix: str) -> None:
    grid = Grid((3, 4, 5), (2.0, 1.0, 1.0), (1.0, 2.0, 3.0), tuple(map(as_triple, OBLIQUE)))  # type: ignore[arg-type]
    mask = tmp_path / f"mask{suffix}"
    other = tmp_path / f"other{suffix}"
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(b"damaged")
    write_volume(Volume(np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), (1.0, 1.0, 1.0))), other)
    elsewhere = tmp_path / f"elsewhere{suffix}"
    write_volume(Volume(VOXELS, replace(grid, origin=(1.0, 2.0, 9.0))), elsewhere)
    missing, other_format = tmp_path / f"missing{suffix}", metaimage(tmp_path / "a.mhd")
    for like in (None, missing, tmp_path, damaged, other, elsewhere, other_format):
        write_volume(Volume(VOXELS, grid), mask, like=like)
        assert read_labels(mask).grid.difference(grid) == "", like


def test_a_mask_without_an_input_gets_both_forms(tmp_path: Path) -> None:
    for seed in range(48):
        affine = random_affine(seed, 0)
        by_itk = to_itk(Volume(VOXELS, GRID))
        directions = LPS[:, None] * affine[:3, :3]
        by_itk.SetSpacing(np.linalg.norm(directions, axis=0).tolist())
        by_itk.SetDirection((directions / np.linalg.norm(directions, axis=0)).ravel().tolist())
        by_itk.SetOrigin((LPS * affine[:3, 3]).tolist())
        volume = from_itk(by_itk)
        write_volume(volume, tmp_path / "a.nii")
        header = nibabel.load(tmp_path / "a.nii").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
        assert header.get_xyzt_units()[0] == "mm"
        assert close(header.get_qform(), affine)
        assert close(header.get_sform(), affine)
        assert from_itk(sitk.ReadImage(str(tmp_path / "a.nii"))).grid.difference(volume.grid) == ""
        read, events = read_image(tmp_path / "a.nii")
        assert read.grid.difference(volume.grid) == ""
        assert events == ()
