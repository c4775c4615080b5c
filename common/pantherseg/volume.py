"""Volumes, their grids in space, and boxes of voxels. `io` reads and writes volumes.

Arrays, shapes, spacings and boxes are in the order (z, y, x). Origin and direction follow ITK: physical coordinates
(x, y, z) in mm (LPS), and one column of the direction for each of the index axes x, y, z. A volume may have any
orientation; models have one that volumes are turned to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pantherseg.orientation import NO_TURN, Orientation, Turn, nearest_orientation

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

# In voxels. Headers are often written with few digits.
GRID_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Box:
    """Voxels from `start` up to but not including `stop`, both (z, y, x). Raises ValueError for an empty box."""

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        if not all(0 <= a < b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box needs 0 <= start < stop in each axis, got {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """Return the box of all voxels of a volume of this shape."""
        return cls((0, 0, 0), shape)

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Box | None:
        """Return the smallest box around all true voxels of a mask (z, y, x), or None for an empty mask."""
        start, stop = [0, 0, 0], list(mask.shape)
        # The slabs that are looked at get smaller from axis to axis.
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
            slab = mask[start[0] : stop[0], start[1] : stop[1]]
            hits = np.flatnonzero(slab.any(axis=others))
            if not len(hits):
                return None
            start[axis], stop[axis] = hits[0], hits[-1] + 1
        return cls(as_shape(start), as_shape(stop))

    def joined(self, other: Box) -> Box:
        """Return the smallest box that holds this one and another."""
        return Box(as_shape(map(min, self.start, other.start)), as_shape(map(max, self.stop, other.stop)))

    def common(self, other: Box) -> Box | None:
        """Return the box of the voxels in this one and another, None where there are none."""
        start, stop = np.maximum(self.start, other.start), np.minimum(self.stop, other.stop)
        return Box(as_shape(start), as_shape(stop)) if (start < stop).all() else None

    def within(self, other: Box) -> Box:
        """Return the box with its voxels counted from the first of another box that holds it."""
        return self.moved((-other.start[0], -other.start[1], -other.start[2]))

    def moved(self, by: Shape) -> Box:
        """Return the box so many voxels further along (z, y, x)."""
        return Box(as_shape(np.add(self.start, by)), as_shape(np.add(self.stop, by)))

    @property
    def shape(self) -> Shape:
        """Number of voxels along (z, y, x)."""
        return as_shape(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that index the box in an array (z, y, x)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def expanded(self, margin_mm: float | Triple, grid: Grid) -> Box:
        """Return the box enlarged by at least `margin_mm` (z, y, x) on each side and clipped to the grid."""
        margin = np.ceil(np.array(margin_mm) / grid.spacing - 1e-6).astype(int)
        start = np.maximum(np.array(self.start) - margin, 0)
        stop = np.minimum(np.array(self.stop) + margin, grid.shape)
        return Box(as_shape(start), as_shape(stop))

    def grown(self, extent_mm: float | Triple, grid: Grid) -> Box:
        """Return the box grown about its middle to at least `extent_mm` (z, y, x), or to as much as the grid has.

        At the grid's edge the box is moved inwards instead of clipped.
        """
        wanted = np.ceil(np.array(extent_mm) / grid.spacing - 1e-6)
        more = np.ceil(np.maximum(wanted - self.shape, 0) / 2).astype(int)
        size = np.minimum(np.array(self.shape) + 2 * more, grid.shape)
        start = np.clip(np.array(self.start) - more, 0, np.array(grid.shape) - size)
        return Box(as_shape(start), as_shape(start + size))

    def turned(self, turn: Turn, shape: Shape) -> Box:
        """Return the box of the same voxels after a turn of a volume of a shape (z, y, x)."""
        start, stop = np.array(turn.order(self.start)), np.array(turn.order(self.stop))
        size = np.array(turn.order(shape))
        return Box(
            as_shape(np.where(turn.flipped, size - stop, start)), as_shape(np.where(turn.flipped, size - start, stop))
        )


@dataclass(frozen=True)
class Grid:
    """The position of a volume's voxels in space.

    shape: voxels along (z, y, x). spacing: mm along (z, y, x). origin: centre of the first voxel, mm (x, y, z).
    direction: matrix of three rows (x, y, z), whose columns are the unit vectors of the index axes x, y, z.
    """

    shape: Shape
    spacing: Triple
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm³."""
        return float(np.prod(self.spacing))

    @property
    def orientation(self) -> Orientation:
        """The patient's sides to which the axes run, such as LPS; the nearest ones for an oblique grid."""
        return nearest_orientation(self.direction)

    def turn_to(self, orientation: Orientation) -> Turn:
        """Return the turn to an orientation."""
        return Turn.between(self.orientation, orientation)

    def turned(self, turn: Turn) -> Grid:
        """Return the grid of the same voxels after a turn."""
        # The columns of a direction are in the order (x, y, z), a turn in the order (z, y, x).
        columns = np.array(self.direction)[:, ::-1][:, list(turn.axes)]
        shape, spacing = as_shape(turn.order(self.shape)), as_triple(turn.order(self.spacing))
        last = np.where(turn.flipped, np.subtract(shape, 1) * spacing, 0.0)
        origin = np.array(self.origin) + columns @ last
        direction = (columns * np.where(turn.flipped, -1.0, 1.0))[:, ::-1]
        x, y, z = (as_triple(row) for row in direction)
        return Grid(shape, spacing, as_triple(origin), (x, y, z))

    def describe(self) -> str:
        """Return shape and spacing as text for a log line."""
        size, spacing = "x".join(map(str, self.shape)), "x".join(f"{mm:.4g}" for mm in self.spacing)
        return f"{size} voxels at {spacing} mm (z, y, x)"

    def crop(self, box: Box) -> Grid:
        """Return the grid of the voxels in a box."""
        start_xyz = np.array(box.start[::-1]) * np.array(self.spacing[::-1])
        origin = np.array(self.origin) + np.array(self.direction) @ start_xyz
        return replace(self, shape=box.shape, origin=as_triple(origin))

    def box_from(self, other: Grid, box: Box) -> Box:
        """Return the smallest box of this grid that covers a box of another grid, clipped to this grid."""
        corners = np.array(list(itertools.product(*zip(box.start, box.stop, strict=True)))) - 0.5
        world = np.array(other.origin) + (corners[:, ::-1] * other.spacing[::-1]) @ np.array(other.direction).T
        index = ((world - self.origin) @ np.array(self.direction) / self.spacing[::-1])[:, ::-1] + 0.5
        start = np.clip(np.floor(index.min(axis=0) + GRID_TOLERANCE), 0, np.array(self.shape) - 1)
        stop = np.clip(np.ceil(index.max(axis=0) - GRID_TOLERANCE), start + 1, self.shape)
        return Box(as_shape(start), as_shape(stop))

    def difference(self, other: Grid) -> str:
        """Return how another grid differs from this one, or an empty text if by less than GRID_TOLERANCE."""
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
    """An array (z, y, x) on its grid. Raises ValueError if their shapes differ."""

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"an array of shape {self.array.shape} does not fit a grid of shape {self.grid.shape}")

    def crop(self, box: Box) -> Volume:
        """Return the volume in a box; its array is a view."""
        return Volume(self.array[box.slices], self.grid.crop(box))

    def turned(self, turn: Turn) -> Volume:
        """Return the volume after a turn; its array is a view. Where nothing moves it is the volume itself."""
        return self if turn == NO_TURN else Volume(turn.view(self.array), self.grid.turned(turn))

    def turned_to(self, orientation: Orientation) -> Volume:
        """Return the volume in an orientation."""
        return self.turned(self.grid.turn_to(orientation))


def uncrop(array: NDArray[Any], box: Box, shape: Shape) -> NDArray[Any]:
    """Return an array of `shape` (z, y, x) with `array` in `box` and zeros outside it."""
    whole = np.zeros(shape, array.dtype)
    whole[box.slices] = array
    return whole


def as_shape(values: Iterable[Any]) -> Shape:
    """Return three numbers (z, y, x) as a shape."""
    z, y, x = (int(v) for v in values)
    return z, y, x


def as_triple(values: ArrayLike) -> Triple:
    """Return three numbers as a tuple of floats."""
    a, b, c = (float(v) for v in np.asarray(values))
    return a, b, c
