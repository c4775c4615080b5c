"""The positions of the tiles of a volume, and the weight of each voxel of a tile.

Both equal nnU-Net's bit for bit (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The standard deviation of the Gaussian weights as a fraction of the tile, and their maximum.
SIGMA = 1 / 8
PEAK = 10
# scipy's gaussian_filter cuts its kernel off at this many standard deviations.
TRUNCATE = 4.0

Slices = tuple[slice, ...]


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Return the first voxel of each tile along an axis of `size` >= `tile` voxels, at most `step` tiles apart."""
    last = size - tile
    count = math.ceil(last / (tile * step)) + 1
    # np.round rounds halves to the even neighbour, as nnU-Net does
    return [int(np.round(last / (count - 1) * number)) if count > 1 else 0 for number in range(count)]


def tiles(shape: tuple[int, ...], patch: tuple[int, ...], step: float) -> list[Slices]:
    """Return the tiles of a volume of a shape (z, y, x), which must not be smaller than the patch, in nnU-Net's order.

    patch: (z, y, x), or (y, x) for tiles of single slices.
    """
    flat = len(shape) - len(patch)
    per_axis = [[slice(z, z + 1) for z in range(size)] for size in shape[:flat]]
    for size, tile in zip(shape[flat:], patch, strict=True):
        per_axis.append([slice(start, start + tile) for start in tile_starts(size, tile, step)])
    return list(itertools.product(*per_axis))


@lru_cache(maxsize=2)
def tile_weights(patch: tuple[int, ...]) -> NDArray[np.float16]:
    """Return the weight of each voxel of a tile: a Gaussian around its middle, float16, everywhere above 0."""
    weights = np.ones((), np.float64)
    for size in patch:
        weights = weights[..., None] * _bell(size)
    weights /= weights.max() / PEAK
    # torch converts float64 to float16 by way of float32 and so rounds twice
    half = weights.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    half.flags.writeable = False
    return half


def _bell(size: int) -> NDArray[np.float64]:
    """Return a Gaussian around the voxel size // 2, cut off and normalised as in scipy's gaussian_filter1d."""
    sigma = size * SIGMA
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    kernel /= kernel.sum()
    bell = np.zeros(size)
    indices = offsets + size // 2
    inside = (indices >= 0) & (indices < size)
    bell[indices[inside]] = kernel[inside]
    return bell


def padding(shape: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return how many voxels to add before and after each axis so that a patch fits; an odd one is added after."""
    missing = [new - old for old, new in zip(shape, padded(shape, patch), strict=True)]
    return [(count // 2, count - count // 2) for count in missing]


def padded(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (z, y, x) of a volume after padding; a patch (y, x) does not change z."""
    flat = len(shape) - len(patch)
    return (*shape[:flat], *(max(size, tile) for size, tile in zip(shape[flat:], patch, strict=True)))
