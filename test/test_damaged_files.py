"""Damaged and unsupported volume files: each is an error that names the file and what is wrong."""

from __future__ import annotations

import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from faults import refused
from pantherseg.io import read_image
from pantherseg.io.itk import to_itk
from pantherseg.io.limits import MAX_SIDE_VOXELS
from pantherseg.volume import Grid, Volume
from volume_files import GRID, RAW, VOXELS, ZLIB, compressed, metaimage, nifti, nrrd, refusal

pytestmark = pytest.mark.usefixtures("quiet_itk")

DAMAGED = "the file is truncated or damaged"
ADDRESS_SPACE_BYTES = 8 << 30


@pytest.mark.fault(
    "inputs", "the volume is missing, a folder, or an empty file", "an error that says which of them it is"
)
def test_refuses_a_missing_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.mha") == "expected a volume, found no such file"
    assert refusal(tmp_path / "missing").endswith("found no such file or folder")
    (tmp_path / "folder.mha").mkdir()
    formats = "expected a volume in one of the formats .mha .mhd .nii .nii.gz .nrrd, or DICOM"
    assert refusal(tmp_path / "folder.mha") == f"{formats}, found a folder"
    for suffix in (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd"):
        empty = tmp_path / f"empty{suffix}"
        empty.touch()
        assert refusal(empty) == "expected a volume, found an empty file"
    for name, found in (("a.raw", "the suffix .raw"), ("a", "no suffix")):
        (tmp_path / name).touch()
        assert refusal(tmp_path / name) == f"{formats}, found {found}"


def test_reads_the_unchanged_files(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha"),
        compressed(tmp_path / "b.mha"),
        nifti(tmp_path / "c.nii"),
        nifti(tmp_path / "d.nii.gz"),
        nrrd(tmp_path / "e.nrrd"),
    ):
        volume, events = read_image(path)
        assert np.array_equal(volume.array, VOXELS)
        assert (volume.grid, events) == (GRID, ())


@pytest.mark.fault(
    "inputs", "the file ends early, with and without compression", "an error that says how many bytes are missing"
)
def test_refuses_a_truncated_metaimage(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    assert "expected 120 bytes of voxels, found 119 bytes" in refusal(metaimage(path, RAW[:-1]))
    for missing in (1, 20, len(ZLIB) - 1):
        expected = f"{len(ZLIB)} compressed bytes, found {len(ZLIB) - missing} bytes"
        assert expected in refusal(compressed(path, ZLIB[:-missing]))
    # Here the size in the header agrees with the file: only decompression shows the fault.
    assert "expected 120 bytes of voxels" in refusal(compressed(path, ZLIB[:-20], size=len(ZLIB) - 20))


@pytest.mark.fault(
    "inputs", "single bits of compressed voxels are flipped", "an error, also where ITK reads wrong voxels without one"
)
def test_refuses_flipped_bits_that_itk_does_not_report(tmp_path: Path) -> None:
    unreported = 0
    for position in range(2, len(ZLIB), 7):
        damaged = bytearray(ZLIB)
        damaged[position] ^= 0x10
        path = compressed(tmp_path / "a.mha", bytes(damaged))
        assert DAMAGED in refusal(path)
        unreported += sitk.ReadImage(str(path)).GetSize() == (5, 4, 3)
    assert unreported, "ITK reports every flipped bit: this check is no longer needed"


@pytest.mark.parametrize(
    ("size", "expected"), [(None, "a number of bytes as CompressedDataSize, found none"), (5, "120 bytes of voxels")]
)
def test_refuses_a_wrong_compressed_size_with_which_itk_reads_other_voxels(
    tmp_path: Path, size: int | None, expected: str
) -> None:
    path = compressed(tmp_path / "a.mha", size=size)
    assert not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS)
    assert expected in refusal(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("left", [10, 0.5, 0.8, -20])
def test_refuses_a_truncated_nifti_or_nrrd(tmp_path: Path, suffix: str, left: float) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(to_itk(Volume(VOXELS, GRID)), str(path), useCompression=suffix != ".nii")
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))] if 0 < left < 1 else content[: int(left)])
    assert refusal(path)


@refused("the checksum of a .nii.gz does not fit")
def test_refuses_a_gzip_file_with_a_wrong_checksum(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    assert "expected a complete gzip file, found CRC check failed" in refusal(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((42, "<h", 500), "12352 bytes of header and voxels, found 472"),
        ((42, "<h", 0), "at least one voxel along each axis, found size 0x4x3"),
        ((46, "<h", -3), "at least one voxel along each axis, found size 5x4x-3"),
        ((40, "<h", 2), "a 3-D volume with one value per voxel, found 2 dimensions"),
        ((40, "<h", 0), "1 to 7 axes, found 0"),
        ((70, "<h", 99), "NIfTI with data type 99 is not supported"),
        ((344, "4s", b"ni1\0"), "NIfTI with its voxels in another file (.hdr and .img) is not supported"),
        ((344, "4s", b"\0\0\0\0"), "the mark b'n+1' of a NIfTI file, found b''"),
        ((108, "<f", 400.0), "520 bytes of header and voxels, found 472"),
        ((108, "<f", float("inf")), "voxels at an offset between 348 and 1073741824 bytes, found the offset inf"),
        ((292, "<f", float("nan")), "an origin within 1e+06 mm of zero, found (nan, 0.0, 0.0)"),
    ],
)
def test_refuses_a_nifti_header(tmp_path: Path, name: str, patch: tuple[int, str, float], expected: str) -> None:
    assert expected in refusal(nifti(tmp_path / name, patch))


@pytest.mark.fault(
    "inputs", "a NIfTI in the other byte order; then one byte short", "the same voxels; an error for the short one"
)
def test_reads_a_big_endian_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    content = path.read_bytes()
    swapped = bytearray(content)
    fields = [(0, "i")] + [(n, "h") for n in (*range(40, 56, 2), 70, 72, 252, 254)]
    fields += [(n, "f") for n in (*range(76, 124, 4), *range(256, 328, 4))]
    for offset, kind in fields:
        struct.pack_into(f">{kind}", swapped, offset, *struct.unpack_from(f"<{kind}", content, offset))
    swapped[352:] = VOXELS.astype(">i2").tobytes()
    path.write_bytes(swapped)
    assert np.array_equal(read_image(path)[0].array, VOXELS)
    path.write_bytes(swapped[:-1])
    assert "472 bytes of header and voxels, found 471" in refusal(path)


@pytest.mark.fault(
    "inputs",
    "a .nii lies beside a .nii.gz of the same name, and ITK would read that one",
    "the voxels of the file that was asked for",
)
def test_reads_a_nii_gz_beside_a_nii_of_the_same_name(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    other = tmp_path / "a.nii"
    sitk.WriteImage(to_itk(Volume(VOXELS + 100, GRID)), str(other))
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).min() == 100
    assert read_image(other)[0].array.min() == 100
    assert np.array_equal(read_image(path)[0].array, VOXELS)


def row(expected: str, fault: str = "", **changes: str | None) -> object:
    """Header fields that are refused, and a row of the table of faults if `fault` says what is done."""
    return pytest.param(changes, expected, marks=[refused(fault)] if fault else [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        row("a MetaImage header", "the header does not say where the voxels are", ElementDataFile=None),
        row("a MetaImage header with NDims, DimSize", DimSize=None),
        row("a MetaImage header with NDims, DimSize", ElementType=None),
        row("a MetaImage header with NDims, DimSize", "the voxels are of no known type", ElementType="MET_FOO"),
        row("a MetaImage header with NDims, DimSize", DimSize="5 4"),
        row("a MetaImage header with NDims, DimSize", DimSize="5 4 three"),
        row("a MetaImage header with NDims, DimSize", DimSize="5 4 -3"),
        row("a MetaImage header with NDims, DimSize", DimSize="5 4 " + "9" * 50),
        row("a MetaImage header with NDims", "the header claims a billion dimensions", NDims="1000000000"),
        row("a MetaImage header with NDims", NDims="0", DimSize=""),
        row("a MetaImage header with NDims", NDims="2"),
        row("a 3-D volume with one value per voxel, found 9 dimensions", NDims="9", DimSize="1 " * 9),
        row("at least one voxel along each axis, found size 5x4x0", "an axis has no voxels", DimSize="5 4 0"),
        row(f"at most {MAX_SIDE_VOXELS} voxels along each axis", DimSize=f"{MAX_SIDE_VOXELS + 1} 1 1"),
        row(f"at most {MAX_SIDE_VOXELS} voxels along each axis", DimSize="4294967297 1 1"),
        row("MiB, found", "the header claims 9,999 voxels along each axis", DimSize="9999 9999 9999"),
        row("a spacing between 0.001 and 1000 mm, found 0 1 1", ElementSpacing="0 1 1"),
        row("a spacing between 0.001 and 1000 mm", "a spacing is negative", ElementSpacing="1 -1 1"),
        row("3 finite numbers as ElementSpacing, found 1 1 nan", "a spacing is NaN", ElementSpacing="1 1 nan"),
        row("3 finite numbers as ElementSpacing, found 1 1 inf", ElementSpacing="1 1 inf"),
        row("3 finite numbers as ElementSpacing, found 1 1 wide", ElementSpacing="1 1 wide"),
        row("3 finite numbers as ElementSpacing, found 1 1 1_0", ElementSpacing="1 1 1_0"),
        row("3 finite numbers as ElementSpacing, found 1 1", ElementSpacing="1 1"),
        row("3 finite numbers as ElementSpacing, found an empty field", ElementSpacing=""),
        row("a spacing between 0.001 and 1000 mm, found 1 1 -2", ElementSpacing=None, ElementSize="1 1 -2"),
        row("a spacing between 0.001 and 1000 mm", "a spacing of 1e30 mm", ElementSpacing="1 1 1e30"),
        row("a spacing between 0.001 and 1000 mm", ElementSpacing="1 1 1e-30"),
        row("3 finite numbers as Offset, found nan 0 0", "the origin is NaN", Offset="nan 0 0"),
        row("3 finite numbers as Offset, found 0 0", Offset="0 0"),
        row("an origin within 1e+06 mm of zero", "an origin far beyond any scanner", Offset="0 0 1e30"),
        row("9 finite numbers as TransformMatrix", TransformMatrix="nan 0 0 0 1 0 0 0 1"),
        row("9 finite numbers as TransformMatrix", TransformMatrix="1 0 0 0 1 0 0 0"),
        row("Bad direction, determinant is 0", TransformMatrix="1 0 0 1 0 0 0 0 1"),
        row("Bad direction, determinant is 0", "the axes have no direction", TransformMatrix="0 0 0 0 0 0 0 0 0"),
        row(
            "not at right angles (27 degrees off)",
            "the axes are not at right angles",
            TransformMatrix="1 0 0 .5 1 0 0 0 1",
        ),
        row("length 1, found the lengths", TransformMatrix="1e200 0 0 0 1e200 0 0 0 1e200"),
        row("length 1, found the lengths inf inf 1", TransformMatrix="1e200 1e200 0 1e200 -1e200 0 0 0 1"),
        row("51 degrees off", TransformMatrix="1e20 1e20 0 1e20 1e19 0 0 0 1"),
        row("Bad direction, determinant is 0", TransformMatrix="1e-200 0 0 0 1e-200 0 0 0 1"),
        row("direction cosines of length 1, found the lengths 2 2 2", TransformMatrix="2 0 0 0 2 0 0 0 2"),
        row("the field name DimSize, found dimsize", dimsize="1 1 1"),
        row("the field name ElementSpacing, found elementspacing", ElementSpacing=None, elementspacing="1 1 2"),
        row("the field name CompressedDataSize, found compresseddatasize", compresseddatasize="48"),
        row("a MetaImage header", Comment="a\0b"),
        row("in a MetaImage header", "a header with a field of 10 MB", Comment="long" * (10 << 18)),
        row("a MetaImage header", **{"C" * 1000: "x"}),
        row("file nothing.raw in the same folder", "the data file is missing", ElementDataFile="nothing.raw"),
        row("a data file in the same folder, found ../a.raw", ElementDataFile="../a.raw"),
        row("same folder, found /etc/passwd", "the data file is in another folder", ElementDataFile="/etc/passwd"),
        row("CompressedDataSize, found -5", CompressedData="True", CompressedDataSize="-5"),
        row(
            "valid compressed voxels",
            "uncompressed voxels, said to be zlib",
            CompressedData="1",
            CompressedDataSize="48",
        ),
    ],
)
def test_refuses_a_metaimage_header(tmp_path: Path, changes: dict[str, str | None], expected: str) -> None:
    assert expected in refusal(metaimage(tmp_path / "a.mha", RAW, changes))


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        row("voxels as text", "a MetaImage with its voxels as text", BinaryData="False"),
        row("its slices in separate files", "a MetaImage that lists a file for each slice", ElementDataFile="LIST"),
        row("its slices in separate files", ElementDataFile="slice%d.raw 0 2 1"),
        row("its slices in separate files", ElementDataFile="%s%n 1 2 1"),
        row("more than one value per voxel", "a MetaImage with three channels", ElementNumberOfChannels="3"),
    ],
)
def test_refuses_a_metaimage_variant_by_name(tmp_path: Path, changes: dict[str, str | None], variant: str) -> None:
    text = refusal(metaimage(tmp_path / "a.mha", RAW, changes))
    assert re.match(rf"MetaImage with {variant}.* is not supported; convert it, for example with SimpleITK", text)


@refused("a NRRD with {variant}")
@pytest.mark.parametrize(
    ("old", "new", "variant"),
    [
        (b"raw", b"ascii", "the encoding ascii"),
        (b"raw", b"hex", "the encoding hex"),
        (b"raw", b"bzip2", "the encoding bzip2"),
        (b"raw", b"zstd", "the encoding zstd"),
        (b"endian", b"data file: /etc/passwd\nendian", "its voxels in another file (data file: /etc/passwd)"),
        (b"endian", b"datafile: LIST\nendian", "its voxels in another file (datafile: LIST)"),
        (b"endian", b"byte skip: -1\nendian", "byte skip: -1"),
        (b"endian", b"line skip: 1\nendian", "line skip: 1"),
    ],
)
def test_refuses_a_nrrd_variant_by_name(tmp_path: Path, old: bytes, new: bytes, variant: str) -> None:
    text = refusal(nrrd(tmp_path / "a.nrrd", old, new))
    assert text.startswith(f"NRRD with {variant} is not supported; convert it, for example with SimpleITK")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"sizes: 5 4 3", b"sizes: 5 4 0", "at least one voxel along each axis, found size 5x4x0"),
        pytest.param(
            b"sizes: 5 4 3",
            b"sizes: 5 4 4",
            "expected 160 bytes of voxels, found 120 bytes",
            marks=refused("a NRRD claims more slices than it has"),
        ),
        (b"(1,0,0)", b"(0,0,0)", "Refusing to change spacing"),
        (b"(1,0,0)", b"(1,1,0)", "the axes of the volume are not at right angles (45 degrees off)"),
        (b"endian", b"sizes: 4 3 2\nendian", "each field of the header once, found sizes twice"),
        (b"endian", b"no colon\nendian", "a NRRD header, found the line b'no colon'"),
        (b"endian", b"note: a\0b\nendian", "a NRRD header"),
        (b"encoding: raw\n", b"", "a NRRD header with type, dimension, sizes, encoding"),
    ],
)
def test_refuses_a_nrrd_header(tmp_path: Path, old: bytes, new: bytes, expected: str) -> None:
    assert expected in refusal(nrrd(tmp_path / "a.nrrd", old, new))


ONE_VALUE = "expected a 3-D volume with one value per voxel, found"
CHANNELS = "MetaImage with more than one value per voxel (ElementNumberOfChannels = 2) is not supported"


@pytest.mark.fault(
    "inputs", "a {suffix} of 2 or 4 dimensions, of vectors, or of complex numbers", "an error that says which"
)
@pytest.mark.parametrize(
    ("suffix", "vectors", "complex_numbers"),
    [
        (".mha", CHANNELS, CHANNELS),
        (".nii.gz", f"{ONE_VALUE} 5 dimensions", "NIfTI with data type 32 (complex64) is not supported"),
        (".nrrd", f"{ONE_VALUE} 4 dimensions", f"{ONE_VALUE} 4 dimensions"),
    ],
)
def test_refuses_images_that_are_not_scalar_volumes(
    tmp_path: Path, suffix: str, vectors: str, complex_numbers: str
) -> None:
    path = tmp_path / f"a{suffix}"
    for expected, image in (
        (f"{ONE_VALUE} 2 dimensions", sitk.Image([5, 4], sitk.sitkInt16)),
        (f"{ONE_VALUE} 4 dimensions", sitk.Image([5, 4, 3, 2], sitk.sitkInt16)),
        (vectors, sitk.Image([5, 4, 3], sitk.sitkVectorFloat32, 2)),
        (complex_numbers, sitk.Image([5, 4, 3], sitk.sitkComplexFloat32)),
    ):
        sitk.WriteImage(image, str(path))
        assert refusal(path).startswith(expected)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """An address space too small for the volumes that the headers claim."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.fault(
    "inputs", "a small file claims to hold 60,000 voxels along each axis", "an error without allocating them"
)
@pytest.mark.usefixtures("little_memory")
def test_refuses_a_small_file_that_claims_a_huge_volume(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha", RAW, {"DimSize": "60000 60000 60000"}),
        compressed(tmp_path / "b.mha", ZLIB, {"DimSize": "60000 60000 60000"}),
        metaimage(tmp_path / "c.mha", RAW, {"DimSize": "4294967296 4294967296 1"}),
        nifti(tmp_path / "d.nii.gz", *((offset, "<h", 30000) for offset in (42, 44, 46))),
    ):
        assert " voxels along each axis" in refusal(path)


@pytest.mark.fault("inputs", "something else follows the voxels in the file", "the voxels, unchanged")
def test_ignores_what_follows_the_voxels(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha", RAW + b"garbage" * 9),
        compressed(tmp_path / "b.mha", ZLIB + b"garbage" * 9),
    ):
        assert np.array_equal(read_image(path)[0].array, VOXELS)


@pytest.mark.parametrize("packed", [False, True])
def test_reads_a_header_with_its_voxels_in_a_file_beside_it(tmp_path: Path, packed: bool) -> None:
    make = compressed if packed else metaimage
    voxels = tmp_path / "voxels.raw"
    path = make(tmp_path / "a.mhd", b"", {"ElementDataFile": voxels.name})
    voxels.write_bytes(ZLIB if packed else RAW)
    assert np.array_equal(read_image(path)[0].array, VOXELS)
    voxels.write_bytes(voxels.read_bytes()[:-20])
    assert DAMAGED in refusal(path)
    voxels.unlink()
    assert "expected the data file voxels.raw in the same folder, found no such file" in refusal(path)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (VOXELS.astype(">i2").tobytes(), {"BinaryDataByteOrderMSB": "True"}),
        (VOXELS.astype(">i2").tobytes(), {"ElementByteOrderMSB": "True"}),
        (VOXELS.astype("<i4").tobytes(), {"ElementType": "MET_LONG"}),
        (RAW, {"ElementSpacing": None, "ElementSize": "1 1 2"}),
        (RAW, {"ElementDataFile": "Local"}),
        *((ZLIB, {"CompressedData": yes, "CompressedDataSize": str(len(ZLIB))}) for yes in ("T", "true", "1")),
    ],
)
def test_reads_older_and_unusual_metaimage_headers(tmp_path: Path, data: bytes, changes: dict[str, str | None]) -> None:
    volume, _ = read_image(metaimage(tmp_path / "a.mha", data, changes))
    assert np.array_equal(volume.array, VOXELS)
    assert volume.grid == GRID


def test_reads_metaimage_headers_with_other_separators_and_without_a_grid(tmp_path: Path) -> None:
    for line in ("{} = {}\r\n", "{}: {}\n", "{}={}\n"):
        assert read_image(metaimage(tmp_path / "a.mha", line=line))[0].grid == GRID
    path = metaimage(tmp_path / "a.mha", RAW, {"ElementSpacing": None, "TransformMatrix": None, "Offset": None})
    assert read_image(path)[0].grid == Grid((3, 4, 5), (1.0, 1.0, 1.0))
