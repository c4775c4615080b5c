"""NRRD with its voxels in the same file: .nrrd.

Its definition: http://teem.sourceforge.net/nrrd/format.html. NrrdIO, by which ITK reads this format, refuses a field
given twice and per-axis fields before the number of axes; it ignores units, and spaces other than the patient's.
"""

from __future__ import annotations

import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.header import (
    Header,
    assumed_geometry,
    bad_line,
    header_lines,
    parse_numbers,
    parse_size,
    unsupported,
)
from pantherseg.io.limits import DAMAGED, check_size, check_spacing
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
# Spaces whose axes are the patient's: ITK turns them to LPS.
SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
# What each of the first three axes may be in a volume.
KINDS = ("domain", "space", "none", "???")
MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???")
# Fields that need another one before them.
AFTER = {
    **dict.fromkeys(("sizes", "spacings", "kinds", "units"), ("dimension",)),
    **dict.fromkeys(("space directions", "space origin", "space units"), ("space", "space dimension")),
}


def check_nrrd(path: Path, *, voxels: bool = True) -> Header:
    """Check the header and, with `voxels`, that these are as many as it states. Raises InputError and OSError."""
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
    volume_bytes = check_size(path, size, voxel_bytes=element)
    _check_geometry(path, fields)
    if voxels:
        _check_voxels(path, fields["encoding"].lower(), offset, expected=volume_bytes)
    has_directions = "space directions" in fields
    has_spacing = has_directions or "spacings" in fields
    assumed = assumed_geometry(has_spacing=has_spacing, has_direction=has_directions and "space" in fields)
    return Header(size, assumed=assumed)


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
        if name in AFTER and not fields.keys() & AFTER[name]:
            expected = f"{' or '.join(AFTER[name])} before {name} in the header"
            raise InputError(path, expected=expected, found=f"{name} without it")
        fields[name] = value.strip()
    raise InputError(path, "the NRRD header does not end with an empty line", hint=DAMAGED)


def _check_geometry(path: Path, fields: dict[str, str]) -> None:
    """Raise InputError for a grid that ITK would read in another way than it is meant."""
    if (space := fields.get("space", SPACES[0])).lower() not in SPACES:
        raise InputError(path, expected=f"one of the spaces {', '.join(SPACES[:3])}", found=f"space: {space}")
    kinds = fields.get("kinds", "").lower().split()
    if any(kind not in KINDS for kind in kinds[:3]):
        expected = "a 3-D volume with one value per voxel"
        raise InputError(path, expected=expected, found=f"axes of the kinds {' '.join(kinds)}")
    for name in ("space units", "units"):
        units = re.findall(r'"([^"]*)"', text := fields.get(name, ""))
        if (text and not units) or any(unit not in MILLIMETRES for unit in units[:3]):
            hint = "write the spacing and the origin in mm"
            raise InputError(path, expected="lengths in mm", found=f"{name}: {text}", hint=hint)
    if "spacings" in fields:  # NrrdIO takes NaN for a spacing that is not known, and ITK then takes 1 mm
        lengths = " ".join(fields["spacings"].split()[:3])
        check_spacing(path, parse_numbers(path, "spacings", lengths, count=3))
    elif fields.keys() & {"axis maxs", "axismaxs"}:
        raise unsupported(path, "NRRD with axis maxs instead of spacings")


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
