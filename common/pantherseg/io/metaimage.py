"""MetaImage: .mha, and .mhd with its voxels in one file beside it.

MetaIO, by which ITK reads this format, trusts the header: a size that does not fit the voxels, a long text, or a field
given twice with different values makes it write beyond its buffers. Only a header that can be read in one way is
accepted.
"""

from __future__ import annotations

import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.header import (
    NUMBER,
    WHOLE_NUMBER,
    Header,
    assumed_geometry,
    bad_line,
    header_lines,
    parse_numbers,
    parse_size,
    unsupported,
)
from pantherseg.io.limits import DAMAGED, MAX_VOLUME_BYTES, check_size, check_spacing
from pantherseg.io.streams import inflated_size

BYTES = {1: "CHAR UCHAR", 2: "SHORT USHORT", 4: "INT UINT LONG ULONG FLOAT", 8: "LONG_LONG ULONG_LONG DOUBLE"}
ELEMENT_BYTES = {f"MET_{name}": size for size, names in BYTES.items() for name in names.split()}
REQUIRED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
# Other names of a field. Tools write several of them; MetaIO takes one or the other.
SYNONYMS = {
    **dict.fromkeys(("Position", "Origin", "ImagePosition"), "Offset"),
    **dict.fromkeys(("Rotation", "Orientation"), "TransformMatrix"),
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
LOGICAL = ("BinaryData", "CompressedData", "BinaryDataByteOrderMSB")
OPTIONAL = (
    *("ElementSpacing", "ElementSize", "CenterOfRotation", "HeaderSize", "ElementNumberOfChannels", "DistanceUnits"),
    *("CompressedDataSize", *LOGICAL, *SYNONYMS, *SYNONYMS.values()),
)
SPELLINGS = {name.lower(): name for name in (*REQUIRED, *OPTIONAL)}
# Their texts are copied to buffers of 255 bytes, as is any field's name.
TEXTS = ("ObjectType", "ObjectSubType", "TransformType", "Name", "Comment", "AcquisitionDate", "Modality")
MAX_TEXT_BYTES = 254
# MetaIO's names for millimetres, and for a unit that is not known.
MILLIMETRES = ("mm", "?", "")


def check_metaimage(path: Path, *, voxels: bool = True) -> Header:
    """Check the header and, with `voxels`, that these are as many as it states. Raises InputError and OSError."""
    fields, offset = _read_fields(path)
    _check_variant(path, fields)
    size = parse_size(fields.get("DimSize", ""), fields.get("NDims", ""))
    element = ELEMENT_BYTES.get(fields.get("ElementType", "").upper().removesuffix("_ARRAY"))
    if size is None or element is None:
        found = ", ".join(f"{name} = {fields[name]}" for name in REQUIRED if name in fields)
        raise InputError(path, expected=f"a MetaImage header with {', '.join(REQUIRED)}", found=found)
    volume_bytes = check_size(path, size, voxel_bytes=element)
    spacing = _check_geometry(path, fields, axes=len(size))
    if voxels:
        local = fields["ElementDataFile"].upper() == "LOCAL"
        data, start = (path, offset) if local else (_data_file(path, fields["ElementDataFile"]), 0)
        start = _start_of_voxels(path, fields, data, start, expected=volume_bytes)
        _check_voxels(path, fields, data, start, expected=volume_bytes)
    has_spacing = bool(fields.keys() & {"ElementSpacing", "ElementSize"})
    return Header(size, spacing, assumed_geometry(has_spacing=has_spacing, has_direction="TransformMatrix" in fields))


def voxel_file(path: Path) -> Path:
    """Return the file with the voxels: the header's own, or one beside it. Raises InputError and OSError."""
    name = _read_fields(path)[0]["ElementDataFile"]
    return path if name.upper() == "LOCAL" else _data_file(path, name)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, by one name each, and the offset of what follows the header."""
    fields: dict[str, str] = {}
    for line, offset in header_lines(path, "MetaImage"):
        name, *value = re.split(rb"[=:]", line, maxsplit=1)
        if not value or len(name) > MAX_TEXT_BYTES:
            raise bad_line(path, "MetaImage", line)
        text, content = name.decode("latin-1").strip(), value[0].decode("latin-1").strip()
        key = SYNONYMS.get(text, text)
        if text != (spelling := SPELLINGS.get(text.lower(), text)):  # ITK would ignore the field
            raise InputError(path, expected=f"the field name {spelling}", found=text)
        if key in (*SPELLINGS.values(), *TEXTS) and len(value[0]) > MAX_TEXT_BYTES:
            expected = f"at most {MAX_TEXT_BYTES} bytes in the field {text}"
            raise InputError(path, expected=expected, found=f"{len(value[0])} bytes")
        if key in fields and _meaning(key, fields[key]) != _meaning(key, content):
            found = f"{key} = {fields[key]} and {text} = {content}"
            raise InputError(path, expected=f"one value of {key} in the header", found=found)
        fields[key] = content
        if key == "ElementDataFile":
            return fields, offset
    raise InputError(path, "the MetaImage header does not end with ElementDataFile", hint=DAMAGED)


def _meaning(key: str, text: str) -> bool | tuple[float | str, ...]:
    """Return what a field's text means, so that two texts can be compared."""
    if key in LOGICAL:
        return _is_true(text)
    return tuple(float(word) if NUMBER.fullmatch(word) else word for word in text.split())


def _check_variant(path: Path, fields: dict[str, str]) -> None:
    """Raise InputError for what a MetaImage may be by its definition, but no common tool writes."""
    data_file, channels = fields["ElementDataFile"], fields.get("ElementNumberOfChannels", "1")
    if not _is_true(fields.get("BinaryData", "True")):
        raise unsupported(path, "MetaImage with voxels as text (BinaryData = False)")
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise unsupported(path, f"MetaImage with its slices in separate files (ElementDataFile = {data_file})")
    if channels != "1":
        raise unsupported(path, f"MetaImage with more than one value per voxel (ElementNumberOfChannels = {channels})")
    if (unit := fields.get("DistanceUnits", "mm")) not in MILLIMETRES:  # ITK would ignore it
        hint = "write the spacing and the offset in mm"
        raise InputError(path, expected="DistanceUnits = mm", found=f"DistanceUnits = {unit}", hint=hint)


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


def _start_of_voxels(path: Path, fields: dict[str, str], data: Path, start: int, *, expected: int) -> int:
    """Return the offset of the voxels in their file: `start`, or where HeaderSize says.

    HeaderSize counts from the start of the file; with -1 the voxels are its last bytes.
    """
    text = fields.get("HeaderSize", "0")
    if text == "0":
        return start
    if _is_compressed(fields):
        raise unsupported(path, f"compressed MetaImage with HeaderSize = {text}")
    if text == "-1":
        return max(start, data.stat().st_size - expected)
    skipped = int(text) if WHOLE_NUMBER.fullmatch(text) else -1
    if not start <= skipped <= MAX_VOLUME_BYTES:  # MetaIO keeps it in 32 bits
        limits = f"-1, 0 or a number of bytes between {start} and {MAX_VOLUME_BYTES}"
        raise InputError(path, expected=f"a HeaderSize of {limits}", found=f"HeaderSize = {text}")
    return skipped


def _check_voxels(path: Path, fields: dict[str, str], data: Path, start: int, *, expected: int) -> None:
    """Check that a file holds `expected` bytes of voxels from `start` on."""
    found = max(0, data.stat().st_size - start)
    compressed = _is_compressed(fields)
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
    if not name.isascii():
        hint = "rename both files, or write the volume as .mha"
        raise InputError(path, "the name of the file with the voxels has other letters than ASCII's", hint=hint)
    if not name.isprintable() or "\\" in name or Path(name).name != name or name in (".", ".."):
        raise InputError(path, expected="a data file in the same folder", found=name)
    data = path.parent / name
    if not data.is_file():
        raise InputError(path, expected=f"the data file {name} in the same folder", found="no such file")
    return data


def _is_compressed(fields: dict[str, str]) -> bool:
    return _is_true(fields.get("CompressedData", "False"))


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")  # as MetaIO reads it
