"""Which tiles of a fold can still change what is marked, by the mean logits of the folds before it.

Nearly all of a volume is far from any tumour, and the first fold says so. A later fold can turn the mask where the mean
is close: at the edges of what is marked, and where a tumour is not marked but likely. `python -m bench.fast` compares
such masks with those of all tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace, to_host
from pantherseg.fast import USUAL, Fast
from pantherseg.inference.accumulate import IGNORE_OVERFLOW, Sweep

# Margins are computed for about this many voxels at once.
SLAB_VOXELS = 1 << 20
# With more places times tiles than this, all tiles matter: what is marked is noise, and the table would be too large.
MOST_SHARES = 200_000
# What rounding may add to a sum of shares.
ROUNDING = 1e-5

# The share (place, tile) that each tile has of the weights at the open voxels of each place; and whether a place comes
# first (place), because it is marked, or because no other is likelier.
Shares = tuple[NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class Ranking:
    """The tiles of a sweep for the next fold.

    order: the numbers of all of them, the most important first; needed: how many of them can change the mask.
    """

    order: list[int]
    needed: int


@dataclass(frozen=True)
class Focus:
    """Ranks the tiles of a sweep by how much they can change for a label, in the order of the network's classes."""

    sweep: Sweep
    label: int
    settings: Fast = USUAL

    def ranking(self, total: Array, *, done: int, left: int, every: bool = True) -> Ranking:
        """Return the ranking by the sum of the logits of `done` folds, (class, z, y, x). left: the folds to come.

        A place is a group of connected voxels that are marked or nearly so. A tile is as important as the largest share
        that it has of the weights of a place: each counts by itself, so that a small tumour is not left out beside a
        large one. Tiles of places that are marked, or else of the likeliest one, come before those of others. every:
        put equal tiles, such as those of no place, into the order of their largest margins, for which all of the volume
        is looked at once more.
        """
        margins = _margins(total, self.label, done)
        found = self._shares(margins, reach=self.settings.doubt_logits * left / done)
        peaks = np.zeros(len(self.sweep.tiles))
        if every or found is None:
            corners = zip(*self._corners, strict=True)
            peaks = np.array([margins[_slices(start, stop)].max(initial=-np.inf) for start, stop in corners])
        if found is None:
            return Ranking(np.argsort(-peaks, kind="stable").tolist(), len(peaks))
        shares, is_first = found
        lightest_first = np.argsort(shares, axis=1)
        together = np.cumsum(np.take_along_axis(shares, lightest_first, axis=1), axis=1)
        is_needed = np.zeros(shares.shape, bool)
        np.put_along_axis(is_needed, lightest_first, together > self.settings.left_out_share + ROUNDING, axis=1)
        is_needed &= shares > 0
        of_first, of_any = (rows.any(axis=0) for rows in (is_needed[is_first], is_needed))
        importance = np.where(of_first, shares[is_first].max(axis=0, initial=0), shares.max(axis=0, initial=0))
        order = np.lexsort((-peaks, -importance, ~of_first, ~of_any))
        return Ranking(order.tolist(), int(of_any.sum()))

    def _shares(self, margins: NDArray[np.float16], *, reach: float) -> Shares | None:
        """Return the shares of the tiles. reach: how far below 0 the mean margin of an unmarked place may be.

        None for too many places.
        """
        edge, doubt = self.settings.edge_logits, self.settings.doubt_logits
        highest = float(margins.max(initial=-np.inf))
        if highest <= 0:
            # A rescue of the empty mask marks the likeliest place, however unlikely it is.
            reach = max(reach, edge - highest)
        # Twice, so that a small place counts by itself where hardly likely voxels join it with a large one.
        found = [self._shares_above(-level, margins, reach, highest) for level in {max(edge, reach), doubt}]
        every = [one for one in found if one is not None]
        if len(every) < len(found):
            return None
        return np.concatenate([shares for shares, _ in every]), np.concatenate([is_first for _, is_first in every])

    def _shares_above(self, lowest: float, margins: NDArray[np.float16], reach: float, highest: float) -> Shares | None:
        """Return the shares for places of connected voxels with a margin above the lowest. highest: of all margins."""
        from scipy.ndimage import binary_erosion, find_objects, generate_binary_structure, label

        tiles = self.sweep.tiles
        near = margins > lowest
        if not near.any():
            return np.zeros((0, len(tiles))), np.zeros(0, bool)
        # One voxel more on each side, so that edges are seen.
        bounds = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in find_objects(near.view(np.uint8))[0])
        near, margins = near[bounds], margins[bounds]
        places, count = label(near, generate_binary_structure(3, 3))
        if count * len(tiles) > MOST_SHARES:
            return None
        marked = margins > 0
        # However steep an edge is, the marked voxels at it are open.
        is_open = marked & ~binary_erosion(marked, border_value=1)
        is_open |= margins < self.settings.edge_logits
        is_open &= near
        del near, marked
        weights = to_host(self.sweep.weights[self.sweep.inside][bounds])
        tile_weights = to_host(self.sweep.tile_weights)
        starts, stops = (corners - [part.start for part in bounds] for corners in self._corners)
        shares, is_first = np.zeros((count, len(tiles))), np.zeros(count, bool)
        for place, box in enumerate(find_objects(places)):
            is_own = places[box] == place + 1
            peak = float(margins[box].max(where=is_own, initial=-np.inf))
            is_first[place] = peak > 0 or peak == highest
            is_own &= is_open[box]
            if peak <= -reach or not is_own.any():
                continue
            begin, end = (np.array([getattr(part, corner) for part in box]) for corner in ("start", "stop"))
            for number in np.flatnonzero(np.all((starts < end) & (stops > begin), axis=1)):
                start, stop = starts[number], stops[number]
                low, high = np.maximum(start, begin), np.minimum(stop, end)
                seen = _slices(low - begin, high - begin)
                own = is_own[seen]
                of_tile = tile_weights.reshape(stop - start)[_slices(low - start, high - start)][own]
                shares[place, number] = np.sum(of_tile / weights[box][seen][own].astype(np.float32), dtype=np.float64)
            shares[place] /= is_own.sum()
        return shares, is_first

    @property
    def _corners(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The first voxels (tile, axis) of the tiles, and one past the last ones, counted without the padding."""
        before = np.array([part.start for part in self.sweep.inside])
        corners = ([[getattr(part, end) for part in tile] for tile in self.sweep.tiles] for end in ("start", "stop"))
        starts, stops = (np.array(corner) - before for corner in corners)
        return starts, stops


def _slices(start: NDArray[np.intp], stop: NDArray[np.intp]) -> tuple[slice, ...]:
    """Return slices; what is before the first voxel is padding."""
    return tuple(slice(max(0, int(first)), int(last)) for first, last in zip(start, stop, strict=True))


@IGNORE_OVERFLOW
def _margins(total: Array, label: int, folds: int) -> NDArray[np.float16]:
    """Return by how much the mean logit of a label is above the largest other one, (z, y, x), on the host."""
    depth, height, width = total.shape[1:]
    slices = max(1, SLAB_VOXELS // (height * width))
    others = [number for number in range(len(total)) if number != label]
    margins = np.empty((depth, height, width), np.float16)
    for start in range(0, depth, slices):
        part = as_type(total[:, start : start + slices], "float32")
        margin = (part[label] - namespace(part).max(part[others], axis=0)) / folds
        margins[start : start + slices] = to_host(as_type(margin, "float16"))
    return margins
