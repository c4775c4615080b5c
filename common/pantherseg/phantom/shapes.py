"""Implicit shapes, given by approximate signed distance functions on blocks of an oblique sampling grid.

Patient coordinates are (x, y, z) in mm towards Left, Posterior and Superior, with the origin in the middle of the body.
Distances are in mm, negative inside, in arrays (z, y, x) of float32. They are accurate only near the surface.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

Field = NDArray[np.float32]
Vector = NDArray[np.float64]
Window = tuple[slice, slice, slice]

# The distance, in mm, at points where a shape is not evaluated.
FAR = 60.0
# How far from a tube, in mm, its distance is evaluated.
REACH = 8.0


@dataclass(frozen=True)
class Points:
    """Sample points of a block: voxel (k, j, i) lies at `origin + steps @ (i, j, k)`, in patient mm (x, y, z).

    The columns of `steps` are orthogonal.
    """

    origin: Vector
    steps: Vector
    shape: tuple[int, int, int]

    def xyz(self) -> tuple[Field, Field, Field]:
        """Return the three coordinates of every point, each (z, y, x)."""
        k, j, i = (np.arange(n, dtype=np.float32) for n in self.shape)
        columns = self.steps.astype(np.float32)
        start = self.origin.astype(np.float32)
        x, y, z = (
            (a[2] * k + o)[:, None, None] + (a[1] * j)[None, :, None] + (a[0] * i)[None, None, :]
            for a, o in zip(columns, start, strict=True)
        )
        return x, y, z

    def window(self, low: Vector, high: Vector) -> Window | None:
        """Return the indices that contain a box given in patient mm, or None if the box lies outside."""
        # The steps are orthogonal, so their inverse is the transpose divided by the squared lengths.
        inverse = (self.steps / (self.steps**2).sum(axis=0)).T
        middle = (inverse @ ((low + high) / 2 - self.origin))[::-1].tolist()
        half = (np.abs(inverse) @ ((high - low) / 2))[::-1].tolist()
        z, y, x = (
            slice(max(floor(m - h), 0), min(ceil(m + h) + 1, n))
            for m, h, n in zip(middle, half, self.shape, strict=True)
        )
        return (z, y, x) if z.start < z.stop and y.start < y.stop and x.start < x.stop else None

    def block(self, window: Window) -> Points:
        """Return the points of a window."""
        start = np.array([s.start for s in window[::-1]], dtype=float)
        z, y, x = (s.stop - s.start for s in window)
        return replace(self, origin=self.origin + self.steps @ start, shape=(z, y, x))

    def shifted(self, slices: float) -> Points:
        """Return the points moved by a fraction of a slice."""
        return replace(self, origin=self.origin + self.steps[:, 2] * slices)


class Shape(Protocol):
    """A shape with a bounding box and a signed distance."""

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        ...

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm, negative inside, (z, y, x)."""
        ...


@dataclass(frozen=True)
class Wobble:
    """A sum of plane waves that makes a surface irregular: amplitude (root mean square) in mm, waves (n, 3) in 1/mm."""

    amplitude: float = 0.0
    waves: Vector = field(default_factory=lambda: np.zeros((0, 3)))
    phases: Vector = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def draw(cls, rng: np.random.Generator, amplitude: float, wavelength: float, count: int = 4) -> Wobble:
        """Draw waves in random directions, with wavelengths within 30 % of `wavelength` (mm)."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength * rng.uniform(0.7, 1.3, size=(count, 1))
        return cls(amplitude, 2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, count))

    @property
    def reach(self) -> float:
        """How far the surface may move outwards, mm."""
        return 2.5 * self.amplitude

    def add_to(self, distance: Field, x: Field, y: Field, z: Field) -> Field:
        """Add the waves to a distance, in place."""
        if not self.amplitude:
            return distance
        height = np.float32(self.amplitude * np.sqrt(2 / len(self.phases)))
        for (a, b, c), phase in zip(self.waves.astype(np.float32), self.phases.astype(np.float32), strict=True):
            distance += height * np.sin(a * x + b * y + c * z + phase)
        return distance


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: centre and radii in mm (x, y, z); its axes are the columns of `axes`."""

    centre: Vector
    radii: Vector
    axes: Vector = field(default_factory=lambda: np.eye(3))
    wobble: Wobble = field(default_factory=Wobble)

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        half = np.sqrt(((self.axes * self.radii) ** 2).sum(axis=1)) + self.wobble.reach
        return self.centre - half, self.centre + half

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm (first order), (z, y, x)."""
        local = replace(points, origin=self.axes.T @ (points.origin - self.centre), steps=self.axes.T @ points.steps)
        level = np.zeros(points.shape, np.float32)
        slope = np.full(points.shape, 1e-6, np.float32)
        for coordinate, radius in zip(local.xyz(), self.radii.astype(np.float32), strict=True):
            square = np.square(coordinate / radius)
            level += square
            slope += square / radius**2
        np.sqrt(level, out=level)
        distance: Field = (level * (level - 1) / np.sqrt(slope)).astype(np.float32, copy=False)
        return self.wobble.add_to(distance, *points.xyz()) if self.wobble.amplitude else distance


@dataclass(frozen=True)
class Tube:
    """A chain of round cones: points (n, 3) in mm (x, y, z), radii (n,) in mm."""

    points: Vector
    radii: Vector
    wobble: Wobble = field(default_factory=Wobble)

    @classmethod
    def through(cls, knots: ArrayLike, radii: ArrayLike, *, wobble: Wobble | None = None, pitch: float = 7.0) -> Tube:
        """Return a tube along the spline through knots (n, 3) with these radii, in pieces of about `pitch` mm."""
        line, widths = np.asarray(knots, float), np.broadcast_to(np.asarray(radii, float), (len(np.asarray(knots)),))
        chords = np.linalg.norm(np.diff(line, axis=0), axis=1)
        along = np.concatenate([[0.0], np.cumsum(chords)])
        steps = np.linspace(0, along[-1], max(2, int(along[-1] / pitch) + 1))
        curve = np.asarray(CubicSpline(along, line)(steps), float)
        return cls(curve, np.interp(steps, along, widths), wobble or Wobble())

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        reach = self.radii[:, None] + self.wobble.reach
        return (self.points - reach).min(axis=0), (self.points + reach).max(axis=0)

    def grown(self, margin: float) -> Tube:
        """Return the tube with `margin` mm added to its radii."""
        return replace(self, radii=self.radii + margin)

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm, (z, y, x), and FAR beyond the reach of all pieces."""
        distance = np.full(points.shape, FAR, np.float32)
        pieces = zip(self.points[:-1], self.points[1:], self.radii[:-1], self.radii[1:], strict=True)
        for a, b, radius_a, radius_b in pieces:
            margin = max(radius_a, radius_b) + REACH
            window = points.window(np.minimum(a, b) - margin, np.maximum(a, b) + margin)
            if window is None:
                continue
            block = points.block(window)
            x, y, z = replace(block, origin=block.origin - a).xyz()
            u, v, w = (np.float32(c) for c in b - a)
            t = np.clip((x * u + y * v + z * w) / np.float32(np.dot(b - a, b - a)), 0, 1)
            piece = np.sqrt(np.square(x - t * u) + np.square(y - t * v) + np.square(z - t * w))
            piece -= np.float32(radius_a) + np.float32(radius_b - radius_a) * t
            np.minimum(distance[window], piece, out=distance[window])
        return self.wobble.add_to(distance, *points.xyz()) if self.wobble.amplitude else distance


@dataclass(frozen=True)
class Trunk:
    """The outline of the body: in each axial plane a squircle of this half width and depth, minus an inset, all in mm.

    taper: increase of its width per 100 mm along z, in percent.
    """

    half_width: float
    half_depth: float
    taper: float
    squareness: float = 0.55
    inset: float = 0.0

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        half = 1.3 * np.array([self.half_width, self.half_depth, 1000.0])
        return -half, half

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm (roughly), (z, y, x)."""
        x, y, z = points.xyz()
        size = 1 + np.float32(self.taper / 100**2) * z
        u, v = np.square(x / (np.float32(self.half_width) * size)), np.square(y / (np.float32(self.half_depth) * size))
        level = np.sqrt(np.maximum(u + v - np.float32(self.squareness) * u * v * (u + v < 2), 1e-6))
        distance: Field = (level - 1) * np.float32(self._mean) + np.float32(self.inset)
        return distance

    @property
    def _mean(self) -> float:
        return (self.half_width + self.half_depth) / 2

    def ring(self, angles: Vector, depth: float) -> tuple[Vector, Vector]:
        """Return x and y (mm) of the points at these angles (radians), `depth` mm below the surface at z = 0."""
        u, v = np.cos(angles) ** 2, np.sin(angles) ** 2
        level, product = 1 - depth / self._mean, self.squareness * np.maximum(u * v, 1e-9)
        radius = np.sqrt((1 - np.sqrt(1 - 4 * product * level**2)) / (2 * product))
        return self.half_width * radius * np.cos(angles), self.half_depth * radius * np.sin(angles)


@dataclass(frozen=True)
class Trimmed:
    """A shape minus other shapes, and clipped to `within` if that is given."""

    shape: Shape
    without: tuple[Shape, ...] = ()
    within: Shape | None = None

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        return self.shape.bounds()

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm, (z, y, x)."""
        distance = self.shape.distance(points)
        for other in self.without:
            np.maximum(distance, -other.distance(points), out=distance)
        if self.within is not None:
            np.maximum(distance, self.within.distance(points), out=distance)
        return distance


@dataclass(frozen=True)
class Union:
    """The union of several shapes, with seams rounded over `blend` mm."""

    shapes: tuple[Shape, ...]
    blend: float = 6.0

    def bounds(self) -> tuple[Vector, Vector]:
        """Return the lowest and highest corner, mm (x, y, z)."""
        boxes = [shape.bounds() for shape in self.shapes]
        return np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)

    def distance(self, points: Points) -> Field:
        """Return the distance from the surface in mm, (z, y, x)."""
        result = self.shapes[0].distance(points)
        blend = np.float32(self.blend)
        for shape in self.shapes[1:]:
            other = shape.distance(points)
            # Polynomial smooth minimum.
            near = np.maximum(blend - np.abs(result - other), 0) / blend
            result = np.minimum(result, other) - near * near * blend / 4
        return result
