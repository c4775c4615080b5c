"""One network over a whole volume: tiles, mirroring, and the weighted mean where tiles overlap.

The order and precision are nnU-Net's: forward passes in the network's own precision, sums in float16. Sums in float32
would be more accurate but give masks that differ from nnU-Net's. Everything is computed on the host or the device that
holds the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pantherseg.arrays import Array, as_type, like, namespace, to_host, zeros_like
from pantherseg.inference.tiles import Slices, padded, padding, tile_weights, tiles
from pantherseg.preprocessing.preprocess import CERTAIN

# What chooses tiles takes this many bytes per voxel: margins in float16, numbers of places, five of booleans. The sums
# of weights of the tiles that were run take less, and so does the check for infinite logits.
FOCUS_BYTES = 11
# Values beyond float16 become infinite without a warning: the caller checks the logits and names the fold.
IGNORE_OVERFLOW = np.errstate(over="ignore", invalid="ignore")

# Takes a view (1, 1, *patch), returns a new array (1, class, *patch) on the same device.
Network = Callable[[Array], Array]


class Sweep:
    """The tiles of one prepared volume, the same for every fold.

    data: (1, z, y, x) float32, on the host or a device; patch: (z, y, x), or (y, x) for a 2-D network; step: distance
    of tiles as a fraction of the patch; mirroring_axes: spatial axes along which inputs are also mirrored, 0 = z (or y
    for a 2-D network); nearest: start with the tiles nearest to the middle of the body instead of in nnU-Net's order.
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
        # float16 values stored as float32, because products are computed in float32 and this is faster on the host.
        self.tile_weights = as_type(weights, "float32")
        self.flips = [
            tuple(axis + 2 for axis in axes)
            for count in range(len(mirroring_axes) + 1)
            for axes in itertools.combinations(mirroring_axes, count)
        ]
        self.weights = self.sum_of_weights(self.tiles)

    def start(self, network: Network, classes: int, numbers: Sequence[int] | None = None) -> FoldSums:
        """Return the empty sums of one fold.

        classes: number of the network's classes; numbers: of the tiles to run, in this order, None for all.
        """
        return FoldSums(self, network, classes, self.tiles if numbers is None else [self.tiles[n] for n in numbers])

    def sum_of_weights(self, tiles: list[Slices]) -> Array:
        """Return the sum of the weights of some tiles at each voxel of the padded volume, (z, y, x) float16."""
        weights = as_type(self.tile_weights, "float16")
        total = zeros_like(self.data, self.shape, "float16")
        for tile in tiles:
            part = total[tile]
            part += weights
        return total


class FoldSums:
    """The sums of one fold's logits over a sweep, which grow with each forward pass."""

    def __init__(self, sweep: Sweep, network: Network, classes: int, tiles: list[Slices]) -> None:
        self._sweep, self._network, self._classes, self._tiles = sweep, network, classes, tiles
        self._total = zeros_like(sweep.data, (classes, *sweep.shape), "float16")
        self.tiles_done = 0

    @property
    def is_complete(self) -> bool:
        """Whether the sums hold all tiles that they were started for."""
        return self.tiles_done == len(self._tiles)

    def passes(self) -> Iterator[tuple[Array, bool]]:
        """Run the network; yield the logits (1, class, *patch) of each forward pass and whether it completes a tile.

        The caller may stop at any time. A tile is in the sums once its last pass has been yielded.
        """
        sweep = self._sweep
        for tile in self._tiles:
            image = sweep.data[(slice(None), *tile)].reshape(1, 1, *sweep.patch)
            logits = self._network(image)
            for axes in sweep.flips[1:]:
                yield logits, False
                self._add_mirrored(logits, image, axes)
            self._add_tile(tile, logits[0])
            yield logits, True

    @IGNORE_OVERFLOW
    def logits(self, before: Array | None = None, folds: int = 1) -> Array:
        """Return the mean logits (class, z, y, x), float16.

        before: the sum of the logits of so many folds. Where tiles with more than half of the weight were not run, the
        mean of these folds stands in for what is missing to half; the other tiles of the same fold are nearer to what
        was not run than another fold. Without it, voxels outside of all tiles are background. This changes the sums in
        place and can be called once only.
        """
        sweep, total = self._sweep, self._total
        inside = total[(slice(None), *sweep.inside)]
        if self.tiles_done == len(sweep.tiles):
            total /= sweep.weights
        elif before is None:
            weights = sweep.sum_of_weights(self._tiles[: self.tiles_done])
            total[0][weights == 0] = CERTAIN
            weights[weights == 0] = 1
            total /= weights
        else:
            self._fill(inside, before, folds)
        return inside

    def _fill(self, logits: Array, before: Array, folds: int) -> None:
        """Divide sums by their weights and mix in the mean of earlier folds, both (class, z, y, x), slice by slice."""
        sweep = self._sweep
        ran = sweep.sum_of_weights(self._tiles[: self.tiles_done])[sweep.inside]
        weights, xp = sweep.weights[sweep.inside], namespace(logits)
        for z in range(logits.shape[1]):
            own, every = as_type(ran[z], "float32"), as_type(weights[z], "float32")
            share = xp.clip(2 * own / every, 0, 1)
            mean = as_type(logits[:, z], "float32") / xp.where(own > 0, own, 1)
            mixed = share * mean + (1 - share) / folds * as_type(before[:, z], "float32")
            logits[:, z] = as_type(mixed, "float16")

    @IGNORE_OVERFLOW
    def _add_mirrored(self, logits: Array, image: Array, axes: tuple[int, ...]) -> None:
        xp = namespace(image)
        logits += xp.flip(self._network(xp.flip(image, axis=axes)), axis=axes)

    @IGNORE_OVERFLOW
    def _add_tile(self, tile: Slices, logits: Array) -> None:
        if len(self._sweep.flips) > 1:
            logits /= len(self._sweep.flips)
        logits *= self._sweep.tile_weights
        part = self._total[(slice(None), *tile)]
        part += logits.reshape(self._classes, *(side.stop - side.start for side in tile))
        self.tiles_done += 1


def sweep_bytes(shape: tuple[int, ...], patch: tuple[int, ...], *, classes: int, folds: int) -> int:
    """Return the memory in bytes for sweeps of all folds over a prepared volume of a shape (z, y, x).

    It holds the volume, twice if it is padded; the logits of the present fold and the sum of those before; the weights;
    what chooses the tiles of the next fold takes, or the check of logits; and one bit for each fold, its mask.
    """
    single, half = np.dtype(np.float32).itemsize, np.dtype(np.float16).itemsize
    voxels = math.prod(padded(shape, patch))
    masks = folds * math.ceil(voxels / 8)
    return voxels * (2 * single + (min(2, folds) * classes + 1) * half + FOCUS_BYTES) + masks


def _middle(data: Array) -> list[float]:
    """Return the middle (z, y, x) of the voxels above 0, after a z-score those of the body; without any, of all."""
    body = to_host(data > 0)
    if not body.any():
        return [(size - 1) / 2 for size in body.shape]
    axes = range(body.ndim)
    counts = [body.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return [float(np.average(np.arange(len(count)), weights=count)) for count in counts]


def _distance(tile: Slices, middle: list[float]) -> float:
    """Return the distance in voxels between the middle of a tile and a point."""
    return math.dist([(part.start + part.stop - 1) / 2 for part in tile], middle)
