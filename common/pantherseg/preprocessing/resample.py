"""nnU-Net's resampling of images and logits, axis by axis.

nnU-Net interpolates each voxel from its neighbours along three axes at once. Interpolation on a grid is separable, so
one linear map per axis gives the same values. Arrays are (channel, z, y, x), spacings are mm along (z, y, x). Slabs are
computed on the device of the array, whole images on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, dtype_name
from pantherseg.preprocessing.axis_maps import Mode, NeighborMap, Order, SplineMap, axis_map
from pantherseg.tables import Positive, Table
from pantherseg.volume import Box, Shape, Triple, as_shape

SPLINE: Final = "resample_data_or_seg_to_shape"
TORCH: Final = "resample_torch_fornnunet"
# Arguments of each function, of both, and those without effect on the result; is_seg must be False here.
ARGUMENTS = {SPLINE: {"order", "order_z"}, TORCH: {"mode", "aniso_axis_mode"}}
SHARED = {"force_separate_z", "separate_z_anisotropy_threshold"}
WITHOUT_EFFECT = {"is_seg", "num_threads", "device", "memefficient_seg_resampling"}

# Size of the blocks of work: small enough for caches, large enough for BLAS.
BLOCK_BYTES = 16 << 20


class Resampling(Table, frozen=True):
    """One of nnU-Net's resampling functions and its arguments."""

    function: Literal["resample_data_or_seg_to_shape", "resample_torch_fornnunet"]
    order: Order = 3
    """Order of the splines. This and the next field are for `resample_data_or_seg_to_shape`."""
    order_z: Order = 0
    """Order along a separate axis."""
    mode: Mode = "linear"
    """Interpolation across a separate axis. This and the next field are for `resample_torch_fornnunet`."""
    aniso_axis_mode: Mode = "nearest-exact"
    """Interpolation along a separate axis."""
    force_separate_z: bool | None = None
    """Resample the coarsest axis separately: always, never, or (None) if the spacings are anisotropic."""
    separate_z_anisotropy_threshold: Positive = 3
    """Spacings are anisotropic if the largest is more than this many times the smallest."""

    @classmethod
    def from_plans(cls, name: str, arguments: Mapping[str, Any]) -> Resampling:
        """Read a plans file's `resampling_fn_...` and `resampling_fn_..._kwargs`. Raises ValueError."""
        if name not in ARGUMENTS:
            raise ValueError(f"resampling with {name!r} is not supported, only with {' or '.join(ARGUMENTS)}")
        if arguments.get("is_seg"):
            raise ValueError(f"{name}: is_seg is for label maps, not for images and logits")
        effective = {key: value for key, value in arguments.items() if key not in WITHOUT_EFFECT}
        unknown = effective.keys() - ARGUMENTS[name] - SHARED
        if unknown:
            raise ValueError(f"{name} has no argument {', '.join(sorted(unknown))}")
        force = None if name == TORCH else False  # the only default that differs
        try:
            return msgspec.convert({"function": name, "force_separate_z": force, **effective}, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {error}") from error

    def resizer(self, shape: Shape, new_shape: Shape, spacing: Triple, new_spacing: Triple) -> Resizer:
        """Return the resampling from a shape (z, y, x) to another. Raises ValueError for a shape without voxels."""
        if min(*shape, *new_shape) < 1:
            raise ValueError(f"resampling needs at least one voxel along each axis, got {shape} to {new_shape}")
        separate = self._separate_axis(spacing, new_spacing)
        maps = [axis_map(self._method(axis, separate), shape[axis], new_shape[axis]) for axis in range(3)]
        growth = [new / old for old, new in zip(shape, new_shape, strict=True)]
        order = sorted(range(3), key=lambda axis: growth[axis])
        if self.function == TORCH:
            # torch starts with the last axis, which matters in float32; only maps that drop rows may come earlier.
            order.sort(key=lambda axis: (growth[axis] >= 1 or not maps[axis].copies, axis == separate, -axis))
        return Resizer(
            shape=shape,
            new_shape=new_shape,
            maps=tuple(maps),
            order=tuple(axis for axis in order if growth[axis] != 1),
            separate=separate,
            clip=self.function == SPLINE and self.order > 1,
            single=self.function == TORCH,
        )

    def _separate_axis(self, spacing: Triple, new_spacing: Triple) -> int | None:
        """Return the axis to resample separately: the only coarsest axis of the first anisotropic spacing."""
        if self.force_separate_z is False:
            return None
        for mm in (spacing, new_spacing):
            if self.force_separate_z or max(mm) / min(mm) > self.separate_z_anisotropy_threshold:
                coarsest = [axis for axis in range(3) if max(mm) / mm[axis] == 1]
                return coarsest[0] if len(coarsest) == 1 else None
        return None

    def _method(self, axis: int, separate: int | None) -> Order | Mode:
        """Return a spline's order or torch's mode for an axis. nnU-Net ignores `mode` without a separate axis."""
        if self.function == SPLINE:
            return self.order_z if axis == separate else self.order
        return "linear" if separate is None else self.aniso_axis_mode if axis == separate else self.mode


@dataclass(frozen=True, eq=False, kw_only=True)
class Resizer:
    """One resampling between two shapes (z, y, x).

    maps: one for each axis; order: the axes that change, in the order of NeighborMaps; separate: the axis that is
    resampled separately; clip: to the range of each channel, or of each slice across a separate axis; single: the
    result is float32 and not of the input's dtype.
    """

    shape: Shape
    new_shape: Shape
    maps: tuple[NeighborMap | SplineMap, ...]
    order: tuple[int, ...]
    separate: int | None
    clip: bool
    single: bool
    _last: list[NDArray[Any]] = field(default_factory=list, repr=False)

    @property
    def local(self) -> bool:
        """Whether a row of the result depends on few rows. If not, slabs can only be made from arrays on the host."""
        return self._neighbor_maps is not None

    def result_type(self, data: Array) -> str:
        """Return the dtype of data when it is resampled."""
        return "float32" if self.single and self.order else dtype_name(data)

    def resize(self, data: NDArray[Any]) -> NDArray[Any]:
        """Return data (channel, *shape) as (channel, *new_shape); the same object if the shapes are equal."""
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
        """Return the rows start..stop along an axis (0, 1, 2) of the result of `resize`, bit for bit.

        Reads only the rows of data that they depend on. With splines of order 2 and above they depend on all rows, so
        the whole result is computed once and kept for further slabs of the same array.
        """
        self._check(data)
        if not 0 <= start < stop <= self.new_shape[axis]:
            raise ValueError(f"rows must be in the shape {self.new_shape} along axis {axis}, got {start} to {stop}")
        first, last = [0, 0, 0], list(self.new_shape)
        first[axis], last[axis] = start, stop
        return self.part(data, Box(as_shape(first), as_shape(last)))

    def part(self, data: Array, box: Box) -> Array:
        """Return the voxels in a box of the result of `resize`, bit for bit; otherwise like `slab`."""
        maps = self._neighbor_maps
        if maps is None:
            if not self._last or self._last[0] is not data:
                self._last[:] = data, self.resize(data)
            return self._last[1][:, *box.slices]
        read = []
        for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
            first, last, maps[axis] = maps[axis].between(start, stop)
            read.append(slice(first, last))
        part = data[:, *read]
        for along in self.order:
            part = maps[along].apply(part, along + 1)
        return as_type(part, self.result_type(data))

    def reach(self, cells: Box) -> Box | None:
        """Return the voxels of the result that lie in a box of cells, None where there are none.

        A cell (z, y, x) reaches from a voxel of the data to the next one along each axis. All voxels for splines of
        order 2 and above.
        """
        maps = self._neighbor_maps
        if maps is None:
            return Box.whole(self.new_shape)
        hits = [
            np.flatnonzero((one.rows[0] >= start) & (one.rows[0] < stop))
            for one, start, stop in zip(maps, cells.start, cells.stop, strict=True)
        ]
        if not all(map(len, hits)):
            return None
        return Box(as_shape(rows[0] for rows in hits), as_shape(rows[-1] + 1 for rows in hits))

    @property
    def _neighbor_maps(self) -> list[NeighborMap] | None:
        """The maps if all of them are NeighborMaps."""
        maps = [one for one in self.maps if isinstance(one, NeighborMap)]
        return maps if len(maps) == len(self.maps) else None

    def _rotate(self, channel: NDArray[Any], target: NDArray[Any]) -> None:
        """Resample one channel (z, y, x) into a target (z, y, x) with large matrix products.

        Each step maps the last axis and moves it to the front. A separate axis comes last, after clipping its slices.
        """
        first = self.separate or 0
        channel, target = np.moveaxis(channel, first, 0), np.moveaxis(target, first, 0)
        low, high = (bound(axis=None if self.separate is None else (1, 2)) for bound in (channel.min, channel.max))
        work = channel.astype(np.float64)
        for axis in (axis for axis in (2, 1, 0) if axis != first):
            work = self.maps[axis].apply(work.reshape(-1, work.shape[-1]).T).reshape(-1, *work.shape[:-1])
        for rows in _blocks(target.shape[1], target[:, 0].size):
            columns = work[rows].reshape(-1, work.shape[-1]).T
            if self.clip and self.separate is not None:
                columns = np.clip(columns, low[:, None], high[:, None])
            columns = self.maps[first].apply(columns)
            if self.clip and self.separate is None:
                np.clip(columns, low, high, out=columns)
            target[:, rows] = columns.reshape(len(target), -1, target.shape[2])

    def _check(self, data: Array) -> None:
        if tuple(data.shape[1:]) != self.shape:
            raise ValueError(f"data must be (channel, z, y, x) with shape {self.shape}, got {data.shape}")


def _blocks(rows: int, row_size: int) -> Iterator[slice]:
    """Yield slices of rows that each take about BLOCK_BYTES in float64. row_size: number of values in a row."""
    step = max(1, BLOCK_BYTES // (8 * row_size))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
