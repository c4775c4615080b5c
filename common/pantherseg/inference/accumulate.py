"""One network over a whole volume: tiles, mirroring, and the weighted mean of what overlaps.

nnU-Net's order and precision: forward passes in the network's own, sums in float16. Sums in float32 would be
closer to the truth and farther from nnU-Net's masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.inference.tiles import Slices, padding, tile_weights, tiles

# (1, 1, *patch) -> (1, class, *patch)
Network = Callable[[NDArray[np.float32]], NDArray[Any]]


class Sweep:
    """The tiles of one prepared volume, the same for every fold.

    data: (1, z, y, x) float32; patch: (z, y, x), or (y, x) for a network that sees slices; step: distance of tiles as a
    fraction of the patch; mirroring_axes: spatial axes along which inputs are also mirrored, 0 = z (or y for slices).
    """

    def __init__(
        self, data: NDArray[np.float32], patch: tuple[int, ...], *, step: float, mirroring_axes: tuple[int, ...] = ()
    ) -> None:
        pads = padding(data.shape[1:], patch)
        self._data = np.pad(data, [(0, 0), *pads]) if any(map(any, pads)) else data
        self._inside = tuple(
            slice(before, before + size) for (before, _), size in zip(pads, data.shape[1:], strict=True)
        )
        self._patch = patch
        self.tiles = tiles(self._data.shape[1:], patch, step)
        weights = tile_weights(patch)
        # Their values are float16's; products are computed in float32 anyway, and faster from there.
        self._weights = weights.astype(np.float32)
        self._flips = [
            tuple(axis + 2 for axis in axes)
            for count in range(len(mirroring_axes) + 1)
            for axes in itertools.combinations(mirroring_axes, count)
        ]
        self._total = np.zeros(self._data.shape[1:], np.float16)
        for tile in self.tiles:
            self._total[tile] += weights

    def run(self, network: Network, classes: int, *, on_tile: Callable[[], object]) -> NDArray[np.float16]:
        """Return a network's logits (class, z, y, x); `on_tile` is called after each tile."""
        total = np.zeros((classes, *self._data.shape[1:]), np.float16)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by the caller
            for tile in self.tiles:
                logits = self._forward(network, tile)
                logits *= self._weights
                total[(slice(None), *tile)] += logits.reshape(classes, *self._shape(tile))
                on_tile()
            total /= self._total
        return total[(slice(None), *self._inside)]

    def _forward(self, network: Network, tile: Slices) -> NDArray[Any]:
        """Return a tile's logits, (class, *patch), the mean over mirrored inputs."""
        image = np.ascontiguousarray(self._data[(slice(None), *tile)]).reshape(1, 1, *self._patch)
        logits = network(image)
        for axes in self._flips[1:]:
            logits += np.flip(network(np.ascontiguousarray(np.flip(image, axes))), axes)
        if len(self._flips) > 1:
            logits /= len(self._flips)
        tile_logits: NDArray[Any] = logits[0]
        return tile_logits

    def _shape(self, tile: Slices) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in tile)
