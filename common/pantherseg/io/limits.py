"""Limits of the volumes that can be read.

The limits are far beyond any scan of a patient. Within them, reading needs at most four times MAX_VOLUME_BYTES of
memory, and sums of squared voxels stay within float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.volume import Grid, Shape, Triple

# As many as NIfTI has.
MAX_AXES = 7
MAX_VOXELS = 1 << 28
MAX_VOLUME_BYTES = 1 << 30
# Along one axis: resampling by splines keeps matrices of this size squared.
MAX_SIDE_VOXELS = 10_000
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
# Further from zero, a position loses the digits that tell one voxel from the next.
MAX_ORIGIN_MM = 1e6
# Networks normalise by sums of squares, which overflow float32 beyond this. In the unit of the voxels.
LARGEST_VALUE = 1e15
# Of a volume's voxels. NaN is common outside of a region that was cut out; a file with many infinite or too large
# voxels is damaged or read in the wrong type.
MAX_NAN_FRACTION = 0.99
MAX_INFINITE_FRACTION = 0.01
# How far a label may lie from a whole number: some tools write masks as rounded decimals.
LABEL_TOLERANCE = 1e-3

CHUNK_BYTES = 1 << 20
DAMAGED = "the file is truncated or damaged, copy it again"


def check_size(path: Path, size: Sequence[int], *, voxel_bytes: int) -> int:
    """Return the bytes of a volume of a size along (x, y, z, ...); axes after the third must have length 1.

    Raises InputError beyond the limits.
    """
    text = "x".join(map(str, size))
    if not 3 <= len(size) <= MAX_AXES or any(length != 1 for length in size[3:]):
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


def check_spacing(path: str | Path, spacing: Sequence[float], *, hint: str = "") -> None:
    """Raise InputError for a spacing in mm that is not positive, or beyond the limits."""
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):  # also false for NaN
        expected = f"a spacing between {MIN_SPACING_MM:g} and {MAX_SPACING_MM:g} mm"
        raise InputError(path, expected=expected, found=" ".join(f"{mm:g}" for mm in spacing), hint=hint)


def check_origin(path: Path, origin: Sequence[float]) -> None:
    """Raise InputError for an origin (x, y, z) in mm that is NaN, or beyond the limit."""
    if not all(abs(mm) <= MAX_ORIGIN_MM for mm in origin):  # also false for NaN
        expected = f"an origin within {MAX_ORIGIN_MM:g} mm of zero"
        raise InputError(path, expected=expected, found=f"{tuple(origin)} (x, y, z)")


def check_resampled(shape: Shape, spacing: Triple) -> None:
    """Raise InputError for a volume that would be too large at another spacing, both (z, y, x)."""
    if math.prod(shape) > MAX_VOXELS or max(shape) > MAX_SIDE_VOXELS:
        expected = f"at most {MAX_VOXELS} voxels, {MAX_SIDE_VOXELS} along each axis, at the model's spacing"
        raise InputError("volume", expected=expected, found=Grid(shape, spacing).describe())
