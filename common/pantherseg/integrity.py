"""Checks of image files that ITK does not make.

ITK reads a MetaImage whose compressed data is damaged, a NIfTI that ends early and a header with negative spacing
without an error, and hands over wrong voxels or a wrong grid. These checks come before ITK.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

from pantherseg.errors import InputError

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 16
ELEMENT_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
# By NIfTI's datatype; ITK itself refuses those that are missing here.
NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
NIFTI_HEADER_BYTES = 348
DAMAGED = "the file is truncated or damaged, copy it again"


def check_file(path: Path) -> None:
    """Check that a file is there, not empty, and complete as far as its format lets one tell.

    Raises InputError.
    """
    if not path.is_file():
        raise InputError(path, expected="a volume file", found="a folder" if path.is_dir() else "no such file")
    if path.stat().st_size == 0:
        raise InputError(path, expected="a volume", found="an empty file")
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        check_metaimage(path)
    elif name.endswith((".nii", ".nii.gz")):
        _check_nifti(path)


def check_metaimage(path: Path) -> None:
    """Check a MetaImage, whatever it is called. Raises InputError."""
    header, offset = _metaimage_header(path)
    shape = [int(n) for n in header["dimsize"].split()]
    spacing = header.get("elementspacing", header.get("elementsize", "1 " * len(shape))).split()
    if len(spacing) != len(shape):
        raise InputError(path, expected=f"{len(shape)} spacings in mm", found=" ".join(spacing) or "none")
    _check_spacing(path, spacing)
    for key in ("Offset", "Position", "Origin", "TransformMatrix", "Rotation", "Orientation"):
        _check_finite(path, key, header.get(key.lower(), ""))
    expected = math.prod(shape) * int(header.get("elementnumberofchannels", "1"))
    expected *= ELEMENT_BYTES[header["elementtype"].upper().removesuffix("_ARRAY")]
    size = "x".join(map(str, shape))
    if expected == 0:
        raise InputError(path, expected="at least one voxel", found=f"size {size}")
    name = header["elementdatafile"]
    # Slices in files of their own and numbers as text are opened and measured by ITK.
    if name.upper().startswith("LIST") or "%" in name or not _is_true(header.get("binarydata", "True")):
        return
    data, start = (path, offset) if name.upper() == "LOCAL" else (path.parent / name, 0)
    if not data.is_file():
        raise InputError(path, expected="its voxels in a file beside it", found=f"no {name}")
    found = data.stat().st_size - start
    compressed = _is_true(header.get("compresseddata", "False"))
    if compressed:
        stored = _compressed_size(path, header, available=found, local=data == path)
        found = _inflated_size(path, data, start, stored=stored, limit=expected)
    if found < expected or (compressed and found > expected):
        expectation = f"{expected} bytes of voxels for a {size} volume"
        raise InputError(path, expected=expectation, found=f"{found}", hint=DAMAGED)


def _is_true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")  # as MetaIO reads it


def _compressed_size(path: Path, header: dict[str, str], *, available: int, local: bool) -> int:
    """Return how many bytes ITK inflates; without the size it takes a file from its start, header included."""
    text = header.get("compresseddatasize", "none")
    stored = int(text) if text.isdigit() else 0
    if not stored and local:
        raise InputError(path, expected="CompressedDataSize in the header", found=text)
    if stored > available:
        raise InputError(path, expected=f"{stored} bytes of compressed voxels", found=f"{available}", hint=DAMAGED)
    return stored or available


def _metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's keys in lower case and the offset of the voxel data."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    header: dict[str, str] = {}
    offset = 0
    while "elementdatafile" not in header:
        end = head.find(b"\n", offset)
        key, *value = re.split(rb"[=:]", head[offset : end if end >= 0 else None], maxsplit=1)
        if not value:
            raise InputError(path, expected="a MetaImage header", found=f"the line {key[:40]!r}")
        header[key.decode("latin-1").strip().lower()] = value[0].decode("latin-1").strip()
        offset = end + 1
        if end < 0:
            break
    try:
        numbers = [int(n) for n in header["dimsize"].split()]
        complete = min(numbers) >= 0 and header["elementtype"].upper().removesuffix("_ARRAY") in ELEMENT_BYTES
        complete = complete and "elementdatafile" in header and int(header.get("elementnumberofchannels", "1")) > 0
        complete = complete and int(header["ndims"]) == len(numbers)
    except (KeyError, ValueError):
        complete = False
    if not complete:
        found = {key: header.get(key) for key in ("ndims", "dimsize", "elementtype", "elementdatafile")}
        raise InputError(path, expected="a complete MetaImage header", found=str(found))
    return header, offset


def _inflated_size(path: Path, data: Path, start: int, *, stored: int, limit: int) -> int:
    """Return how many bytes the zlib stream in `stored` bytes from `start` holds, reading little beyond `limit`."""
    stream = zlib.decompressobj()
    size = 0
    try:
        with data.open("rb") as file:
            file.seek(start)
            while not stream.eof and size <= limit:
                pending = stream.unconsumed_tail
                if not pending:
                    pending = file.read(min(CHUNK_BYTES, stored))
                    stored -= len(pending)
                if not pending:
                    break
                size += len(stream.decompress(pending, CHUNK_BYTES))
    except zlib.error as error:
        raise InputError(path, expected="valid compressed voxels", found=str(error), hint=DAMAGED) from error
    return size


def _check_nifti(path: Path) -> None:
    _check_nifti_is_alone(path)
    opener = gzip.open if path.name.lower().endswith(".gz") else Path.open
    size = 0
    try:
        with opener(path, "rb") as file:
            head = file.read(NIFTI_HEADER_BYTES)
            while chunk := file.read(CHUNK_BYTES):  # gzip checks length and checksum at the end
                size += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, expected="a complete gzip file", found=str(error), hint=DAMAGED) from error
    size += len(head)
    if len(head) < NIFTI_HEADER_BYTES:
        raise InputError(path, expected=f"a NIfTI header of {NIFTI_HEADER_BYTES} bytes", found=f"{size} bytes")
    if head[4:7] == b"n+2":
        raise InputError(path, expected="a NIfTI-1 file", found="NIfTI-2", hint="convert it")
    # As NIfTI says, the order of bytes is the one in which the number of axes makes sense.
    order = "<" if 1 <= struct.unpack("<h", head[40:42])[0] <= 7 else ">"
    axes, *lengths = struct.unpack(f"{order}8h", head[40:56])
    shape = lengths[: max(axes, 0)]
    if any(n < 1 for n in shape):
        raise InputError(path, expected="at least one voxel", found=f"size {'x'.join(map(str, shape))}")
    # pixdim[1:4] are magnitudes: the sign of an axis lies in qfac and the affine.
    pixdim = struct.unpack(f"{order}8f", head[76:108])
    _check_spacing(path, pixdim[1 : 1 + max(1, min(axes, 3))])
    (datatype,), (offset,) = struct.unpack(f"{order}h", head[70:72]), struct.unpack(f"{order}f", head[108:112])
    expected = max(0.0, offset) + math.prod(shape) * NIFTI_BYTES.get(datatype, 0)
    if size < expected:
        raise InputError(path, expected=f"{expected:.0f} bytes with the voxels", found=f"{size}", hint=DAMAGED)


def _check_nifti_is_alone(path: Path) -> None:
    """Check that ITK takes the voxels from this file: beside x.nii, it reads the header of x.nii.gz only."""
    other = path.with_suffix("")
    if path.suffix.lower() == ".gz" and other.is_file():
        raise InputError(
            path, expected=f"no {other.name} beside it, whose voxels ITK would read", found="one", hint="move one away"
        )


def _check_finite(path: Path, key: str, text: str) -> None:
    """Check the numbers of a MetaImage's field; MetaIO reads what is no number as zero."""
    try:
        valid = all(math.isfinite(float(number)) for number in text.split())
    except ValueError:
        valid = False
    if not valid:
        raise InputError(path, expected=f"finite numbers as {key}", found=text)


def _check_spacing(path: Path, values: list[str] | tuple[float, ...]) -> None:
    try:
        valid = all(0 < float(value) < math.inf for value in values)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(path, expected="positive spacing in mm", found=" ".join(map(str, values)))
