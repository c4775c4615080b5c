"""Limits of the volumes that can be read, and checks of the numbers in a header.

The limits are far beyond any scan of a patient. Within them, reading needs at most four times MAX_VOLUME_BYTES of
memory, and sums of squared voxels stay within float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.volume import Grid, Shape, Triple

MAX_VOXELS = 1 << 28
MAX_VOLUME_BYTES = 1 << 30
# Along one axis: resampling by splines keeps matrices of this size squared.
MAX_SIDE_VOXELS = 10_000
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
# Further from zero, a position loses the digits that tell one voxel from the next.
MAX_ORIGIN_MM = 1e6
# Networks normalise by sums of squares, which overflow float32 beyond this. In the unit of the voxels.
LARGEST_VALUE = 1e15
# Of a volume's voxels.
MAX_NON_FINITE_FRACTION = 0.01

MAX_HEADER_BYTES = 1 << 16
# ITK copies the lines of a header to buffers of fixed sizes.
MAX_LINE_BYTES = 1 << 13
CHUNK_BYTES = 1 << 20
DAMAGED = "the file is truncated or damaged, copy it again"
# Python's float() and int() also take 1_000, infinity and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE_NUMBER = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True)
class Header:
    """What a file's header states: size in voxels and spacing in mm along (x, y, z, ...); see ItkReader."""

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None


def unsupported(path: Path, variant: str) -> InputError:
    """Return the error for a variant of a format that can be told by its header but is not read."""
    hint = "convert it, for example with SimpleITK or 3D Slicer"
    return InputError(path, f"{variant} is not supported", hint=hint)


def parse_size(lengths: str, axes: str) -> tuple[int, ...] | None:
    """Return the size that a header's text gives, None unless it has a whole number for each of `axes` axes."""
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


def check_size(path: Path, size: Sequence[int], *, voxel_bytes: int) -> int:
    """Return the bytes of a volume of a size along (x, y, z, ...). Raises InputError beyond the limits."""
    text = "x".join(map(str, size))
    if len(size) != 3 and not (len(size) == 4 and size[3] == 1):
        found = f"{len(size)} dimensions, size {text} (x, y, z, ...)"
        raise InputError(path, expected="a 3-D volume with one value per voxel", found=found)
    voxels = math.prod(size)
    if min(size) < 1:
        raise InputError(path, expected="at least one voxel along each axis", found=f"size {text}")
    if max(size) > MAX_SIDE_VOXELS:
        raise InputError(path, expected=f"at most {MAX_SIDE_VOXELS} voxels along each axis", found=f"size {text}")
    if voxels > MAX_VOXELS or voxels * voxel_bytes > MAX_VOLUME_BYTES:
        limit = f"at most {MAX_VOXELS} voxels and {MAX_VOLUME_BYTES >> 20} MiB"
        raise InputError(path, expected=limit, found=f"{voxels * voxel_bytes >> 20} MiB, size {text}")
    return voxels * voxel_bytes


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Raise InputError for a spacing in mm that is not positive, or beyond the limits."""
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):  # also false for NaN
        expected = f"a spacing between {MIN_SPACING_MM:g} and {MAX_SPACING_MM:g} mm"
        raise InputError(path, expected=expected, found=" ".join(f"{mm:g}" for mm in spacing))


def check_resampled(shape: Shape, spacing: Triple) -> None:
    """Raise InputError for a volume that would be too large at another spacing, both (z, y, x)."""
    if math.prod(shape) > MAX_VOXELS or max(shape) > MAX_SIDE_VOXELS:
        expected = f"at most {MAX_VOXELS} voxels, {MAX_SIDE_VOXELS} along each axis, at the model's spacing"
        raise InputError("volume", expected=expected, found=Grid(shape, spacing).describe())
