"""One network over a whole volume: tiles, mirroring, and the weighted mean where tiles overlap.

The order and precision are nnU-Net's: forward passes in the network's own precision, sums in float16. Sums in float32
would be more accurate, and farther from nnU-Net's masks. Everything happens where the data lies, host or device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from pantherseg.arrays import Array, as_type, like, namespace, to_host, zeros_like
from pantherseg.inference.tiles import Slices, padded, padding, tile_weights, tiles
from pantherseg.preprocessing.preprocess import CERTAIN

# Bytes for each voxel of one class while it is searched for infinities: a copy in float16 and three of booleans.
SEARCH_BYTES = 5

# A view (1, 1, *patch) -> a new array on the same device, (1, class, *patch)
Network = Callable[[Array], Array]


class Sweep:
    """The tiles of one prepared volume, the same for every fold.

    data: (1, z, y, x) float32, on the host or a device; patch: (z, y, x), or (y, x) for a network of slices;
    step: distance of tiles as a fraction of the patch; mirroring_axes: spatial axes along which inputs are also
    mirrored, 0 = z (or y for slices); nearest: start with the tiles nearest to the middle of the body, instead of
    nnU-Net's order.
    """

    def __init__(
        self,
        data: Array,
        patch: tuple[int, ...],
        *,
        step: float,
        mirroring_axes: tuple[int, ...] = (),
        nearest: bool = False,
    ) -> None:
        pads = padding(tuple(data.shape[1:]), patch)
        self.inside = tuple(
            slice(before, before + size) for (before, _), size in zip(pads, data.shape[1:], strict=True)
        )
        self.data = data
        if any(map(any, pads)):
            self.data = zeros_like(data, (1, *padded(tuple(data.shape[1:]), patch)), "float32")
            self.data[(slice(None), *self.inside)] = data
        self.patch = patch
        self.shape = tuple(self.data.shape[1:])
        self.tiles = tiles(self.shape, patch, step)
        if nearest:
            middle = _middle(self.data[0])
            self.tiles.sort(key=lambda tile: _distance(tile, middle))
        weights = like(data, tile_weights(patch).copy())
        # The values are those of float16; products are computed in float32 anyway, and on the host faster from there.
        self.tile_weights = as_type(weights, "float32")
        self.flips = [
            tuple(axis + 2 for axis in axes)
            for count in range(len(mirroring_axes) + 1)
            for axes in itertools.combinations(mirroring_axes, count)
        ]
        self.weights = self.sum_of_weights(self.tiles)

    def start(self, network: Network, classes: int) -> FoldSums:
        """Return the empty sums of one fold. classes: number of the network's classes."""
        return FoldSums(self, network, classes)

    def sum_of_weights(self, tiles: list[Slices]) -> Array:
        """Return the sum of the weights of some tiles at each voxel of the padded volume, float16."""
        weights = as_type(self.tile_weights, "float16")
        total = zeros_like(self.data, self.shape, "float16")
        for tile in tiles:
            part = total[tile]
            part += weights
        return total


class FoldSums:
    """The sums of one fold's logits over a sweep, forward pass after forward pass."""

    def __init__(self, sweep: Sweep, network: Network, classes: int) -> None:
        self._sweep, self._network, self._classes = sweep, network, classes
        self._total = zeros_like(sweep.data, (classes, *sweep.shape), "float16")
        self.tiles_done = 0

    @property
    def is_complete(self) -> bool:
        """Whether every tile is in the sums."""
        return self.tiles_done == len(self._sweep.tiles)

    def passes(self) -> Iterator[tuple[Array, bool]]:
        """Run the network, and yield each pass's logits, (1, class, *patch), and whether its tile is done with it.

        The caller may stop at any time; a tile whose last pass was yielded is in the sums.
        """
        sweep, xp = self._sweep, namespace(self._sweep.data)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for values that are not finite
            for tile in sweep.tiles:
                image = sweep.data[(slice(None), *tile)].reshape(1, 1, *sweep.patch)
                logits = self._network(image)
                for axes in sweep.flips[1:]:
                    yield logits, False
                    logits += xp.flip(self._network(xp.flip(image, axis=axes)), axis=axes)
                if len(sweep.flips) > 1:
                    logits /= len(sweep.flips)
                self._add(tile, logits[0])
                yield logits, True

    def logits(self) -> Array:
        """Return the mean logits (class, z, y, x), float16. Voxels that no tile has reached are background.

        The sums are used up by this.
        """
        sweep, total = self._sweep, self._total
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_complete:
                total /= sweep.weights
            else:
                weights = sweep.sum_of_weights(sweep.tiles[: self.tiles_done])
                total[0][weights == 0] = CERTAIN
                weights[weights == 0] = 1
                total /= weights
        return total[(slice(None), *sweep.inside)]

    def _add(self, tile: Slices, logits: Array) -> None:
        logits *= self._sweep.tile_weights
        part = self._total[(slice(None), *tile)]
        part += logits.reshape(self._classes, *(side.stop - side.start for side in tile))
        self.tiles_done += 1


def sweep_bytes(shape: tuple[int, ...], patch: tuple[int, ...], *, classes: int, folds: int) -> int:
    """Return the bytes that sweeps over a prepared volume of a shape (z, y, x) take where they happen.

    The volume, twice when it is padded; the logits of this fold and, from the second one on, of all before; the
    weights; and the search for infinities, class by class.
    """
    single, half = np.dtype(np.float32).itemsize, np.dtype(np.float16).itemsize
    return math.prod(padded(shape, patch)) * (2 * single + (min(2, folds) * classes + 1) * half + SEARCH_BYTES)


def _middle(data: Array) -> list[float]:
    """Return the middle (z, y, x) of the voxels above 0, after a z-score the body's; of all voxels without any."""
    body = to_host(data > 0)
    if not body.any():
        return [(size - 1) / 2 for size in body.shape]
    axes = range(body.ndim)
    counts = [body.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return [float(np.average(np.arange(len(count)), weights=count)) for count in counts]


def _distance(tile: Slices, middle: list[float]) -> float:
    """Return the distance of a tile's middle from a point, in voxels."""
    return math.dist([(part.start + part.stop - 1) / 2 for part in tile], middle)
