"""nnU-Net's preprocessing of one volume, and the resampling of logits back to the volume's grid.

Transpose, crop to the voxels that are not 0, normalise, resample: in nnU-Net's order and with its dtypes and memory
layouts, because the last bits of a mean depend on them. Arrays are (z, y, x), spacings are mm along (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.arrays import Array, namespace, zeros_like
from pantherseg.io.limits import check_resampled
from pantherseg.orientation import NO_TURN, Turn
from pantherseg.preprocessing.intensity import IntensityScheme
from pantherseg.preprocessing.resample import Resampling, Resizer
from pantherseg.tables import Positive, Table
from pantherseg.volume import Box, Shape, Triple, as_shape

# The background's logit outside of the crop to voxels that are not 0.
CERTAIN = 50.0


class Preprocessing(Table, frozen=True):
    """How a volume is prepared for one model. Members with equal values can share the prepared volume."""

    spacing: Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=3)]
    """Spacing in mm along the network's axes; two values for a 2-D network, whose slices are not resampled."""
    transpose: tuple[int, int, int]
    """Which axis of the volume is the network's first, second and third."""
    normalization: IntensityScheme
    images: Resampling
    logits: Resampling

    def __post_init__(self) -> None:
        if sorted(self.transpose) != [0, 1, 2]:
            raise ValueError(f"transpose must name the axes 0, 1 and 2 once each, got {self.transpose}")

    def run(self, array: NDArray[np.float32], spacing: Triple, turn: Turn = NO_TURN) -> Prepared:
        """Return the network's input for a volume (z, y, x), at least one voxel along each axis. Copies the array.

        spacing: mm along (z, y, x). turn: to the orientation in which the network was trained. Raises InputError for a
        volume that is too large at the network's spacing, and for intensities that the normalisation does not accept.
        """
        shape: Shape = array.shape
        turned = turn.order(spacing)
        given: Triple = tuple(turned[axis] for axis in self.transpose)  # type: ignore[assignment]
        target: Triple = (given[0], *self.spacing)[-3:]  # type: ignore[assignment]
        # Sums over voxels depend on their order in memory, which is therefore the same for every stored order.
        data = turn.view(array)[None].astype(np.float32, order="C")
        data = data.transpose(0, *(axis + 1 for axis in self.transpose))
        box = Box.around(data[0] != 0) or Box.whole(data.shape[1:])
        # nnU-Net fails for a volume thinner than half a voxel of the network's.
        new_shape: Shape = tuple(  # type: ignore[assignment]
            max(1, round(old / new * n)) for old, new, n in zip(given, target, box.shape, strict=True)
        )
        check_resampled(new_shape, target)
        data = data[:, *box.slices]
        self.normalization.run(data[0])
        back = WayBack(shape, turn.then(self.transpose), box, self.logits.resizer(new_shape, box.shape, target, given))
        return Prepared(self.images.resizer(box.shape, new_shape, given, target).resize(data), back)


@dataclass(frozen=True, eq=False)
class WayBack:
    """Maps logits from the network's grid to the grid of the volume.

    shape: of the volume (z, y, x); turn: from the volume's axes to the network's; box: the crop, and resizer: from the
    network's grid to the box, both in the network's axes.
    """

    shape: Shape
    turn: Turn
    box: Box
    resizer: Resizer

    def slab(self, logits: Array, start: int, stop: int) -> Array:
        """Return the network's logits (class, z, y, x) on slices of the volume, (class, stop - start, y, x).

        start, stop: slices of the volume along z. Outside the box the logit of class 0 is CERTAIN, and others are 0.
        Raises ValueError for slices outside of the volume.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"slices must be in a volume of {self.shape[0]} slices, got {start} to {stop}")
        return self.part(logits, Box((start, 0, 0), (stop, *self.shape[1:])))

    def part(self, logits: Array, box: Box) -> Array:
        """Return the network's logits (class, z, y, x) in a box of the volume; otherwise like `slab`."""
        turned = box.turned(self.turn, self.shape)
        result = zeros_like(logits, (len(logits), *turned.shape), self.resizer.result_type(logits))
        result[0] = CERTAIN
        common = turned.common(self.box)
        if common is not None:
            result[:, *common.within(turned).slices] = self.resizer.part(logits, common.within(self.box))
        xp = namespace(logits)
        if flipped := tuple(own + 1 for own, flip in enumerate(self.turn.flipped) if flip):
            result = xp.flip(result, axis=flipped)
        return xp.permute_dims(result, (0, *(int(own) + 1 for own in np.argsort(self.turn.axes))))

    def reach(self, cells: Box) -> Box | None:
        """Return the box of the volume's voxels that lie in a box of the network's cells; see `Resizer.reach`."""
        found = self.resizer.reach(cells)
        if found is None:
            return None
        return found.moved(self.box.start).turned(self.turn.inverse, as_shape(self.turn.order(self.shape)))


@dataclass(frozen=True, eq=False)
class Prepared:
    """The network's input, data (1, z, y, x) in the network's axes, and the map of its logits back to the volume."""

    data: NDArray[np.float32]
    back: WayBack
