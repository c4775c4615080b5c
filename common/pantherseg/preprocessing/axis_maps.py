"""Interpolation along one axis as a linear map, in nnU-Net's precision: float64, or torch's float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, like, namespace

Order = Literal[0, 1, 2, 3, 4, 5]
Mode = Literal["linear", "nearest", "nearest-exact"]

# The matrix of a spline is split into blocks of rows; columns are left out if their weights vanish in float64.
BLOCK_ROWS = 128
NEGLIGIBLE = 1e-17


@dataclass(frozen=True, eq=False)
class NeighborMap:
    """A map along one axis: each output row is a copy of one input row, or a weighted sum of two.

    rows: one or two arrays with an input row for each output row; weights: likewise, empty for copies; dtype: of the
    sum.
    """

    rows: tuple[NDArray[np.intp], ...]
    weights: tuple[NDArray[np.floating[Any]], ...] = ()
    dtype: Literal["float32", "float64"] = "float64"

    @property
    def copies(self) -> bool:
        """Whether rows are copied without weights."""
        return not self.weights

    def between(self, start: int, stop: int) -> tuple[int, int, NeighborMap]:
        """Return the range first..stop of input rows that output rows start..stop need, and the map from these rows."""
        rows = [index[start:stop] for index in self.rows]
        first, last = min(index.min() for index in rows), max(index.max() for index in rows)
        weights = tuple(values[start:stop] for values in self.weights)
        return first, last + 1, NeighborMap(tuple(index - first for index in rows), weights, self.dtype)

    def apply(self, data: Array, axis: int = 0) -> Array:
        """Map an array along an axis."""
        taken = (namespace(data).take(data, like(data, rows), axis=axis) for rows in self.rows)
        if self.copies:
            return next(taken)
        column = (-1, *(1 for _ in data.shape[axis + 1 :]))
        weights = (like(data, values.reshape(column)) for values in self.weights)
        first, second = (part * weight for part, weight in zip(taken, weights, strict=True))
        first += second
        return as_type(first, self.dtype)


@dataclass(frozen=True, eq=False)
class SplineMap:
    """A map along one axis by a matrix (output row, input row) in float64.

    blocks: slices of rows and columns outside of which the matrix is negligible.
    """

    matrix: NDArray[np.float64]
    blocks: tuple[tuple[slice, slice], ...]
    copies = False

    def apply(self, data: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map an array (row, column) along its first axis."""
        result = np.empty((len(self.matrix), data.shape[1]))
        for rows, columns in self.blocks:
            np.matmul(self.matrix[rows, columns], data[columns], out=result[rows])
        return result


@lru_cache(maxsize=32)
def axis_map(method: Order | Mode, size: int, new_size: int) -> NeighborMap | SplineMap:
    """Return the map from `size` to `new_size` voxels for a spline's order or one of torch's modes."""
    if size == new_size:
        return NeighborMap(rows=(np.arange(size),))
    if isinstance(method, str):
        return _torch_map(method, size, new_size)
    if method > 1:
        return _spline_map(method, size, new_size)
    centre = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    if method == 0:
        return NeighborMap(rows=((centre + 0.5).astype(np.intp),))
    row = centre.astype(np.intp)
    return NeighborMap(rows=(row, np.minimum(row + 1, size - 1)), weights=(1 - (centre - row), centre - row))


def _spline_map(order: Order, size: int, new_size: int) -> SplineMap:
    from scipy import ndimage  # takes long to import, and order 1 does not need it

    # Zooming the unit vectors gives the matrix, with SciPy's own prefilter and boundary conditions.
    matrix = ndimage.zoom(np.eye(size), (new_size / size, 1.0), order=order, mode="nearest", grid_mode=True)
    blocks = []
    for start in range(0, new_size, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        columns = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > NEGLIGIBLE)
        blocks.append((rows, slice(columns[0], columns[-1] + 1)))
    return SplineMap(matrix, tuple(blocks))


def _torch_map(mode: Mode, size: int, new_size: int) -> NeighborMap:
    """Return torch's `interpolate` along one axis, with align_corners off, in torch's float32."""
    single, index = np.float32, np.arange(new_size)
    # torch divides in float32, then multiplies and subtracts with a single rounding.
    scale = single(size) / single(new_size)
    centre = np.maximum(((index + 0.5) * np.float64(scale) - 0.5).astype(single), 0)
    if mode != "linear":
        nearest = index.astype(single) * scale if mode == "nearest" else centre + single(0.5)
        return NeighborMap(rows=(np.minimum(nearest, size - 1).astype(np.intp),))
    row = np.minimum(centre, size - 1).astype(np.intp)
    weight = centre - row.astype(single)
    # Only the second product is rounded to float32, as in a fused multiply-add, so the first weight is float64.
    weights = ((1 - weight).astype(np.float64), weight)
    return NeighborMap(rows=(row, np.minimum(row + 1, size - 1)), weights=weights, dtype="float32")
