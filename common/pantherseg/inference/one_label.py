"""One label of a network with many, on the volume's grid, computed only where it can be.

Interpolating the logits of 41 classes on a whole volume takes longer than a small network does, and most voxels are far
from the label that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, to_host
from pantherseg.fusion import MeanLogits
from pantherseg.preprocessing.preprocess import WayBack
from pantherseg.volume import Box, as_shape

# Interpolated logits are rounded to float16, with 11 bits: two keep their order if they differ by this share of the
# largest.
ROUNDING = 2.0**-9


def mask_of(values: Array, back: WayBack, label: int) -> NDArray[np.bool_]:
    """Return where a label of the mean logits is the largest, (z, y, x): the first of equal ones counts.

    values: (class, z, y, x) on the network's grid, label: not the background, whose logit is set outside of the crop.
    """
    mask = np.zeros(back.shape, bool)
    cells = _possible_cells(values, label)
    box = None if cells is None else back.reach(cells)
    if box is not None:
        mask[box.slices] = MeanLogits().fuse([_Window(values, back, box)]).mask(label)
    return mask


@dataclass(frozen=True)
class _Window:
    """The logits of a member in a box of the volume."""

    values: Array
    back: WayBack
    box: Box
    weight: float = 1.0
    threshold: float | None = None

    @property
    def classes(self) -> int:
        """Number of classes, including the background."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the box, (z, y, x)."""
        return self.box.shape

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop of the box, (class, stop - start, y, x)."""
        z, y, x = self.box.start
        _, *ends = self.box.stop
        return self.back.part(self.values, Box((z + start, y, x), as_shape((z + stop, *ends))))


def _possible_cells(values: Array, label: int) -> Box | None:
    """Return a box of cells outside of which a label is never the largest; None where it never is.

    A cell (z, y, x) reaches from a voxel to the next one along each axis. Where another class is larger at all corners
    of a cell, it is larger everywhere in it, because linear interpolation gives a mean of the corners.
    """
    box: Box | None = Box.whole(as_shape(values.shape[1:]))
    margin = ROUNDING * max(float(abs(one).max()) for one in values)
    possible = np.ones(values.shape[1:], bool)
    for other in range(len(values)):
        if other == label or box is None:
            continue
        # One voxel more than cells on each axis, where there is one.
        read = tuple(slice(first, last + 1) for first, last in zip(box.start, box.stop, strict=True))
        more = as_type(values[other][read], "float32") - as_type(values[label][read], "float32")
        dominated = to_host(more > margin)
        for axis in range(3):
            last = dominated.take([-1], axis)
            dominated = dominated & np.concatenate([np.delete(dominated, 0, axis), last], axis)
        here = possible[box.slices] & ~dominated[tuple(slice(size) for size in box.shape)]
        inner = Box.around(here)
        possible[box.slices] = here
        box = None if inner is None else inner.moved(box.start)
    return box
