"""Volumes on their grids: crop, uncrop, boxes. Reading and writing is in `io`.

Arrays, shapes, spacings and boxes are in the order (z, y, x). Origin and direction are ITK's: physical (x, y, z) in
mm (LPS), the direction's columns belonging to the index axes x, y, z. No orientation is ever assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

# Relative to a voxel; headers are written with few digits.
GRID_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Box:
    """A box of voxels: start inclusive, stop exclusive, both (z, y, x)."""

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        if not all(0 <= a < b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box needs 0 <= start < stop in each axis, got {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """Return the box that holds every voxel of a volume of this shape."""
        return cls((0, 0, 0), shape)

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Box | None:
        """Return the smallest box with every true voxel of a mask (z, y, x) inside it; None if there is none."""
        axes = ((1, 2), (0, 2), (0, 1))
        hits = [np.flatnonzero(mask.any(axis=other)) for other in axes]
        if not len(hits[0]):
            return None
        return cls(as_shape(h[0] for h in hits), as_shape(h[-1] + 1 for h in hits))

    @property
    def shape(self) -> Shape:
        """Voxels along (z, y, x)."""
        return as_shape(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array (z, y, x)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def expanded(self, margin_mm: float, grid: Grid) -> Box:
        """Return the box grown by at least `margin_mm` on each side, within the grid."""
        margin = np.ceil(margin_mm / np.array(grid.spacing) - 1e-6).astype(int)
        start = np.maximum(np.array(self.start) - margin, 0)
        stop = np.minimum(np.array(self.stop) + margin, grid.shape)
        return Box(as_shape(start), as_shape(stop))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie in space.

    shape: (z, y, x); spacing: mm along (z, y, x); origin: mm (x, y, z) of voxel 0; direction: 3 rows (x, y, z), its
    columns being the unit vectors of the index axes x, y, z.
    """

    shape: Shape
    spacing: Triple
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(np.prod(self.spacing))

    def describe(self) -> str:
        """Return size and spacing for a log line."""
        size, spacing = "x".join(map(str, self.shape)), "x".join(f"{mm:.4g}" for mm in self.spacing)
        return f"{size} voxels at {spacing} mm (z, y, x)"

    def crop(self, box: Box) -> Grid:
        """Return the grid of the voxels in a box."""
        start_xyz = np.array(box.start[::-1]) * np.array(self.spacing[::-1])
        origin = np.array(self.origin) + np.array(self.direction) @ start_xyz
        return replace(self, shape=box.shape, origin=as_triple(origin))

    def box_from(self, other: Grid, box: Box) -> Box:
        """Return the smallest box of this grid's voxels that holds a box of another grid, cut to this grid."""
        corners = np.array(list(itertools.product(*zip(box.start, box.stop, strict=True)))) - 0.5
        world = np.array(other.origin) + (corners[:, ::-1] * other.spacing[::-1]) @ np.array(other.direction).T
        index = ((world - self.origin) @ np.array(self.direction) / self.spacing[::-1])[:, ::-1] + 0.5
        start = np.clip(np.floor(index.min(axis=0) + GRID_TOLERANCE), 0, np.array(self.shape) - 1)
        stop = np.clip(np.ceil(index.max(axis=0) - GRID_TOLERANCE), start + 1, self.shape)
        return Box(as_shape(start), as_shape(stop))

    def difference(self, other: Grid) -> str:
        """Return what differs between two grids, or an empty string. Differences below 1e-3 voxels are none."""
        if self.shape != other.shape:
            return f"size {other.shape} (z, y, x) instead of {self.shape}"
        step = GRID_TOLERANCE * min(self.spacing)
        for name, tolerance in (("spacing", step), ("origin", step), ("direction", GRID_TOLERANCE)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(mine, theirs, rtol=0, atol=tolerance):
                return f"{name} {theirs} instead of {mine}"
        return ""


@dataclass(frozen=True)
class Volume:
    """An array (z, y, x) and the grid it lies on."""

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"an array of shape {self.array.shape} does not fit a grid of shape {self.grid.shape}")

    def crop(self, box: Box) -> Volume:
        """Return the voxels in a box, as a view."""
        return Volume(self.array[box.slices], self.grid.crop(box))


def uncrop(array: NDArray[Any], box: Box, shape: Shape) -> NDArray[Any]:
    """Return an array of zeros of `shape` (z, y, x) that holds `array` in `box`."""
    whole = np.zeros(shape, array.dtype)
    whole[box.slices] = array
    return whole


def as_shape(values: Iterable[Any]) -> Shape:
    """Return three whole numbers (z, y, x) as a shape."""
    z, y, x = (int(v) for v in values)
    return z, y, x


def as_triple(values: ArrayLike) -> Triple:
    """Return three numbers as floats."""
    a, b, c = (float(v) for v in np.asarray(values))
    return a, b, c
