"""NIfTI files: their voxels, sizes and headers as nibabel and SimpleITK read them, and masks as they are written."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from conftest import RealData, SmallDisk, run_python
from faults import refused
from pantherseg.errors import OutputError
from pantherseg.events import EventCode
from pantherseg.io import case_name, mask_name, read_image, read_labels, write_volume
from pantherseg.io.itk import from_itk
from pantherseg.io.nifti import NiftiReader
from pantherseg.volume import Grid, Volume
from volume_files import GRID, VOXELS, compress_as_named, metaimage, refusal, uncompressed

pytestmark = pytest.mark.usefixtures("quiet_itk")

READER = NiftiReader((".nii", ".nii.gz"))
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])  # of GRID
KINDS = {"NIfTI-1": nibabel.Nifti1Image, "NIfTI-2": nibabel.Nifti2Image}
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def image(array: NDArray[Any] = VOXELS, kind: str = "NIfTI-1", *, order: str = "<") -> Any:
    """Return an image of nibabel with an array (z, y, x) on GRID in a byte order."""
    made = KINDS[kind](array.transpose(), AFFINE, dtype=array.dtype)
    header = made.header.as_byteswapped(order)
    return KINDS[kind](array.transpose(), AFFINE, header)


def written(path: Path, array: NDArray[Any] = VOXELS, **fields: Any) -> Path:
    """Write an array (z, y, x) as a NIfTI-1 file with fields of the header changed, after which nothing is checked."""
    made = image(array)
    made.to_filename(path)
    content = uncompressed(path)
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return compress_as_named(path, header.binaryblock + content[348:])


@pytest.mark.slow
def test_reads_every_real_file_as_simpleitk_does(real_data: RealData) -> None:
    paths = sorted(real_data("").rglob("*.nii.gz"))
    assert paths
    for path in paths:
        volume, _ = read_image(path)
        expected = from_itk(sitk.ReadImage(str(path)))
        assert np.array_equal(volume.array, expected.array.astype(np.float32)), path
        assert volume.grid == expected.grid, path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_reads_every_type_in_both_byte_orders(tmp_path: Path, dtype: str, kind: str, order: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    image(array, kind, order=order).to_filename(tmp_path / "a.nii.gz")
    volume = read_labels(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.flags.c_contiguous
    assert np.array_equal(volume.array, array)
    assert volume.grid == GRID


@pytest.mark.fault("inputs", "a NIfTI-2 file", "the volume, and a mask that is NIfTI-2")
def test_reads_nifti_2_and_writes_its_mask_in_the_same_version(tmp_path: Path) -> None:
    image(kind="NIfTI-2").to_filename(tmp_path / "a.nii.gz")
    write_volume(Volume(VOXELS, GRID), tmp_path / "mask.nii.gz", like=tmp_path / "a.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nibabel.Nifti2Image)
    assert np.array_equal(np.asarray(mask.dataobj), VOXELS.transpose())
    assert np.array_equal(mask.affine, AFFINE)


@pytest.mark.parametrize("dtype", ["int16", "uint64", "float32", "float64"])
@pytest.mark.parametrize(
    ("slope", "inter"), [(1, 0), (1, -5), (2.5, 0), (-0.1, 1000), (0, 7), (np.nan, 7), (np.inf, 7)]
)
def test_scales_voxels_as_nibabel_does(tmp_path: Path, dtype: str, slope: float, inter: float) -> None:
    path = written(tmp_path / "a.nii", VOXELS.astype(dtype), scl_slope=slope, scl_inter=inter)
    array = READER.read(path)[0].array
    expected = np.asarray(nibabel.load(path).dataobj).transpose()
    assert np.array_equal(array, expected)
    assert array.dtype.kind == expected.dtype.kind


@refused("the intercept of a NIfTI's scaling is NaN")
def test_refuses_a_scaling_without_a_finite_intercept(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii", scl_slope=2, scl_inter=np.nan)
    assert refusal(path) == "expected a finite scl_inter, found nan"


def test_hands_over_nan_and_infinite_voxels_as_stored(tmp_path: Path) -> None:
    array = VOXELS.astype(np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    for scaling in ({}, {"scl_slope": 2.0, "scl_inter": 0.0}):
        read = READER.read(written(tmp_path / "a.nii.gz", array, **scaling))[0].array
        assert np.array_equal(read[0, 0, :3], array[0, 0, :3], equal_nan=True)


@refused("a NIfTI of the data type {name}")
@pytest.mark.parametrize(
    ("code", "name"), [(32, "complex64"), (1792, "complex128"), (128, "RGB"), (2304, "RGBA"), (1536, "float128")]
)
def test_refuses_other_numbers_by_name(tmp_path: Path, code: int, name: str) -> None:
    text = refusal(written(tmp_path / "a.nii", datatype=code))
    assert text.startswith(f"NIfTI with data type {code} ({name}) is not supported; convert it, for example with")


@pytest.mark.fault(
    "inputs", "a NIfTI of size x,y,z,1 or x,y,z,1,1, up to seven axes", "the volume of three axes, and an event"
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("more", [1, 2, 4])
def test_drops_further_axes_of_length_one(tmp_path: Path, suffix: str, more: int) -> None:
    path = tmp_path / f"a{suffix}"
    image(VOXELS[(None,) * more]).to_filename(path)
    assert nibabel.load(path).shape == (5, 4, 3) + (1,) * more
    volume, events = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID
    assert [event.code for event in events] == [EventCode.FOURTH_AXIS_DROPPED]
    ones = ", 1" * more
    assert f"size (5, 4, 3{ones}) (x, y, z, ...): the axes after the third" in events[0].message
    write_volume(volume, tmp_path / f"mask{suffix}", like=path)
    assert nibabel.load(tmp_path / f"mask{suffix}").shape == (5, 4, 3)


def test_drops_further_axes_of_length_one_in_a_metaimage(tmp_path: Path) -> None:
    changes = {"NDims": "5", "DimSize": "5 4 3 1 1", "ElementSpacing": "1 1 2 1 1", "Offset": "0 0 0 0 0"}
    path = metaimage(tmp_path / "a.mha", changes={**changes, "TransformMatrix": " ".join(map(str, np.eye(5).ravel()))})
    volume, events = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID
    assert [event.code for event in events] == [EventCode.FOURTH_AXIS_DROPPED]


@refused("a NIfTI with a second time point, or two values per voxel")
@pytest.mark.parametrize(("shape", "found"), [((2, 3, 4, 5), "4 dim"), ((2, 1, 3, 4, 5), "5 dim"), ((4, 5), "2 dim")])
def test_refuses_other_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...], found: str) -> None:
    image(np.zeros(shape, np.int16)).to_filename(tmp_path / "a.nii")
    text = refusal(tmp_path / "a.nii")
    assert text.startswith(f"expected a 3-D volume with one value per voxel, found {found}")


@pytest.mark.fault("inputs", "the header of a NIfTI has an extension of 200 KB", "the volume")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_reads_a_header_with_a_large_extension(tmp_path: Path, suffix: str) -> None:
    made = image()
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 200_000))
    made.to_filename(tmp_path / f"a{suffix}")
    assert nibabel.Nifti1Header(uncompressed(tmp_path / f"a{suffix}")[:348], check=False)["vox_offset"] > 200_000
    volume, events = read_image(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.array, VOXELS)
    assert events == ()


@refused("the voxels of a NIfTI are said to begin at the byte {offset}")
@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0.0, "expected voxels at an offset between 348 and 1073741824 bytes, found the offset 0"),
        (-400.0, "expected voxels at an offset between 348 and 1073741824 bytes, found the offset -400"),
        (100_000.0, "expected 100120 bytes of header and voxels, found 472 bytes"),
        (1e12, "expected voxels at an offset between 348 and 1073741824 bytes, found the offset 1e+12"),
    ],
)
def test_refuses_an_offset_outside_the_file(tmp_path: Path, offset: float, expected: str) -> None:
    for suffix in (".nii", ".nii.gz"):
        assert refusal(written(tmp_path / f"a{suffix}", vox_offset=offset)).startswith(expected)


@refused("two megabytes follow the voxels of a NIfTI")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_refuses_much_more_data_than_the_header_says(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    content = uncompressed(path)
    for more, refuses in ((1000, False), (2 << 20, True)):
        compress_as_named(path, content + bytes(more))
        if refuses:
            assert refusal(path).startswith("expected 472 bytes of header and voxels, found 1049049 bytes or more")
        else:
            assert np.array_equal(read_image(path)[0].array, VOXELS)


@pytest.mark.fault(
    "inputs", "an uncompressed NIfTI is called .nii.gz, or a compressed one .nii", "the volume; the mask fits its name"
)
@pytest.mark.parametrize(
    ("name", "packed"), [("a.nii.gz", False), ("a.nii", True), ("A.NII.GZ", True), ("A.Nii", False)]
)
def test_tells_a_compressed_file_by_its_content(tmp_path: Path, name: str, packed: bool) -> None:
    content = image().to_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if packed else content)
    volume, events = read_image(path)
    assert np.array_equal(volume.array, VOXELS)
    assert events == ()
    mask = tmp_path / "masks" / mask_name(path)
    assert mask.name == case_name(path) + name.lower()[1:]
    write_volume(volume, mask, like=path)
    assert (mask.read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")
    assert np.array_equal(np.asarray(nibabel.load(mask).dataobj), VOXELS.transpose())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_and_simpleitk_read_what_is_written(tmp_path: Path, suffix: str, dtype: str) -> None:
    grid = Grid(
        (3, 4, 5), (2.5, 0.7, 1.3), (-120.5, 33.25, 780.125), ((0.6, 0.0, 0.8), (0.8, 0.0, -0.6), (0.0, 1.0, 0.0))
    )
    path = tmp_path / f"a{suffix}"
    write_volume(Volume(VOXELS.astype(dtype), grid), path)
    by_itk = from_itk(sitk.ReadImage(str(path)))
    assert by_itk.array.dtype == np.dtype(dtype)
    assert np.array_equal(by_itk.array, VOXELS)
    assert by_itk.grid.difference(grid) == ""
    by_nibabel = nibabel.load(path)
    assert by_nibabel.get_data_dtype() == np.dtype(dtype)
    assert np.array_equal(np.asarray(by_nibabel.dataobj), VOXELS.transpose())
    assert read_labels(path).grid.difference(grid) == ""


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "another.nii.gz"):
        write_volume(Volume(VOXELS, GRID), tmp_path / name)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "another.nii.gz").read_bytes()
    assert content[3:8] == bytes(5), "no name, no time"


@pytest.mark.fault("outputs", "the disk is full when a {suffix} is written", "an error that says so, and no file")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_refuses_a_full_disk(small_disk: SmallDisk, suffix: str) -> None:
    disk = small_disk(1 << 20)
    free = os.statvfs(disk)
    (disk / "filled").write_bytes(bytes(free.f_bavail * free.f_bsize - 8192))
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8)
    with pytest.raises(OutputError, match="No space left on device"):
        write_volume(Volume(noise, Grid(noise.shape, (1.0, 1.0, 1.0))), disk / f"a{suffix}")
    assert [path.name for path in disk.iterdir()] == ["filled"]


def test_nibabel_is_imported_only_for_nifti(tmp_path: Path) -> None:
    read = f"import pantherseg, sys; pantherseg.read_volume({str(metaimage(tmp_path / 'a.mha'))!r})"
    done = run_python("-c", f"{read}; sys.exit('nibabel' in sys.modules or 'torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "nibabel" in sys.modules
