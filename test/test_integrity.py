"""Damaged and unsuitable image files: each is one line that names the file, what was expected and what was found."""

from __future__ import annotations

import gzip
import resource
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from conftest import one_line_about
from matrix import refused, saw
from pantherseg.errors import InputError
from pantherseg.io.itk import read_image, to_itk, write_volume
from pantherseg.volume import Grid, Volume

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
RAW = VOXELS.tobytes()
ZLIB = zlib.compress(RAW)
GRID = Grid((3, 4, 5), (2.0, 1.0, 1.0))
ADDRESS_SPACE = 8 << 30


@pytest.fixture(autouse=True)
def itk_keeps_quiet() -> Iterator[None]:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


def metaimage(
    path: Path,
    data: bytes = RAW,
    changes: Mapping[str, str | None] | None = None,
    *,
    separator: str = " = ",
    end: str = "\n",
    **more: str | None,
) -> Path:
    """A MetaImage of VOXELS with header fields changed, added, or left out (None)."""
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 2",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    }
    changed = {"ElementDataFile": "LOCAL", **(changes or {}), **more}
    header = fields | changed
    header["ElementDataFile"] = header.pop("ElementDataFile")  # the last one
    lines = "".join(f"{key}{separator}{value}{end}" for key, value in header.items() if value is not None)
    path.write_bytes(lines.encode() + data)
    return path


def compressed(path: Path, data: bytes = ZLIB, size: int | None = len(ZLIB), **more: str | None) -> Path:
    changes = {"CompressedData": "True", "CompressedDataSize": str(size) if size else None}
    return metaimage(path, data, {**changes, **more})


def nifti(path: Path, *patches: tuple[int, str, float | int | bytes]) -> Path:
    """A NIfTI of VOXELS with values of the header overwritten: offset, format, value."""
    plain = path.with_name("plain_for_patching.nii")
    sitk.WriteImage(to_itk(Volume(VOXELS, GRID)), str(plain))
    content = bytearray(plain.read_bytes())
    plain.unlink()
    for offset, layout, value in patches:
        struct.pack_into(layout, content, offset, value)
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def reason(path: Path) -> str:
    """Read a bad file and return what was expected and found, having checked the form of the error."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    text = one_line_about(path, caught.value)
    assert "(0x" not in text  # no addresses
    return text.removeprefix(f"{path}: ")


@pytest.mark.fault(
    "inputs", "the volume is missing, a folder, or an empty file", "an error that says which of them it is"
)
def test_no_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "missing.mha") == "expected a volume file, found no such file"
    folder = tmp_path / "folder.mha"
    folder.mkdir()
    assert reason(folder) == "expected a volume file, found a folder"
    for suffix in (".mha", ".nii", ".nii.gz", ".nrrd", ".mhd"):
        empty = tmp_path / f"empty{suffix}"
        empty.touch()
        assert reason(empty) == "expected a volume, found an empty file"


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    "content", [b"dear reader,\nthis is no volume\n", bytes(range(256)) * 8, b"a = b", b"\xff\n\n="]
)
def test_a_file_of_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(content)
    assert "found" in reason(path)


def test_the_untouched_files_are_read(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha"),
        compressed(tmp_path / "b.mha"),
        nifti(tmp_path / "c.nii"),
        nifti(tmp_path / "d.nii.gz"),
    ):
        volume, events = read_image(path)
        assert np.array_equal(volume.array, VOXELS)
        assert volume.grid.spacing == (2.0, 1.0, 1.0)
        assert events == ()


@pytest.mark.fault(
    "inputs", "the file ends early, with and without compression", "an error that says how many bytes are missing"
)
def test_truncated_metaimage(tmp_path: Path) -> None:
    assert "expected 120 bytes of voxels for a 5x4x3 volume, found 119" in reason(
        metaimage(tmp_path / "a.mha", RAW[:-1])
    )
    for missing in (1, 20, len(ZLIB) - 1):
        found = reason(compressed(tmp_path / "b.mha", ZLIB[:-missing]))
        assert f"{len(ZLIB)} bytes of compressed voxels, found {len(ZLIB) - missing};" in found
    # The header's own size fits what is left: only inflating tells.
    cut = ZLIB[:-20]
    assert "expected 120 bytes of voxels" in reason(compressed(tmp_path / "c.mha", cut, len(cut)))


@pytest.mark.fault(
    "inputs",
    "single bits of compressed voxels are flipped",
    "an error, also where ITK reads wrong voxels without a word",
)
def test_flipped_bits_in_compressed_voxels_that_itk_does_not_report(tmp_path: Path) -> None:
    silent = 0
    for place in range(2, len(ZLIB), 7):
        damaged = bytearray(ZLIB)
        damaged[place] ^= 0x10
        path = compressed(tmp_path / "a.mha", bytes(damaged))
        assert "the file is truncated or damaged" in reason(path)
        silent += sitk.ReadImage(str(path)).GetSize() == (5, 4, 3)
    assert silent  # else this check is not needed any more


@pytest.mark.parametrize("size", [None, 5])
def test_a_wrong_size_of_compressed_voxels_with_which_itk_reads_others(tmp_path: Path, size: int | None) -> None:
    path = compressed(tmp_path / "a.mha", size=size)
    assert not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS)
    assert ("CompressedDataSize in the header, found none" if size is None else "120 bytes") in reason(path)


@pytest.mark.parametrize("value", ["T", "true", "1"])
def test_every_way_to_say_compressed(tmp_path: Path, value: str) -> None:
    assert np.array_equal(read_image(compressed(tmp_path / "a.mha", CompressedData=value))[0].array, VOXELS)


def test_large_and_very_compressible_voxels(tmp_path: Path) -> None:
    write_volume(Volume(np.zeros((20, 300, 300), np.int16), Grid((20, 300, 300), (1.0, 1.0, 1.0))), tmp_path / "a.mha")
    volume, events = read_image(tmp_path / "a.mha")
    assert volume.array.shape == (20, 300, 300)
    assert [event.code for event in events] == ["constant_image"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("left", [10, 0.5, 0.8, -20])
def test_truncated_nifti_and_nrrd(tmp_path: Path, suffix: str, left: float) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(to_itk(Volume(VOXELS, GRID)), str(path), useCompression=suffix != ".nii")
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))] if 0 < left < 1 else content[: int(left)])
    assert reason(path)


@refused("the checksum of a .nii.gz does not fit")
def test_a_damaged_gzip_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the checksum
    path.write_bytes(content)
    assert "expected a complete gzip file, found CRC check failed" in reason(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((42, "<h", 500), "12352 bytes with the voxels, found 472"),
        ((42, "<h", 0), "at least one voxel, found size 0x4x3"),
        ((46, "<h", -3), "at least one voxel, found size 5x4x-3"),
        ((80, "<f", 0.0), "positive spacing in mm, found 0.0 1.0 2.0"),
        ((84, "<f", -1.0), "positive spacing in mm, found 1.0 -1.0 2.0"),
        ((88, "<f", float("nan")), "positive spacing in mm, found 1.0 1.0 nan"),
        ((40, "<h", 2), "a 3-D volume, found 2 dimensions"),
        ((40, "<h", 0), "1 to 7 axes, found 0"),
        ((70, "<h", 99), "a readable volume"),
        ((4, "4s", b"n+2\0"), "a NIfTI-1 file, found NIfTI-2"),
        ((108, "<f", 400.0), "520 bytes with the voxels, found 472"),
        ((108, "<f", float("inf")), "voxels at an offset between 348 and 65536, found inf"),
        ((292, "<f", float("nan")), "a finite origin, found (nan, 0.0, 0.0)"),
    ],
)
def test_nifti_headers(tmp_path: Path, name: str, patch: tuple[int, str, float], expected: str) -> None:
    assert expected in reason(nifti(tmp_path / name, patch))


@pytest.mark.fault(
    "inputs", "a NIfTI in the other byte order; then one byte short", "the same voxels; an error for the short one"
)
def test_big_endian_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    content = path.read_bytes()
    swapped = bytearray(content)
    fields = [(0, "i")] + [(n, "h") for n in (*range(40, 56, 2), 70, 72, 252, 254)]
    fields += [(n, "f") for n in (*range(76, 124, 4), *range(256, 328, 4))]
    for offset, kind in fields:
        struct.pack_into(f">{kind}", swapped, offset, *struct.unpack_from(f"<{kind}", content, offset))
    swapped[352:] = VOXELS.astype(">i2").tobytes()
    path.write_bytes(swapped)
    volume = read_image(path)[0].array
    assert np.array_equal(volume, VOXELS)
    saw(f"{np.count_nonzero(volume != VOXELS)} of {VOXELS.size} voxels differ")
    path.write_bytes(swapped[:-1])
    assert "472 bytes with the voxels, found 471" in reason(path)


@pytest.mark.fault(
    "inputs",
    "a .nii lies beside a .nii.gz of the same name, and ITK would read that one",
    "an error that names the other file",
)
def test_a_nifti_beside_which_itk_reads_another(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    other = tmp_path / "a.nii"
    sitk.WriteImage(to_itk(Volume(VOXELS + 100, GRID)), str(other))
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).min() == 100
    assert "no a.nii beside it, whose voxels ITK would read" in reason(path)
    assert read_image(other)[0].array.min() == 100
    other.unlink()
    assert np.array_equal(read_image(path)[0].array, VOXELS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"ElementDataFile": None},
            "a MetaImage header",
            marks=refused("the header does not say where the voxels are"),
        ),
        ({"DimSize": None}, "a complete MetaImage header"),
        ({"ElementType": None}, "a complete MetaImage header"),
        pytest.param(
            {"ElementType": "MET_FOO"},
            "a complete MetaImage header",
            marks=refused("the voxels are of no known type"),
        ),
        ({"DimSize": "5 4"}, "a complete MetaImage header"),
        ({"DimSize": "5 4 three"}, "a complete MetaImage header"),
        ({"DimSize": "5 4 -3"}, "a complete MetaImage header"),
        pytest.param(
            {"DimSize": "5 4 0"},
            "at least one voxel, found size 5x4x0",
            marks=refused("an axis has no voxels"),
        ),
        ({"ElementSpacing": "0 1 1"}, "positive spacing in mm, found 0 1 1"),
        pytest.param(
            {"ElementSpacing": "1 -1 1"},
            "positive spacing in mm, found 1 -1 1",
            marks=refused("a spacing is negative"),
        ),
        pytest.param(
            {"ElementSpacing": "1 1 nan"},
            "positive spacing in mm, found 1 1 nan",
            marks=refused("a spacing is not a number"),
        ),
        ({"ElementSpacing": "1 1 inf"}, "positive spacing in mm, found 1 1 inf"),
        ({"ElementSpacing": "1 1 wide"}, "positive spacing in mm, found 1 1 wide"),
        ({"ElementSpacing": "1 1"}, "3 spacings in mm, found 1 1"),
        ({"ElementSpacing": ""}, "3 spacings in mm, found none"),
        ({"ElementSpacing": None, "ElementSize": "1 1 -2"}, "positive spacing in mm, found 1 1 -2"),
        pytest.param(
            {"Offset": "nan 0 0"},
            "finite numbers as Offset, found nan 0 0",
            marks=refused("the origin is not a number"),
        ),
        ({"Offset": "0 0 inf"}, "finite numbers as Offset, found 0 0 inf"),
        ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "finite numbers as TransformMatrix, found nan 0 0"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "Bad direction, determinant is 0"),
        pytest.param(
            {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
            "Bad direction, determinant is 0",
            marks=refused("the directions of the axes are all zero"),
        ),
        pytest.param(
            {"TransformMatrix": "1 0 0 0.5 1 0 0 0 1"},
            "orthonormal direction cosines",
            marks=refused("the axes are not at right angles"),
        ),
        ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "orthonormal direction cosines"),
        pytest.param(
            {"ElementDataFile": "nothing.raw"},
            "its voxels in a file beside it, found no nothing.raw",
            marks=refused("the file with the voxels is not there"),
        ),
    ],
)
def test_metaimage_headers(tmp_path: Path, changes: dict[str, str | None], expected: str) -> None:
    assert expected in reason(metaimage(tmp_path / "a.mha", RAW, changes))


@pytest.mark.fault(
    "inputs", "a {suffix} of 2 or 4 dimensions, of vectors, or of complex numbers", "an error that says which"
)
@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_other_kinds_of_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    images = {
        "a 3-D volume, found 2 dimensions": sitk.Image([5, 4], sitk.sitkInt16),
        "a 3-D volume, found 4 dimensions": sitk.Image([5, 4, 3, 2], sitk.sitkInt16),
        "one real number a voxel, found 2 of": sitk.Image([5, 4, 3], sitk.sitkVectorFloat32, 2),
        "one real number a voxel, found 2 of ": sitk.Image([5, 4, 3], sitk.sitkComplexFloat32),
    }
    for expected, image in images.items():
        sitk.WriteImage(image, str(path))
        assert expected in reason(path)


@pytest.mark.fault("inputs", "more than 1% of the voxels are NaN, or all of them", "an error that says how many")
def test_more_than_one_percent_nan(tmp_path: Path) -> None:
    array = VOXELS.astype(np.float32)
    array[0, 0, 0] = np.nan
    write_volume(Volume(array, GRID), tmp_path / "a.mha")
    assert "expected at most 1% NaN or infinite voxels, found 1 of 60 (1.7%)" in reason(tmp_path / "a.mha")
    write_volume(Volume(np.full_like(array, np.nan), GRID), tmp_path / "a.mha")
    assert "found 60 of 60 (100.0%)" in reason(tmp_path / "a.mha")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """An address space in which what a header claims cannot be allocated without being noticed."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda folder: metaimage(folder / "a.mha", DimSize="60000 60000 60000"),
            marks=pytest.mark.fault(
                "inputs",
                "a small file claims to hold 60,000 voxels a side",
                "an error before any memory is taken for them",
            ),
            id="plain",
        ),
        lambda folder: compressed(folder / "a.mha", DimSize="60000 60000 60000"),
        lambda folder: metaimage(folder / "a.mha", DimSize="4294967296 4294967296 1"),
        lambda folder: nifti(folder / "a.nii.gz", (42, "<h", 30000), (44, "<h", 30000), (46, "<h", 30000)),
    ],
)
def test_a_small_file_that_claims_to_be_huge_is_never_allocated(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert " voxels a side" in reason(make(tmp_path))


@pytest.mark.fault("inputs", "something else follows the voxels in the file", "the voxels, unchanged")
def test_what_follows_the_voxels_is_ignored(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha", RAW + b"garbage" * 9),
        compressed(tmp_path / "b.mha", ZLIB + b"garbage" * 9),
    ):
        volume = read_image(path)[0].array
        assert np.array_equal(volume, VOXELS)
        saw(f"{np.count_nonzero(volume != VOXELS)} of {VOXELS.size} voxels differ")


@pytest.mark.parametrize("packed", [False, True])
def test_header_and_voxels_in_two_files(tmp_path: Path, packed: bool) -> None:
    make = compressed if packed else metaimage
    voxels = tmp_path / "voxels.raw"
    path = make(tmp_path / "a.mhd", b"", ElementDataFile=voxels.name)
    voxels.write_bytes(ZLIB if packed else RAW)
    assert np.array_equal(read_image(path)[0].array, VOXELS)
    voxels.write_bytes(voxels.read_bytes()[:-20])
    assert "the file is truncated or damaged" in reason(path)
    voxels.unlink()
    assert "its voxels in a file beside it, found no voxels.raw" in reason(path)


def test_slices_in_files_of_their_own(tmp_path: Path) -> None:
    for number, voxels in enumerate(VOXELS):
        (tmp_path / f"slice{number}.raw").write_bytes(voxels.tobytes())
    listed = metaimage(tmp_path / "a.mhd", b"slice0.raw\nslice1.raw\nslice2.raw\n", ElementDataFile="LIST")
    numbered = metaimage(tmp_path / "b.mhd", b"", ElementDataFile="slice%d.raw 0 2 1")
    for path in (listed, numbered):
        assert np.array_equal(read_image(path)[0].array, VOXELS)


def test_older_and_unusual_headers_that_itk_reads(tmp_path: Path) -> None:
    big = VOXELS.astype(">i2").tobytes()
    for path in (
        metaimage(tmp_path / "a.mha", big, BinaryDataByteOrderMSB="True"),
        metaimage(tmp_path / "b.mha", big, ElementByteOrderMSB="True"),
        metaimage(tmp_path / "c.mha", ElementSpacing=None, ElementSize="1 1 2"),
        metaimage(tmp_path / "d.mha", end="\r\n"),
        metaimage(tmp_path / "e.mha", separator=": "),
        metaimage(tmp_path / "f.mha", separator="="),
        metaimage(tmp_path / "g.mha", ElementDataFile="Local"),
        metaimage(tmp_path / "h.mha", VOXELS.astype(np.int32).tobytes(), ElementType="MET_LONG"),
    ):
        volume, _ = read_image(path)
        assert np.array_equal(volume.array, VOXELS), path
        assert volume.grid.spacing == (2.0, 1.0, 1.0)
    volume, _ = read_image(metaimage(tmp_path / "i.mha", ElementSpacing=None, TransformMatrix=None, Offset=None))
    assert volume.grid == Grid((3, 4, 5), (1.0, 1.0, 1.0))


def test_keys_in_lower_case_are_unreadable_as_for_itk(tmp_path: Path) -> None:
    path = metaimage(tmp_path / "a.mha")
    header, voxels = path.read_bytes().split(b"LOCAL\n")
    path.write_bytes(header.lower() + b"LOCAL\n" + voxels)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    assert "File cannot be read" in reason(path)


@pytest.mark.parametrize(
    ("line", "replaced", "expected"),
    [
        (b"sizes: 5 4 3", b"sizes: 5 4 0", "at least one voxel, found size 5x4x0"),
        pytest.param(
            b"sizes: 5 4 3",
            b"sizes: 5 4 4",
            "expected 160 bytes of voxels, found 120",
            marks=refused("an NRRD claims more slices than it has"),
        ),
        (b"(1,0,0)", b"(0,0,0)", "Refusing to change spacing"),
        (b"(1,0,0)", b"(1,1,0)", "orthonormal direction cosines"),
    ],
)
def test_nrrd_headers(tmp_path: Path, line: bytes, replaced: bytes, expected: str) -> None:
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(to_itk(Volume(VOXELS, GRID)), str(path))
    content = path.read_bytes()
    assert line in content
    path.write_bytes(content.replace(line, replaced))
    assert expected in reason(path)
