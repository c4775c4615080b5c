"""What a volume may be, and how much of a file is looked at to find out.

The limits are far from any scan of a patient. Within them reading takes at most MAX_VOXEL_BYTES four times over, and
sums of squares stay within float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.volume import Grid, Shape, Triple

MAX_VOXELS = 1 << 28
MAX_VOXEL_BYTES = 1 << 30
# Along one axis; resampling by splines keeps matrices of this size squared.
MAX_SIDE = 10_000
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
# Beyond, differences of places lose the digits of a voxel.
MAX_ORIGIN_MM = 1e6

MAX_HEADER_BYTES = 1 << 16
# MetaIO and NrrdIO copy lines to buffers of fixed sizes.
MAX_LINE_BYTES = 1 << 13
CHUNK_BYTES = 1 << 20
DAMAGED = "the file is truncated or damaged, copy it again"
# Python's float() and int() take more: 1_000, infinity, digits of any script.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MAX_DIGITS = 12


@dataclass(frozen=True)
class Claim:
    """What a header says: the size along (x, y, z, ...) and, where the format has it in every file, spacing in mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None


def size_text(size: Iterable[int]) -> str:
    """Return a size for an error."""
    return "x".join(map(str, size))


def check_size(path: Path, size: Sequence[int], *, voxel_bytes: int) -> int:
    """Return the bytes of a volume of a size (in voxels, in any order). Raises InputError beyond the limits."""
    voxels = math.prod(size)
    if voxels == 0 or min(size) < 0:
        raise InputError(path, expected="at least one voxel", found=f"size {size_text(size)}")
    if max(size) > MAX_SIDE:
        raise InputError(path, expected=f"at most {MAX_SIDE} voxels a side", found=f"size {size_text(size)}")
    if voxels > MAX_VOXELS or voxels * voxel_bytes > MAX_VOXEL_BYTES:
        limit = f"at most {MAX_VOXELS} voxels and {MAX_VOXEL_BYTES >> 20} MiB"
        raise InputError(path, expected=limit, found=f"{voxels * voxel_bytes >> 20} MiB, size {size_text(size)}")
    return voxels * voxel_bytes


def check_spacing(path: Path, values: Sequence[str] | Sequence[float]) -> tuple[float, ...]:
    """Return spacings in mm. Raises InputError where one is none, or beyond the limits."""
    numbers = _numbers(values)
    if numbers is None or not all(0 < mm < math.inf for mm in numbers):
        raise InputError(path, expected="positive spacing in mm", found=" ".join(map(str, values)))
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in numbers):
        expected = f"spacing between {MIN_SPACING_MM:g} and {MAX_SPACING_MM:g} mm"
        raise InputError(path, expected=expected, found=" ".join(map(str, values)))
    return numbers


def check_finite(path: Path, key: str, values: Sequence[str]) -> tuple[float, ...]:
    """Return the numbers of a header's field. Raises InputError; ITK takes what is no number for zero."""
    numbers = _numbers(values)
    if numbers is None or not all(map(math.isfinite, numbers)):
        raise InputError(path, expected=f"finite numbers as {key}", found=" ".join(values))
    return numbers


def check_origin(path: Path, origin: Sequence[float]) -> None:
    """Check an origin (x, y, z) in mm. Raises InputError where it is not finite, or far beyond any scanner."""
    if not all(map(math.isfinite, origin)):
        raise InputError(path, expected="a finite origin", found=f"{tuple(origin)} (x, y, z)")
    if not all(abs(mm) <= MAX_ORIGIN_MM for mm in origin):
        raise InputError(path, expected=f"an origin within {MAX_ORIGIN_MM:g} mm", found=f"{tuple(origin)} (x, y, z)")


def check_resampled(shape: Shape, spacing: Triple) -> None:
    """Raise InputError where a volume would be too large at another spacing, both (z, y, x)."""
    if math.prod(shape) > MAX_VOXELS or max(shape) > MAX_SIDE:
        expected = f"at most {MAX_VOXELS} voxels, {MAX_SIDE} a side, at the model's spacing"
        raise InputError("volume", expected=expected, found=Grid(shape, spacing).describe())


def whole_number(text: str) -> int | None:
    """Return a number of at least 0 that a header writes in at most MAX_DIGITS digits, None for anything else."""
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > MAX_DIGITS:
        return None
    return int(digits)


def _numbers(values: Sequence[str] | Sequence[float]) -> tuple[float, ...] | None:
    if any(isinstance(value, str) and not NUMBER.fullmatch(value) for value in values):
        return None
    return tuple(map(float, values))
