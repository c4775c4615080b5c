"""MetaImage: .mha, and .mhd with its voxels in files beside it.

MetaIO, which reads them for ITK, trusts the header: a size that does not fit, a key given twice or a pattern of file
names with odd letters makes it write beyond its buffers. Only headers that can be read in one way pass here.
"""

from __future__ import annotations

import re
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.limits import (
    DAMAGED,
    MAX_HEADER_BYTES,
    MAX_LINE_BYTES,
    Claim,
    check_finite,
    check_size,
    check_spacing,
    size_text,
    whole_number,
)
from pantherseg.io.streams import inflated_size

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
MAX_DIMENSIONS, MAX_CHANNELS = 4, 64
MAX_KEY_BYTES = 256
# Names of one field; MetaIO heeds the last one that it meets.
SAME = (
    ("offset", "position", "origin"),
    ("transformmatrix", "rotation", "orientation"),
    ("binarydatabyteordermsb", "elementbyteordermsb"),
)
# <name>%<digits>d<name> <first> <last> <step>: MetaIO gives the first word to printf.
PATTERN = re.compile(
    r"(?P<name>[^%\s]*%0?\d?d[^%\s]*) (?P<first>\d{1,5}) (?P<last>\d{1,5}) (?P<step>\d{1,5})", re.ASCII
)
LIST = re.compile(r"LIST( 2)?")

Header = dict[str, str]


def check_metaimage(path: Path) -> Claim:
    """Check a header and that the voxels behind it are as many as it says. Raises InputError."""
    header, offset = _read_header(path)
    size, element_bytes = _layout(path, header)
    spacing = _check_geometry(path, header, axes=len(size))
    expected = check_size(path, size, voxel_bytes=element_bytes)
    name = header["elementdatafile"]
    if name.upper() == "LOCAL":
        _check_voxels(path, header, path, offset, size=size, expected=expected)
    elif LIST.match(name.upper()) or "%" in name:
        _check_slices(path, header, offset, size=size, expected=expected)
    else:
        _check_voxels(path, header, _beside(path, name), 0, size=size, expected=expected)
    return Claim(size, spacing)


def _read_header(path: Path) -> tuple[Header, int]:
    """Return the header's fields, keys in lower case, and the offset of what follows it."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    header: Header = {}
    offset = 0
    while "elementdatafile" not in header:
        end = head.find(b"\n", offset)
        line = head[offset : end if end >= 0 else None]
        key, *value = re.split(rb"[=:]", line, maxsplit=1)
        if not value or len(key) > MAX_KEY_BYTES or len(line) > MAX_LINE_BYTES or b"\0" in line:
            raise InputError(path, expected="a MetaImage header", found=f"the line {line[:40]!r}")
        name = key.decode("latin-1").strip().lower()
        if name in header:
            raise InputError(path, expected="each field of the header once", found=f"{name} twice")
        header[name] = value[0].decode("latin-1").strip()
        if end < 0:
            break
        offset = end + 1
    for names in SAME:
        if len(twice := [name for name in names if name in header]) > 1:
            raise InputError(path, expected="each field of the header once", found=" and ".join(twice))
    return header, offset


def _layout(path: Path, header: Header) -> tuple[tuple[int, ...], int]:
    """Return the size along (x, y, z, ...) and the bytes of a voxel."""
    size = [whole_number(text) for text in header.get("dimsize", "").split()]
    axes = whole_number(header.get("ndims", ""))
    channels = whole_number(header.get("elementnumberofchannels", "1"))
    element = ELEMENT_BYTES.get(header.get("elementtype", "").upper().removesuffix("_ARRAY"))
    known = tuple(length for length in size if length is not None)
    complete = "elementdatafile" in header and 1 <= len(known) == len(size) == axes
    if not complete or not element or not channels:
        fields = ("NDims", "DimSize", "ElementType", "ElementDataFile")
        found = (f"{name} = {header[name.lower()]}" if name.lower() in header else f"no {name}" for name in fields)
        raise InputError(path, expected="a complete MetaImage header", found=", ".join(found))
    if len(known) > MAX_DIMENSIONS:
        raise InputError(path, expected="a 3-D volume", found=f"{len(known)} dimensions")
    if channels > MAX_CHANNELS:
        raise InputError(path, expected="one real number a voxel", found=f"{channels}")
    return known, element * channels


def _check_geometry(path: Path, header: Header, *, axes: int) -> tuple[float, ...]:
    """Return the spacing along (x, y, z, ...)."""
    default = "1 " * axes
    spacing = header.get("elementspacing", header.get("elementsize", default)).split()
    if len(spacing) != axes:
        raise InputError(path, expected=f"{axes} spacings in mm", found=" ".join(spacing) or "none")
    counts = {"Offset": axes, "Position": axes, "Origin": axes}
    counts |= {"TransformMatrix": axes**2, "Rotation": axes**2, "Orientation": axes**2, "CenterOfRotation": axes}
    for key, count in counts.items():
        if (text := header.get(key.lower())) is None:
            continue
        if len(check_finite(path, key, text.split())) != count:
            raise InputError(path, expected=f"{count} numbers as {key}", found=text or "none")
    if "elementsize" in header:
        check_spacing(path, header["elementsize"].split())
    return check_spacing(path, spacing)


def _check_voxels(path: Path, header: Header, data: Path, start: int, *, size: tuple[int, ...], expected: int) -> None:
    """Check that one file holds the voxels, from `start` on."""
    if header.get("headersize", "0") != "0":
        start = _skipped(path, header)
    available = data.stat().st_size - start
    if not _is_true(header, "binarydata", "True"):
        _check_text(path, data, start, size=size)
        return
    if not _is_true(header, "compresseddata", "False"):
        if available < expected:
            raise _too_few(path, size, expected, max(0, available))
        return
    stored = _compressed_size(path, header, available=available, local=data == path)
    found = inflated_size(path, data, start, stored=stored, limit=expected)
    if found != expected:
        raise _too_few(path, size, expected, found)


def _skipped(path: Path, header: Header) -> int:
    """Return how many bytes stand before the voxels; MetaIO counts from the file's start, whatever lies there."""
    text = header["headersize"]
    skipped = whole_number(text)
    if skipped is None or _is_true(header, "compresseddata", "False") or header["elementdatafile"].upper() == "LOCAL":
        raise InputError(path, expected="no HeaderSize", found=text or "none")
    return skipped


def _compressed_size(path: Path, header: Header, *, available: int, local: bool) -> int:
    """Return how many bytes ITK inflates; without the size it takes a file from its start, header included."""
    text = header.get("compresseddatasize", "none")
    stored = whole_number(text) or 0
    if not stored and local:
        raise InputError(path, expected="CompressedDataSize in the header", found=text)
    if not stored and text != "none":
        raise InputError(path, expected="a number of bytes as CompressedDataSize", found=text)
    if stored > available:
        raise InputError(path, expected=f"{stored} bytes of compressed voxels", found=f"{available}", hint=DAMAGED)
    return stored or available


def _check_text(path: Path, data: Path, start: int, *, size: tuple[int, ...]) -> None:
    """Check voxels that are written as numbers in text."""
    voxels = check_size(path, size, voxel_bytes=1)
    with data.open("rb") as file:
        file.seek(start)
        words = file.read(32 * voxels).split(maxsplit=voxels)[:voxels]
    numbers = check_finite(path, "voxels", [word.decode("latin-1") for word in words])
    if len(numbers) < voxels:
        raise InputError(path, expected=f"{voxels} numbers", found=str(len(numbers)), hint=DAMAGED)


def _check_slices(path: Path, header: Header, offset: int, *, size: tuple[int, ...], expected: int) -> None:
    """Check slices in files of their own: listed behind the header, or named by a pattern."""
    text = header["elementdatafile"]
    if LIST.fullmatch(text):
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read(MAX_HEADER_BYTES).decode("latin-1").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    elif pattern := PATTERN.fullmatch(text):
        first, last, step = (int(pattern[name]) for name in ("first", "last", "step"))
        names = [pattern["name"] % number for number in range(first, last + 1, max(step, 1))][: size[-1] + 1]
    else:
        raise InputError(path, expected="LIST, or a pattern such as slice%03d.raw 1 20 1", found=text)
    if len(names) != size[-1]:
        raise InputError(path, expected=f"{size[-1]} files of a slice each", found=str(len(names)))
    if _is_true(header, "compresseddata", "False") or not _is_true(header, "binarydata", "True"):
        raise InputError(path, expected="slices as they are", found="compressed slices, or slices as text")
    if header.get("headersize", "0") != "0":
        raise InputError(path, expected="no HeaderSize", found=header["headersize"])
    for name in names:
        data = _beside(path, name)
        if (found := data.stat().st_size) < expected // size[-1]:
            raise InputError(data, expected=f"{expected // size[-1]} bytes of voxels", found=str(found), hint=DAMAGED)


def _beside(path: Path, name: str) -> Path:
    """Return a file in the header's own folder."""
    # MetaIO takes the name's bytes; other letters than ASCII's would be another file's, or none.
    if not name.isascii() or not name.isprintable() or "\\" in name or Path(name).name != name or name in (".", ".."):
        raise InputError(path, expected="its voxels in a file beside it", found=name)
    data = path.parent / name
    if not data.is_file():
        raise InputError(path, expected="its voxels in a file beside it", found=f"no {name}")
    return data


def _is_true(header: Header, key: str, default: str) -> bool:
    return header.get(key, default)[:1] in ("T", "t", "1")  # as MetaIO reads it


def _too_few(path: Path, size: tuple[int, ...], expected: int, found: int) -> InputError:
    expectation = f"{expected} bytes of voxels for a {size_text(size)} volume"
    return InputError(path, expected=expectation, found=str(found), hint=DAMAGED)
