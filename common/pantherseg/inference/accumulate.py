"""One network over a whole volume: tiles, mirroring, and the weighted mean of what overlaps.

nnU-Net's order and precision: forward passes in the network's own, sums in float16. Sums in float32 would be
closer to the truth and farther from nnU-Net's masks. All of it happens where the data lie, on the host or a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from pantherseg.arrays import Array, as_type, like, namespace, zeros_like
from pantherseg.inference.tiles import Slices, padding, tile_weights, tiles

# A view (1, 1, *patch) -> an array of its own on the same device, (1, class, *patch)
Network = Callable[[Array], Array]


class Sweep:
    """The tiles of one prepared volume, the same for every fold.

    data: (1, z, y, x) float32, on the host or a device; patch: (z, y, x), or (y, x) for a network that sees slices;
    step: distance of tiles as a fraction of the patch; mirroring_axes: spatial axes along which inputs are also
    mirrored, 0 = z (or y for slices).
    """

    def __init__(
        self, data: Array, patch: tuple[int, ...], *, step: float, mirroring_axes: tuple[int, ...] = ()
    ) -> None:
        pads = padding(tuple(data.shape[1:]), patch)
        self._inside = tuple(
            slice(before, before + size) for (before, _), size in zip(pads, data.shape[1:], strict=True)
        )
        self._data = data
        if any(map(any, pads)):
            padded = [before + size + after for size, (before, after) in zip(data.shape[1:], pads, strict=True)]
            self._data = zeros_like(data, (1, *padded), "float32")
            self._data[(slice(None), *self._inside)] = data
        self._patch = patch
        self._grid = tuple(self._data.shape[1:])
        self.tiles = tiles(self._grid, patch, step)
        weights = like(data, tile_weights(patch).copy())
        # Their values are float16's; products are computed in float32 anyway, and on the host faster from there.
        self._weights = as_type(weights, "float32")
        self._flips = [
            tuple(axis + 2 for axis in axes)
            for count in range(len(mirroring_axes) + 1)
            for axes in itertools.combinations(mirroring_axes, count)
        ]
        self._total = zeros_like(data, self._grid, "float16")
        for tile in self.tiles:
            part = self._total[tile]
            part += weights

    def run(self, network: Network, classes: int, *, on_tile: Callable[[], object]) -> Array:
        """Return a network's logits (class, z, y, x), float16; `on_tile` is called after each tile."""
        total = zeros_like(self._data, (classes, *self._grid), "float16")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by the caller
            for tile in self.tiles:
                logits = self._forward(network, tile)
                logits *= self._weights
                part = total[(slice(None), *tile)]
                part += logits.reshape(classes, *self._shape(tile))
                on_tile()
            total /= self._total
        return total[(slice(None), *self._inside)]

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
