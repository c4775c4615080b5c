"""Probabilities of one class as small files: 8 bits a voxel, cropped to where they are not 0, compressed.

A file is a NumPy archive (.npz) with these arrays; numpy.load reads it too:

values       uint8, (z, y, x): the probability in steps of 1/255 in a box of the volume; the size is 0 where all are 0
start        the first voxel of the box, (z, y, x)
shape        of the whole volume, (z, y, x)
spacing      in mm, (z, y, x)
origin       centre of the volume's first voxel in mm, (x, y, z), LPS
direction    3 x 3, as in ITK: columns are the directions of the axes x, y, z

A stored value differs from the probability by at most 1/510, so that 0.5 lies between 127 and 128.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError, last_line
from pantherseg.files import written_beside
from pantherseg.orientation import Orientation
from pantherseg.volume import Box, Grid, Volume, as_shape, as_triple, uncrop

SUFFIX = ".npz"
STEPS = 255
# What NumPy and zipfile raise for a damaged or encrypted file, or one whose arrays do not fit into memory.
DAMAGED = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
ARRAYS = ("values", "start", "shape", "spacing", "origin", "direction")


def write_probability(probability: Volume, path: Path) -> None:
    """Write the probabilities (0 to 1, z, y, x) of one class. Raises OutputError."""
    values = np.rint(probability.array * STEPS).astype(np.uint8)
    grid, box = probability.grid, Box.around(values > 0)
    stored = values[box.slices] if box is not None else np.zeros((0, 0, 0), np.uint8)
    start = box.start if box is not None else (0, 0, 0)
    geometry = {"shape": grid.shape, "spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction}
    with written_beside(path) as beside:
        np.savez_compressed(beside, values=stored, start=start, **geometry)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredProbability:
    """The content of a file: the probability in steps of 1/255 (uint8, z, y, x) in a box of a grid, 0 outside of it.

    box: None where the probability is 0 everywhere, and values then has no voxels.
    """

    values: NDArray[np.uint8]
    box: Box | None
    grid: Grid

    def turned_to(self, orientation: Orientation) -> StoredProbability:
        """Return the same probability on the grid in an orientation."""
        turn = self.grid.turn_to(orientation)
        box = None if self.box is None else self.box.turned(turn, self.grid.shape)
        return StoredProbability(turn.view(self.values), box, self.grid.turned(turn))


def read_probability(path: Path) -> Volume:
    """Return the probabilities of a file as a volume (float32, 0 to 1, z, y, x). Raises InputError."""
    stored = read_stored(path)
    values = stored.values.astype(np.float32) / STEPS
    if stored.box is None:
        return Volume(np.zeros(stored.grid.shape, np.float32), stored.grid)
    return Volume(uncrop(values, stored.box, stored.grid.shape), stored.grid)


def read_stored(path: Path) -> StoredProbability:
    """Return the probabilities of a file as they are stored. Raises InputError."""
    try:
        # Opened here, as numpy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in ARRAYS}
        x, y, z = (as_triple(row) for row in arrays["direction"])
        shape = as_shape(arrays["shape"])
        grid = Grid(shape, as_triple(arrays["spacing"]), as_triple(arrays["origin"]), (x, y, z))
        values = arrays["values"]
        if values.dtype != np.uint8 or values.ndim != 3:
            raise ValueError(f"values of the type {values.dtype} in {values.ndim} dimensions")
        if not values.size:
            return StoredProbability(values, None, grid)
        start = as_shape(arrays["start"])
        box = Box(start, as_shape(np.add(start, values.shape)))
        if any(stop > size for stop, size in zip(box.stop, shape, strict=True)):
            raise ValueError(f"a box up to {box.stop} in a volume of {shape} voxels (z, y, x)")
        return StoredProbability(values, box, grid)
    except DAMAGED as error:
        raise InputError(path, expected="the probabilities of a class (.npz)", found=last_line(error)) from error
