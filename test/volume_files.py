"""Small volume files for tests: one volume in several formats, with changed header fields."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bench.fuzz import check_error

from pantherseg.errors import InputError
from pantherseg.io import read_image
from pantherseg.io.itk import to_itk
from pantherseg.volume import Grid, Volume

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
RAW = VOXELS.tobytes()
ZLIB = zlib.compress(RAW)
GRID = Grid((3, 4, 5), (2.0, 1.0, 1.0))
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1 1 2",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


@pytest.fixture
def quiet_itk() -> Iterator[None]:
    """Keep ITK from printing a warning about each damaged file."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


def metaimage(
    path: Path, data: bytes = RAW, changes: Mapping[str, str | None] | None = None, *, line: str = "{} = {}\n"
) -> Path:
    """Write a MetaImage of VOXELS with header fields changed, added, or left out (None)."""
    header: dict[str, str | None] = {**HEADER, **(changes or {})}
    header["ElementDataFile"] = header.pop("ElementDataFile")  # the last field
    lines = (line.format(key, value) for key, value in header.items() if value is not None)
    path.write_bytes("".join(lines).encode() + data)
    return path


def compressed(
    path: Path, data: bytes = ZLIB, changes: Mapping[str, str | None] | None = None, *, size: int | None = len(ZLIB)
) -> Path:
    """Write a compressed MetaImage of VOXELS."""
    packing = {"CompressedData": "True", "CompressedDataSize": None if size is None else str(size)}
    return metaimage(path, data, {**packing, **(changes or {})})


def nifti(path: Path, *patches: tuple[int, str, float | int | bytes]) -> Path:
    """Write a NIfTI of VOXELS with values of the header overwritten: offset, format, value."""
    content = bytearray(written_by_itk(path.with_name("plain_for_patching.nii")))
    for offset, layout, value in patches:
        struct.pack_into(layout, content, offset, value)
    return compress_as_named(path, bytes(content))


def uncompressed(path: Path) -> bytes:
    """Return the content of a file, without the compression of gzip."""
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def compress_as_named(path: Path, content: bytes) -> Path:
    """Write a file, compressed with gzip if its name ends with .gz."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def nrrd(path: Path, old: bytes = b"", new: bytes = b"") -> Path:
    """Write a NRRD of VOXELS in which a part of the header is replaced."""
    content = written_by_itk(path)
    assert old in content
    path.write_bytes(content.replace(old, new, 1) if old else content)
    return path


def written_by_itk(path: Path) -> bytes:
    """Return the bytes of the file that ITK writes for VOXELS, and remove the file."""
    sitk.WriteImage(to_itk(Volume(VOXELS, GRID)), str(path))
    content = path.read_bytes()
    path.unlink()
    return content


def refusal(path: Path) -> str:
    """Return the error for a file that must not be read, without the file's name. It must be one line."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    check_error(caught.value)
    text = str(caught.value)
    assert "(0x" not in text, "an address in memory"
    return text.partition(": ")[2]
