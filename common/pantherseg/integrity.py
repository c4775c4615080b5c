"""Checks of image files that ITK does not make.

ITK reads a MetaImage whose compressed data is damaged, a gzip-compressed NIfTI that ends early and a header with
negative spacing without an error, and hands over wrong voxels or a wrong grid. These checks come before ITK.
"""

from __future__ import annotations

import gzip
import math
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
        _check_metaimage(path)
    elif name.endswith((".nii", ".nii.gz")):
        _check_nifti(path)


def _check_metaimage(path: Path) -> None:
    header, data_start = _metaimage_header(path)
    _check_spacing(path, header.get("elementspacing", header.get("elementsize", "1")).split())
    if header["elementdatafile"].upper() != "LOCAL":
        return  # the data lies in files of its own, which ITK opens and measures
    shape = [int(n) for n in header["dimsize"].split()]
    expected = math.prod(shape) * int(header.get("elementnumberofchannels", "1"))
    expected *= ELEMENT_BYTES[header["elementtype"].upper().removesuffix("_ARRAY")]
    if header.get("compresseddata", "false").lower() == "true":
        found = _inflated_size(path, data_start, limit=expected)
    else:
        found = path.stat().st_size - data_start
    if expected == 0 or found < expected:
        size = "x".join(map(str, shape))
        raise InputError(
            path,
            expected=f"{expected} bytes of voxels for a {size} volume" if expected else "at least one voxel",
            found=f"{found}" if expected else f"size {size}",
            hint="the file is truncated or damaged, copy it again" if expected else "",
        )


def _metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's keys in lower case and the offset of the voxel data."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    header: dict[str, str] = {}
    offset = 0
    while "elementdatafile" not in header:
        end = head.find(b"\n", offset)
        key, separator, value = head[offset : end if end >= 0 else None].partition(b"=")
        if not separator:
            raise InputError(path, expected="a MetaImage header", found=f"the line {bytes(key[:40])!r}")
        header[key.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
        offset = end + 1
        if end < 0:
            break
    try:
        numbers = [int(n) for n in header["dimsize"].split()]
        complete = min(numbers) >= 0 and header["elementtype"].upper().removesuffix("_ARRAY") in ELEMENT_BYTES
        complete = complete and "elementdatafile" in header and int(header.get("elementnumberofchannels", "1")) > 0
    except (KeyError, ValueError):
        complete = False
    if not complete:
        found = {key: header.get(key) for key in ("dimsize", "elementtype", "elementdatafile")}
        raise InputError(path, expected="a complete MetaImage header", found=str(found))
    return header, offset


def _inflated_size(path: Path, start: int, *, limit: int) -> int:
    """Return how many bytes the zlib stream from `start` holds, reading no further than `limit`."""
    stream = zlib.decompressobj()
    size = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            pending = file.read(CHUNK_BYTES)
            while pending and not stream.eof and size <= limit:
                size += len(stream.decompress(pending, CHUNK_BYTES))
                pending = stream.unconsumed_tail or file.read(CHUNK_BYTES)
    except zlib.error as error:
        raise InputError(
            path,
            expected="valid compressed voxels",
            found=str(error),
            hint="the file is damaged, copy it again",
        ) from error
    return size


def _check_nifti(path: Path) -> None:
    opener = gzip.open if path.name.lower().endswith(".gz") else Path.open
    try:
        with opener(path, "rb") as file:
            head = file.read(348)
            while file.read(CHUNK_BYTES):
                pass  # gzip checks length and checksum at the end
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            path,
            expected="a complete gzip file",
            found=str(error),
            hint="the file is truncated or damaged, copy it again",
        ) from error
    if len(head) < 348:
        raise InputError(path, expected="a NIfTI header of 348 bytes", found=f"{len(head)} bytes")
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    dimensions = struct.unpack(f"{order}8h", head[40:56])[0]
    # pixdim[1:4] are magnitudes: the sign of an axis lies in qfac and the affine.
    _check_spacing(path, struct.unpack(f"{order}8f", head[76:108])[1 : 1 + max(1, min(dimensions, 3))])


def _check_spacing(path: Path, values: list[str] | tuple[float, ...]) -> None:
    try:
        valid = all(0 < float(value) < math.inf for value in values)
    except ValueError:
        valid = False
    if not valid:
        raise InputError(path, expected="positive spacing in mm", found=" ".join(map(str, values)))
