"""Where tiles lie in a volume, and how much each voxel of a tile counts.

nnU-Net's choice of both (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), down to the bit.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The weight's standard deviation as a fraction of the tile, and its maximum.
SIGMA = 1 / 8
PEAK = 10
# scipy's gaussian_filter ends after so many standard deviations.
TRUNCATE = 4.0

Slices = tuple[slice, ...]


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Return where tiles begin along an axis of `size` >= `tile` voxels; they are at most `step` tiles apart."""
    last = size - tile
    count = math.ceil(last / (tile * step)) + 1
    # numpy's rounding: halves to the even neighbour
    return [int(np.round(last / (count - 1) * number)) if count > 1 else 0 for number in range(count)]


def tiles(shape: tuple[int, ...], patch: tuple[int, ...], step: float) -> list[Slices]:
    """Return the tiles of a volume (z, y, x) that is at least as large as the patch, in nnU-Net's order.

    A patch (y, x) tiles every slice.
    """
    flat = len(shape) - len(patch)
    per_axis = [[slice(z, z + 1) for z in range(size)] for size in shape[:flat]]
    for size, tile in zip(shape[flat:], patch, strict=True):
        per_axis.append([slice(start, start + tile) for start in tile_starts(size, tile, step)])
    return list(itertools.product(*per_axis))


@lru_cache(maxsize=2)
def tile_weights(patch: tuple[int, ...]) -> NDArray[np.float16]:
    """Return the weight of each voxel of a tile: a Gaussian around its middle, in float16, nowhere 0."""
    weights = np.ones((), np.float64)
    for size in patch:
        weights = weights[..., None] * _bell(size)
    weights /= weights.max() / PEAK
    # torch goes from float64 to float16 by way of float32, which rounds twice
    half = weights.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    half.flags.writeable = False
    return half


def _bell(size: int) -> NDArray[np.float64]:
    """Return a Gaussian around the voxel size // 2, cut off and normalised as scipy's gaussian_filter1d does it."""
    sigma = size * SIGMA
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    kernel /= kernel.sum()
    bell = np.zeros(size)
    places = offsets + size // 2
    inside = (places >= 0) & (places < size)
    bell[places[inside]] = kernel[inside]
    return bell


def padding(shape: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return how many voxels are put before and behind each axis so that a patch fits, the odd one behind."""
    missing = [want - size for size, want in zip(shape, padded(shape, patch), strict=True)]
    return [(lack // 2, lack - lack // 2) for lack in missing]


def padded(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a volume (z, y, x) after padding; a patch (y, x) leaves z as it is."""
    flat = len(shape) - len(patch)
    return (*shape[:flat], *(max(size, tile) for size, tile in zip(shape[flat:], patch, strict=True)))
