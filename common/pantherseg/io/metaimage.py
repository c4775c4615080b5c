"""MetaImage: .mha, and .mhd with its voxels in one file beside it.

MetaIO, by which ITK reads this format, trusts the header: a size that does not fit the voxels, or a field given twice,
makes it write beyond its buffers. Only a header that can be read in one way is accepted.
"""

from __future__ import annotations

import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.header import WHOLE_NUMBER, Header, bad_line, header_lines, parse_numbers, parse_size, unsupported
from pantherseg.io.limits import DAMAGED, check_size, check_spacing
from pantherseg.io.streams import inflated_size

BYTES = {1: "CHAR UCHAR", 2: "SHORT USHORT", 4: "INT UINT LONG ULONG FLOAT", 8: "LONG_LONG ULONG_LONG DOUBLE"}
ELEMENT_BYTES = {f"MET_{name}": size for size, names in BYTES.items() for name in names.split()}
REQUIRED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
# Other names of a field; where both are given, MetaIO takes the last one.
SYNONYMS = {
    **dict.fromkeys(("Position", "Origin"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
OPTIONAL = (
    *("ElementSpacing", "ElementSize", "CenterOfRotation", "HeaderSize", "ElementNumberOfChannels", "BinaryData"),
    *("CompressedData", "CompressedDataSize", *SYNONYMS, *SYNONYMS.values()),
)
SPELLINGS = {name.lower(): name for name in (*REQUIRED, *OPTIONAL)}
MAX_NAME_BYTES = 256


def check_metaimage(path: Path) -> Header:
    """Check the header, and that the voxels are as many as it states. Raises InputError and OSError."""
    fields, offset = _read_fields(path)
    _check_variant(path, fields)
    size = parse_size(fields.get("DimSize", ""), fields.get("NDims", ""))
    element = ELEMENT_BYTES.get(fields.get("ElementType", "").upper().removesuffix("_ARRAY"))
    if size is None or element is None:
        found = ", ".join(f"{name} = {fields[name]}" for name in REQUIRED if name in fields)
        raise InputError(path, expected=f"a MetaImage header with {', '.join(REQUIRED)}", found=found)
    volume_bytes = check_size(path, size, voxel_bytes=element)
    spacing = _check_geometry(path, fields, axes=len(size))
    local = fields["ElementDataFile"].upper() == "LOCAL"
    data, start = (path, offset) if local else (_data_file(path, fields["ElementDataFile"]), 0)
    _check_voxels(path, fields, data, start, expected=volume_bytes)
    return Header(size, spacing)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, by one name each, and the offset of what follows the header."""
    fields: dict[str, str] = {}
    for line, offset in header_lines(path, "MetaImage"):
        name, *value = re.split(rb"[=:]", line, maxsplit=1)
        if not value or len(name) > MAX_NAME_BYTES:
            raise bad_line(path, "MetaImage", line)
        text = name.decode("latin-1").strip()
        key = SYNONYMS.get(text, text)
        if key in fields:
            raise InputError(path, expected=f"{key} once in the header", found=f"it again as {text}")
        if text != (spelling := SPELLINGS.get(text.lower(), text)):  # ITK would ignore the field
            raise InputError(path, expected=f"the field name {spelling}", found=text)
        fields[key] = value[0].decode("latin-1").strip()
        if key == "ElementDataFile":
            return fields, offset
    raise InputError(path, "the MetaImage header does not end with ElementDataFile", hint=DAMAGED)


def _check_variant(path: Path, fields: dict[str, str]) -> None:
    """Raise InputError for what a MetaImage may be by its definition, but no common tool writes."""
    data_file, channels = fields["ElementDataFile"], fields.get("ElementNumberOfChannels", "1")
    if not _is_true(fields, "BinaryData", "True"):
        raise unsupported(path, "MetaImage with voxels as text (BinaryData = False)")
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise unsupported(path, f"MetaImage with its slices in separate files (ElementDataFile = {data_file})")
    if fields.get("HeaderSize", "0") != "0":
        raise unsupported(path, f"MetaImage with HeaderSize = {fields['HeaderSize']}")
    if channels != "1":
        raise unsupported(path, f"MetaImage with more than one value per voxel (ElementNumberOfChannels = {channels})")


def _check_geometry(path: Path, fields: dict[str, str], *, axes: int) -> tuple[float, ...]:
    """Return the spacing in mm along (x, y, z, ...)."""
    counts = dict.fromkeys(("ElementSpacing", "ElementSize", "Offset", "CenterOfRotation"), axes)
    counts["TransformMatrix"] = axes**2
    numbers = {
        key: parse_numbers(path, key, fields[key], count=count) for key, count in counts.items() if key in fields
    }
    size = numbers.get("ElementSize", (1.0,) * axes)
    check_spacing(path, size)
    spacing = numbers.get("ElementSpacing", size)
    check_spacing(path, spacing)
    return spacing


def _check_voxels(path: Path, fields: dict[str, str], data: Path, start: int, *, expected: int) -> None:
    """Check that a file holds `expected` bytes of voxels from `start` on."""
    found = data.stat().st_size - start
    compressed = _is_true(fields, "CompressedData", "False")
    if compressed:
        stored = _compressed_bytes(path, fields, available=found, local=data == path)
        found = inflated_size(path, data, start, stored=stored, limit=expected)
    if found < expected or (compressed and found > expected):
        raise InputError(path, expected=f"{expected} bytes of voxels", found=f"{found} bytes", hint=DAMAGED)


def _compressed_bytes(path: Path, fields: dict[str, str], *, available: int, local: bool) -> int:
    """Return how many bytes ITK inflates. Without their number, it begins at the file's start, header included."""
    text = fields.get("CompressedDataSize", "")
    if "CompressedDataSize" not in fields and not local:
        return available
    stored = int(text) if WHOLE_NUMBER.fullmatch(text) else 0
    if stored == 0:
        raise InputError(path, expected="a number of bytes as CompressedDataSize", found=text or "none")
    if stored > available:
        raise InputError(path, expected=f"{stored} compressed bytes", found=f"{available} bytes", hint=DAMAGED)
    return stored


def _data_file(path: Path, name: str) -> Path:
    """Return the file with the voxels, which must be in the header's own folder."""
    # MetaIO takes the bytes of the name as they are: with other letters than ASCII's they may be another file's.
    if not name.isascii() or not name.isprintable() or "\\" in name or Path(name).name != name or name in (".", ".."):
        raise InputError(path, expected="a data file in the same folder", found=name)
    data = path.parent / name
    if not data.is_file():
        raise InputError(path, expected=f"the data file {name} in the same folder", found="no such file")
    return data


def _is_true(fields: dict[str, str], key: str, default: str) -> bool:
    return fields.get(key, default)[:1] in ("T", "t", "1")  # as MetaIO reads it
