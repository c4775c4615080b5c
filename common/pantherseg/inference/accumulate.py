"""One network over a whole volume: tiles, mirroring, and the weighted mean of what overlaps.

nnU-Net's order and precision: forward passes in the network's own, sums in float16. Sums in float32 would be
closer to the truth and farther from nnU-Net's masks. All of it happens where the data lie, on the host or a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from pantherseg.arrays import Array, as_type, like, namespace, to_host, zeros_like
from pantherseg.inference.tiles import Slices, padded, padding, tile_weights, tiles
from pantherseg.preprocessing.preprocess import CERTAIN

# A copy in float16 and three of booleans: what a look for infinities takes of a voxel.
LOOK_BYTES = 5

# A view (1, 1, *patch) -> an array of its own on the same device, (1, class, *patch)
Network = Callable[[Array], Array]


class Sweep:
    """The tiles of one prepared volume, the same for every fold.

    data: (1, z, y, x) float32, on the host or a device; patch: (z, y, x), or (y, x) for a network that sees slices;
    step: distance of tiles as a fraction of the patch; mirroring_axes: spatial axes along which inputs are also
    mirrored, 0 = z (or y for slices); nearest: begin with the tiles nearest to the middle of the body, in place of
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
        self._inside = tuple(
            slice(before, before + size) for (before, _), size in zip(pads, data.shape[1:], strict=True)
        )
        self._data = data
        if any(map(any, pads)):
            self._data = zeros_like(data, (1, *padded(tuple(data.shape[1:]), patch)), "float32")
            self._data[(slice(None), *self._inside)] = data
        self._patch = patch
        self._grid = tuple(self._data.shape[1:])
        self.tiles = tiles(self._grid, patch, step)
        if nearest:
            middle = _middle(self._data[0])
            self.tiles.sort(key=lambda tile: _distance(tile, middle))
        weights = like(data, tile_weights(patch).copy())
        # Their values are float16's; products are computed in float32 anyway, and on the host faster from there.
        self._weights = as_type(weights, "float32")
        self._flips = [
            tuple(axis + 2 for axis in axes)
            for count in range(len(mirroring_axes) + 1)
            for axes in itertools.combinations(mirroring_axes, count)
        ]
        self._total = self._weights_of(self.tiles)

    def run(
        self,
        network: Network,
        classes: int,
        *,
        on_tile: Callable[[], object],
        go_on: Callable[[], bool] = lambda: True,
    ) -> tuple[Array, int]:
        """Return a network's logits (class, z, y, x), float16, and the number of tiles that they are made of.

        on_tile: called after each tile; go_on: asked before each tile but the first. What none reaches is background.
        """
        total = zeros_like(self._data, (classes, *self._grid), "float16")
        done = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by the caller
            for tile in self.tiles:
                if done and not go_on():
                    break
                logits = self._forward(network, tile)
                logits *= self._weights
                part = total[(slice(None), *tile)]
                part += logits.reshape(classes, *self._shape(tile))
                done += 1
                on_tile()
            if done == len(self.tiles):
                total /= self._total
            else:
                weights = self._weights_of(self.tiles[:done])
                total[0][weights == 0] = CERTAIN
                weights[weights == 0] = 1
                total /= weights
        return total[(slice(None), *self._inside)], done

    def _weights_of(self, tiles: list[Slices]) -> Array:
        """Return the sum of weights of each voxel, float16."""
        weights = as_type(self._weights, "float16")
        total = zeros_like(self._data, self._grid, "float16")
        for tile in tiles:
            part = total[tile]
            part += weights
        return total

    def _forward(self, network: Network, tile: Slices) -> Array:
        """Return a tile's logits, (class, *patch), the mean over mirrored inputs."""
        flip = namespace(self._data).flip
        image = self._data[(slice(None), *tile)].reshape(1, 1, *self._patch)
        logits = network(image)
        for axes in self._flips[1:]:
            logits += flip(network(flip(image, axis=axes)), axis=axes)
        if len(self._flips) > 1:
            logits /= len(self._flips)
        return logits[0]

    def _shape(self, tile: Slices) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in tile)


def sweep_bytes(shape: tuple[int, ...], patch: tuple[int, ...], *, classes: int, folds: int) -> int:
    """Return what sweeps over a prepared volume of a shape (z, y, x) keep where they happen.

    The volume, twice when it is padded; the logits of this fold and, from the second one on, of all before; weights;
    and what a look for infinities takes, class by class.
    """
    single, half = np.dtype(np.float32).itemsize, np.dtype(np.float16).itemsize
    return math.prod(padded(shape, patch)) * (2 * single + (min(2, folds) * classes + 1) * half + LOOK_BYTES)


def _middle(data: Array) -> list[float]:
    """Return the middle of the voxels (z, y, x) above 0, after a z-score the body's; of all where there are none."""
    body = to_host(data > 0)
    if not body.any():
        return [(size - 1) / 2 for size in body.shape]
    axes = range(body.ndim)
    counts = [body.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return [float(np.average(np.arange(len(count)), weights=count)) for count in counts]


def _distance(tile: Slices, middle: list[float]) -> float:
    """Return how far a tile's middle lies from another, in voxels."""
    return math.dist([(part.start + part.stop - 1) / 2 for part in tile], middle)
