"""Reading of headers, for all formats: lines of text, sizes and numbers, and the error for unsupported variants."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pantherseg.errors import InputError

MAX_HEADER_BYTES = 1 << 20
# ITK copies the lines of a header to buffers of fixed sizes.
MAX_LINE_BYTES = 1 << 15
# Python's float() and int() also take 1_000, infinity and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE_NUMBER = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True)
class Header:
    """What a file's header states: size in voxels and spacing in mm along (x, y, z, ...); see ItkReader.

    assumed: what ITK takes for granted because the header does not state it, as a sentence.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    assumed: str = ""


def assumed_geometry(*, has_spacing: bool, has_direction: bool) -> str:
    """Return what is assumed about a volume whose header does not state its spacing or its orientation."""
    spacing = "" if has_spacing else "no spacing, so 1 mm was assumed"
    direction = "" if has_direction else "no orientation, so LPS was assumed"
    missing = " and ".join(filter(None, (spacing, direction)))
    return f"the header states {missing}" if missing else ""


def unsupported(path: Path, variant: str) -> InputError:
    """Return the error for a valid variant of a format that this package does not read."""
    hint = "convert it, for example with SimpleITK or 3D Slicer"
    return InputError(path, f"{variant} is not supported", hint=hint)


def header_lines(path: Path, form: str) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a text header without their line feeds, and the offset in the file behind each line.

    Raises InputError for a line that is not part of a header of the format `form`, and for a line or a header that is
    too long.
    """
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    offset = 0
    for line in BytesIO(head):
        offset += len(line)
        if b"\0" in line:
            raise bad_line(path, form, line)
        if len(line) > MAX_LINE_BYTES:
            expected, found = f"lines of at most {MAX_LINE_BYTES} bytes in a {form} header", f"{line[:40]!r} ..."
            raise InputError(path, expected=expected, found=found)
        if offset >= MAX_HEADER_BYTES:
            expected = f"a {form} header of less than {MAX_HEADER_BYTES} bytes"
            raise InputError(path, expected=expected, found="a longer one")
        yield line.removesuffix(b"\n"), offset


def bad_line(path: Path, form: str, line: bytes) -> InputError:
    """Return the error for a line that does not belong in a header of the format `form`."""
    hint = "the suffix of the file must be that of its format"
    return InputError(path, expected=f"a {form} header", found=f"the line {line[:40]!r}", hint=hint)


def parse_size(lengths: str, axes: str) -> tuple[int, ...] | None:
    """Return the size in a header's text, or None unless it has one whole number for each of `axes` axes."""
    words = lengths.split()
    if not words or not all(map(WHOLE_NUMBER.fullmatch, [axes, *words])) or len(words) != int(axes):
        return None
    return tuple(map(int, words))


def parse_numbers(path: Path, field: str, text: str, *, count: int) -> tuple[float, ...]:
    """Return the numbers in a header's field. Raises InputError for any other text, which ITK would read as zero."""
    words = text.split()
    numbers = tuple(float(word) for word in words if NUMBER.fullmatch(word))
    if not len(numbers) == len(words) == count or not all(map(math.isfinite, numbers)):
        raise InputError(path, expected=f"{count} finite numbers as {field}", found=text or "an empty field")
    return numbers
