"""NRRD with its voxels in the file itself: .nrrd."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.limits import (
    DAMAGED,
    MAX_HEADER_BYTES,
    MAX_LINE_BYTES,
    Claim,
    check_size,
    whole_number,
)
from pantherseg.io.streams import unpacked_size

MAGIC = re.compile(rb"NRRD000[1-5]\r?")
ELEMENT_BYTES = {
    1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
    2: "short,short int,signed short,signed short int,int16,int16_t,"
    "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
    8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
    "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
}
BYTES_OF = {name: size for size, names in ELEMENT_BYTES.items() for name in names.split(",")}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
TEXTS = ("txt", "text", "ascii", "hex")
MAX_DIMENSIONS = 4


def check_nrrd(path: Path) -> Claim:
    """Check a header and that the voxels behind it are as many as it says. Raises InputError."""
    fields, offset = _read_header(path)
    sizes = [whole_number(text) for text in fields.get("sizes", "").split()]
    size = tuple(length for length in sizes if length is not None)
    element = BYTES_OF.get(" ".join(fields.get("type", "").lower().split()))
    if not element or not size or not len(size) == len(sizes) == whole_number(fields.get("dimension", "")):
        found = {key: fields.get(key) for key in ("type", "dimension", "sizes")}
        raise InputError(path, expected="a complete NRRD header", found=str(found))
    if len(size) > MAX_DIMENSIONS:
        raise InputError(path, expected="a 3-D volume", found=f"{len(size)} dimensions")
    expected = check_size(path, size, voxel_bytes=element)
    if name := fields.get("data file", fields.get("datafile")):
        raise InputError(path, expected="its voxels in the file itself", found=f"the file {name}")
    for key in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(key, "0") != "0":
            raise InputError(path, expected=f"no {key}", found=fields[key])
    _check_voxels(path, fields.get("encoding", "none"), offset, size=size, expected=expected)
    return Claim(size)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, names in lower case, and the offset of the voxels, behind the first empty line."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    magic, *lines = head.split(b"\n")
    if not MAGIC.fullmatch(magic):
        raise InputError(path, expected="an NRRD header", found=f"the line {magic[:40]!r}")
    fields: dict[str, str] = {}
    offset = len(magic) + 1
    for line in lines[:-1]:  # the last one has no end
        offset += len(line) + 1
        text = line.rstrip(b"\r").decode("latin-1")
        if not text:
            return fields, offset
        if text.startswith("#"):
            continue
        name, mark, value = text.partition(":")
        name = name.strip().lower()
        if not mark or len(line) > MAX_LINE_BYTES or b"\0" in line:
            raise InputError(path, expected="an NRRD header", found=f"the line {line[:40]!r}")
        # `name:=value` is for notes, `name: value` a field.
        if not value.startswith("="):
            if name in fields:
                raise InputError(path, expected="each field of the header once", found=f"{name} twice")
            fields[name] = value.strip()
    raise InputError(path, expected="an empty line behind the NRRD header", found="none")


def _check_voxels(path: Path, encoding: str, offset: int, *, size: tuple[int, ...], expected: int) -> None:
    available = path.stat().st_size - offset
    voxels = math.prod(size)
    found = available
    if encoding.lower() in TEXTS:
        # Two letters a byte in hex, a digit and a space a voxel in text: more is counted by ITK.
        expected = 2 * expected if encoding.lower() == "hex" else 2 * voxels - 1
    elif encoding.lower() in ENCODINGS:
        with path.open("rb") as file:
            file.seek(offset)
            _, found = unpacked_size(path, file, ENCODINGS[encoding.lower()], limit=expected)
    else:
        raise InputError(path, expected=f"an encoding of {' '.join(ENCODINGS)}", found=encoding)
    packed = ENCODINGS.get(encoding.lower(), "raw") != "raw"
    if found < expected or (packed and found > expected):
        raise InputError(path, expected=f"{expected} bytes of voxels", found=str(found), hint=DAMAGED)
