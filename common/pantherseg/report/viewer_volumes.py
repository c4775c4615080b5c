"""The volumes that the page's viewer shows: 8-bit crops around the tumour, as compressed NIfTI files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pantherseg.io import write_volume
from pantherseg.report.planes import Scene
from pantherseg.report.tiles import BASE64, around_tumour
from pantherseg.volume import Grid, Volume, as_shape, as_triple

# Around the tumours.
MARGIN_MM = 30.0
# A crop is not made coarser than this to save room. It is left out instead.
MAX_SPACING_MM = 6.0


@dataclass(frozen=True)
class ViewerVolumes:
    """Crops as .nii.gz files, uint8: the grey values from 0 to 255, and the masks with 1 for the tumour.

    reference: None without a reference. spacing: of the crops, mm (z, y, x). coarser: whether that is more than in the
    volume itself.
    """

    image: bytes
    predicted: bytes
    reference: bytes | None
    spacing: tuple[float, float, float]
    coarser: bool


def viewer_volumes(scene: Scene, *, max_bytes: float) -> ViewerVolumes | None:
    """Return the crops of a case, made coarser until they add at most `max_bytes` to a page.

    None where they would have to be coarser than MAX_SPACING_MM.
    """
    crop = scene.crop(around_tumour(scene, MARGIN_MM))
    finest = crop.grid.spacing
    arrays = [np.rint(crop.grey * 255).astype(np.float32), crop.predicted.astype(np.float32)]
    arrays += [] if crop.reference is None else [crop.reference.astype(np.float32)]
    grid = crop.grid
    while True:
        files = [_nifti(arrays[0].round(), grid), *(_nifti(mask >= 0.5, grid) for mask in arrays[1:])]
        if sum(map(len, files)) * BASE64 <= max_bytes:
            reference = files[2] if len(files) > 2 else None
            return ViewerVolumes(files[0], files[1], reference, grid.spacing, coarser=grid.spacing != finest)
        # Along the finest axes first, so that voxels become more like cubes.
        axis = int(np.argmin(np.where(np.array(grid.shape) > 1, grid.spacing, np.inf)))
        if grid.shape[axis] == 1 or 2 * grid.spacing[axis] > MAX_SPACING_MM:
            return None
        arrays, grid = [_halved(array, axis) for array in arrays], _coarser(grid, axis)


def _halved(array: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the means of pairs of voxels along an axis; the last voxel of an odd number is its own pair."""
    padding = [(0, array.shape[a] % 2 if a == axis else 0) for a in range(3)]
    even = np.moveaxis(np.pad(array, padding, mode="edge"), axis, 0)
    halved: NDArray[np.float32] = np.moveaxis((even[::2] + even[1::2]) * np.float32(0.5), 0, axis)
    return halved


def _coarser(grid: Grid, axis: int) -> Grid:
    """Return the grid of pairs of voxels along an axis."""
    step = np.zeros(3)
    step[axis] = grid.spacing[axis] / 2
    spacing, shape = list(grid.spacing), list(grid.shape)
    spacing[axis], shape[axis] = 2 * spacing[axis], (shape[axis] + 1) // 2
    origin = np.array(grid.origin) + np.array(grid.direction) @ step[::-1]
    return replace(grid, shape=as_shape(shape), spacing=as_triple(spacing), origin=as_triple(origin))


def _nifti(array: NDArray[np.generic], grid: Grid) -> bytes:
    with tempfile.TemporaryDirectory(prefix="pantherseg-report-") as folder:
        path = Path(folder) / "crop.nii.gz"
        write_volume(Volume(array.astype(np.uint8), grid), path)
        return path.read_bytes()
