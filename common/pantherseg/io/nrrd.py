"""NRRD with its voxels in the same file: .nrrd."""

from __future__ import annotations

import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.header import Header, bad_line, header_lines, parse_size, unsupported
from pantherseg.io.limits import DAMAGED, check_size
from pantherseg.io.streams import gunzipped_size

MAGIC = re.compile(rb"NRRD000[1-5]\r?")
TYPES = {
    1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
    2: "short,short int,signed short,signed short int,int16,int16_t,"
    "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
    8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
    "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
}
ELEMENT_BYTES = {name: size for size, names in TYPES.items() for name in names.split(",")}
REQUIRED = ("type", "dimension", "sizes", "encoding")
SKIPS = ("line skip", "lineskip", "byte skip", "byteskip")


def check_nrrd(path: Path) -> Header:
    """Check the header, and that the voxels are as many as it states. Raises InputError and OSError."""
    fields, offset = _read_fields(path)
    size = parse_size(fields.get("sizes", ""), fields.get("dimension", ""))
    element = ELEMENT_BYTES.get(" ".join(fields.get("type", "").lower().split()))
    if size is None or element is None or "encoding" not in fields:
        found = ", ".join(f"{name}: {fields[name]}" for name in REQUIRED if name in fields)
        raise InputError(path, expected=f"a NRRD header with {', '.join(REQUIRED)}", found=found or "none of them")
    for name in ("data file", "datafile"):
        if name in fields:
            raise unsupported(path, f"NRRD with its voxels in another file ({name}: {fields[name]})")
    for name in SKIPS:
        if fields.get(name, "0") != "0":
            raise unsupported(path, f"NRRD with {name}: {fields[name]}")
    _check_voxels(path, fields["encoding"].lower(), offset, expected=check_size(path, size, voxel_bytes=element))
    return Header(size)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, their names in lower case, and the offset of the voxels behind an empty line."""
    fields: dict[str, str] = {}
    for number, (line, offset) in enumerate(header_lines(path, "NRRD")):
        text = line.rstrip(b"\r").decode("latin-1")
        name, mark, value = text.partition(":")
        name = name.strip().lower()
        if number == 0 and not MAGIC.fullmatch(line):
            raise bad_line(path, "NRRD", line)
        if not text:
            return fields, offset
        if number == 0 or text.startswith("#") or value.startswith("="):  # `name:=value` is a note of any kind
            continue
        if not mark:
            raise bad_line(path, "NRRD", line)
        if name in fields:
            raise InputError(path, expected="each field of the header once", found=f"{name} twice")
        fields[name] = value.strip()
    raise InputError(path, "the NRRD header does not end with an empty line", hint=DAMAGED)


def _check_voxels(path: Path, encoding: str, offset: int, *, expected: int) -> None:
    """Check that a file holds `expected` bytes of voxels from `offset` on."""
    found, compressed = path.stat().st_size - offset, encoding in ("gzip", "gz")
    if compressed:
        with path.open("rb") as file:
            file.seek(offset)
            found = gunzipped_size(path, file, limit=expected)
    elif encoding != "raw":
        raise unsupported(path, f"NRRD with the encoding {encoding}")
    if found < expected or (compressed and found > expected):
        raise InputError(path, expected=f"{expected} bytes of voxels", found=f"{found} bytes", hint=DAMAGED)
