"""nnU-Net's resampling of images and logits, axis by axis.

nnU-Net interpolates each voxel from its neighbours along three axes at once. Interpolation on a grid is separable:
the same numbers come from one linear map per axis, a matrix for splines of order 2 to 5 and one or two weighted rows
below, in nnU-Net's precision (float64, or torch's float32). Arrays are (channel, z, y, x), spacings mm (z, y, x).
Slabs are made where the array lies, on the host or a device, whole images on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, dtype_name, like, namespace
from pantherseg.tables import Positive, Table
from pantherseg.volume import Shape, Triple

Order = Literal[0, 1, 2, 3, 4, 5]
Mode = Literal["linear", "nearest", "nearest-exact"]

SPLINE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
# Each function's own arguments, those of both, and those that change no result: is_seg because it must be False here.
ARGUMENTS = {SPLINE: {"order", "order_z"}, TORCH: {"mode", "aniso_axis_mode"}}
SHARED = {"force_separate_z", "separate_z_anisotropy_threshold"}
WITHOUT_EFFECT = {"is_seg", "num_threads", "device", "memefficient_seg_resampling"}

# Work is done in blocks of about this size: small enough for caches, large enough for BLAS.
BLOCK_BYTES = 16 << 20
# Splines' matrices are split by rows, and columns are left out whose weights float64 cannot tell from 0.
BLOCK_ROWS = 128
NEGLIGIBLE = 1e-17


class Resampling(Table, frozen=True):
    """Which of nnU-Net's resampling functions, and its arguments."""

    function: Literal["resample_data_or_seg_to_shape", "resample_torch_fornnunet"]
    order: Order = 3
    """Order of the splines; like the next for `resample_data_or_seg_to_shape`."""
    order_z: Order = 0
    """Order along an axis that is treated apart."""
    mode: Mode = "linear"
    """Interpolation beside an axis that is treated apart; like the next for `resample_torch_fornnunet`."""
    aniso_axis_mode: Mode = "nearest-exact"
    """Interpolation along an axis that is treated apart."""
    force_separate_z: bool | None = None
    """Treat the coarsest axis apart, always or never; None: where the spacings ask for it."""
    separate_z_anisotropy_threshold: Positive = 3
    """Treat the coarsest axis apart where its voxels are more than this many times as long as the finest axis's."""

    @classmethod
    def from_plans(cls, name: str, arguments: Mapping[str, Any]) -> Resampling:
        """Read a plans file's `resampling_fn_...` and `resampling_fn_..._kwargs`. Raises ValueError."""
        if name not in ARGUMENTS:
            raise ValueError(f"resampling with {name!r} is not supported, only with {' or '.join(ARGUMENTS)}")
        if arguments.get("is_seg"):
            raise ValueError(f"{name}: is_seg is for label maps, and images and logits are none")
        effective = {key: value for key, value in arguments.items() if key not in WITHOUT_EFFECT}
        unknown = effective.keys() - ARGUMENTS[name] - SHARED
        if unknown:
            raise ValueError(f"{name} takes no argument {', '.join(sorted(unknown))}")
        force = None if name == TORCH else False  # the one default in which they differ
        try:
            return msgspec.convert({"function": name, "force_separate_z": force, **effective}, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {error}") from error

    def resizer(self, shape: Shape, new_shape: Shape, spacing: Triple, new_spacing: Triple) -> Resizer:
        """Return the map from a shape (z, y, x) to another. Raises ValueError for a shape without voxels."""
        if min(*shape, *new_shape) < 1:
            raise ValueError(f"resampling needs at least one voxel a side, got {shape} to {new_shape}")
        apart = self._axis_apart(spacing, new_spacing)
        maps = [_axis_map(self._method(axis, apart), shape[axis], new_shape[axis]) for axis in range(3)]
        growth = [new / old for old, new in zip(shape, new_shape, strict=True)]
        order = sorted(range(3), key=lambda axis: growth[axis])
        if self.function == TORCH:
            # torch starts with the last axis, and float32 shows it; only what drops rows may come earlier.
            order.sort(key=lambda axis: (growth[axis] >= 1 or not maps[axis].picks, axis == apart, -axis))
        return Resizer(
            shape=shape,
            new_shape=new_shape,
            maps=tuple(maps),
            order=tuple(axis for axis in order if growth[axis] != 1),
            apart=apart,
            clip=self.function == SPLINE and self.order > 1,
            single=self.function == TORCH,
        )

    def _axis_apart(self, spacing: Triple, new_spacing: Triple) -> int | None:
        """Return the axis that is treated apart: the one coarsest axis of the first spacing that asks for it."""
        if self.force_separate_z is False:
            return None
        for mm in (spacing, new_spacing):
            if self.force_separate_z or max(mm) / min(mm) > self.separate_z_anisotropy_threshold:
                coarsest = [axis for axis in range(3) if max(mm) / mm[axis] == 1]
                return coarsest[0] if len(coarsest) == 1 else None
        return None

    def _method(self, axis: int, apart: int | None) -> Order | Mode:
        """Return a spline's order or torch's mode for an axis; nnU-Net heeds `mode` only beside an axis apart."""
        if self.function == SPLINE:
            return self.order_z if axis == apart else self.order
        return "linear" if apart is None else self.aniso_axis_mode if axis == apart else self.mode


@dataclass(frozen=True, eq=False)
class Taps:
    """A map along one axis whose rows are picked, or sums of two weighted rows.

    rows: for each tap the input row of every output row; weights: likewise, none for a pick; dtype: of the sum.
    """

    rows: tuple[NDArray[np.intp], ...]
    weights: tuple[NDArray[np.floating[Any]], ...] = ()
    dtype: Literal["float32", "float64"] = "float64"

    @property
    def picks(self) -> bool:
        """Whether rows are picked as they are."""
        return not self.weights

    def between(self, start: int, stop: int) -> tuple[int, int, Taps]:
        """Return where the input rows behind the output rows start..stop begin and end, and the map from them."""
        rows = [tap[start:stop] for tap in self.rows]
        first, last = min(tap.min() for tap in rows), max(tap.max() for tap in rows)
        taps = Taps(tuple(tap - first for tap in rows), tuple(w[start:stop] for w in self.weights), self.dtype)
        return first, last + 1, taps

    def apply(self, data: Array, axis: int = 0) -> Array:
        """Map an array along an axis."""
        taken = (namespace(data).take(data, like(data, rows), axis=axis) for rows in self.rows)
        if self.picks:
            return next(taken)
        column = (-1, *(1 for _ in data.shape[axis + 1 :]))
        weights = (like(data, values.reshape(column)) for values in self.weights)
        first, second = (part * weight for part, weight in zip(taken, weights, strict=True))
        first += second
        return as_type(first, self.dtype)


@dataclass(frozen=True, eq=False)
class Spline:
    """A map along one axis whose rows are sums of many rows: a matrix (output row, input row) in float64.

    blocks: slices of rows and columns outside of which it is next to nothing.
    """

    matrix: NDArray[np.float64]
    blocks: tuple[tuple[slice, slice], ...]
    picks = False

    def apply(self, data: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map an array (row, column) along its first axis."""
        result = np.empty((len(self.matrix), data.shape[1]))
        for rows, columns in self.blocks:
            np.matmul(self.matrix[rows, columns], data[columns], out=result[rows])
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Resizer:
    """One resampling between two shapes (z, y, x).

    maps: for each axis; order: the axes that change, as Taps go through them; apart: the axis treated apart;
    clip: to the range of each channel, or of each slice across an axis apart; single: the result is float32, else of
    the input's dtype.
    """

    shape: Shape
    new_shape: Shape
    maps: tuple[Taps | Spline, ...]
    order: tuple[int, ...]
    apart: int | None
    clip: bool
    single: bool
    _last: list[NDArray[Any]] = field(default_factory=list, repr=False)

    @property
    def local(self) -> bool:
        """Whether few rows lie behind a row of the result; if not, slabs are made of the host's arrays only."""
        return self._taps is not None

    def result_type(self, data: Array) -> str:
        """Return the dtype of data when it is resampled."""
        return "float32" if self.single and self.order else dtype_name(data)

    def resize(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return data (channel, *shape) as (channel, *new_shape); data itself where the shapes are the same."""
        self._check(data)
        if not self.order:
            return data
        result = np.empty((len(data), *self.new_shape), self.result_type(data))
        if self.local:
            for rows in _blocks(self.new_shape[0], result[:, 0].size):
                result[:, rows] = self.slab(data, 0, rows.start, rows.stop)
        else:
            for channel, target in zip(data, result, strict=True):
                self._rotate(channel, target)
        return result

    def slab(self, data: Array, axis: int, start: int, stop: int) -> Array:
        """Return the rows start..stop along an axis (0, 1, 2) of what `resize` returns, bit for bit.

        Of data only the rows behind them are touched, except for splines of order 2 and above. These have no few
        rows behind a row: the whole result is made once and kept for the slabs of the same array that follow.
        """
        self._check(data)
        if not 0 <= start < stop <= self.new_shape[axis]:
            raise ValueError(f"rows {start} to {stop} are no slab of {self.new_shape} along axis {axis}")
        before, taps = (slice(None),) * (axis + 1), self._taps
        if taps is None:
            if not self._last or self._last[0] is not data:
                self._last[:] = data, self.resize(data)
            return self._last[1][*before, start:stop]
        first, last, taps[axis] = taps[axis].between(start, stop)
        part = data[*before, first:last]
        for along in self.order:
            part = taps[along].apply(part, along + 1)
        return as_type(part, self.result_type(data))

    @property
    def _taps(self) -> list[Taps] | None:
        """The maps, if every one of them is local."""
        taps = [axis_map for axis_map in self.maps if isinstance(axis_map, Taps)]
        return taps if len(taps) == len(self.maps) else None

    def _rotate(self, channel: NDArray[Any], target: NDArray[Any]) -> None:
        """Resample one channel (z, y, x) into a target (z, y, x), with large matrix products.

        Each step maps the last axis and brings it to the front. The axis apart is the third: its slices are clipped.
        """
        first = self.apart or 0
        channel, target = np.moveaxis(channel, first, 0), np.moveaxis(target, first, 0)
        low, high = (bound(axis=None if self.apart is None else (1, 2)) for bound in (channel.min, channel.max))
        work = channel.astype(np.float64)
        for axis in (axis for axis in (2, 1, 0) if axis != first):
            work = self.maps[axis].apply(work.reshape(-1, work.shape[-1]).T).reshape(-1, *work.shape[:-1])
        for rows in _blocks(target.shape[1], target[:, 0].size):
            columns = work[rows].reshape(-1, work.shape[-1]).T
            if self.clip and self.apart is not None:
                columns = np.clip(columns, low[:, None], high[:, None])
            columns = self.maps[first].apply(columns)
            if self.clip and self.apart is None:
                np.clip(columns, low, high, out=columns)
            target[:, rows] = columns.reshape(len(target), -1, target.shape[2])

    def _check(self, data: Array) -> None:
        if tuple(data.shape[1:]) != self.shape:
            raise ValueError(f"data must be (channel, z, y, x) with shape {self.shape}, got {data.shape}")


@lru_cache(maxsize=32)
def _axis_map(method: Order | Mode, size: int, new_size: int) -> Taps | Spline:
    """Return the map from `size` to `new_size` voxels for a spline's order or one of torch's modes."""
    if size == new_size:
        return Taps(rows=(np.arange(size),))
    if isinstance(method, str):
        return _torch_taps(method, size, new_size)
    if method > 1:
        return _spline(method, size, new_size)
    centre = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    if method == 0:
        return Taps(rows=((centre + 0.5).astype(np.intp),))
    row = centre.astype(np.intp)
    return Taps(rows=(row, np.minimum(row + 1, size - 1)), weights=(1 - (centre - row), centre - row))


def _spline(order: Order, size: int, new_size: int) -> Spline:
    from scipy import ndimage  # takes long to import, and order 1 needs none of it

    # All unit vectors at once; SciPy's own prefilter and boundary come with it.
    matrix = ndimage.zoom(np.eye(size), (new_size / size, 1.0), order=order, mode="nearest", grid_mode=True)
    blocks = []
    for start in range(0, new_size, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        columns = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > NEGLIGIBLE)
        blocks.append((rows, slice(columns[0], columns[-1] + 1)))
    return Spline(matrix, tuple(blocks))


def _torch_taps(mode: Mode, size: int, new_size: int) -> Taps:
    """Return torch's `interpolate` along one axis, with align_corners off, in torch's float32."""
    single, index = np.float32, np.arange(new_size)
    # torch divides in float32, then multiplies and subtracts with a single rounding.
    scale = single(size) / single(new_size)
    centre = np.maximum(((index + 0.5) * np.float64(scale) - 0.5).astype(single), 0)
    if mode != "linear":
        nearest = index.astype(single) * scale if mode == "nearest" else centre + single(0.5)
        return Taps(rows=(np.minimum(nearest, size - 1).astype(np.intp),))
    row = np.minimum(centre, size - 1).astype(np.intp)
    weight = centre - row.astype(single)
    # Of the two products only the second is rounded, as in a fused multiply-add: hence the float64.
    weights = ((1 - weight).astype(np.float64), weight)
    return Taps(rows=(row, np.minimum(row + 1, size - 1)), weights=weights, dtype="float32")


def _blocks(rows: int, row_size: int) -> Iterator[slice]:
    """Yield slices of so many rows that each holds about BLOCK_BYTES in float64; row_size: values in a row."""
    step = max(1, BLOCK_BYTES // (8 * row_size))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
