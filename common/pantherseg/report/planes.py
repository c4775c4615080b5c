"""Cuts through a volume: which slices to show, their orientation in the patient, and their grey values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.labels import tumour_of
from pantherseg.orientation import Orientation
from pantherseg.volume import Box, Grid, Volume

Mask = NDArray[np.bool_]

WINDOW_PERCENTILES = (1.0, 99.5)
# More voxels than this are subsampled, because their percentiles would take seconds.
MAX_WINDOW_VOXELS = 2_000_000
ZOOM_MARGIN_MM = 15.0
MIN_ZOOM_MM = 60.0

# The cuts across the axes z, y, x: their names, and the patient's sides at the left, right, top and bottom.
DISPLAYED: Orientation = "LPS"
PLANES = ("axial", "coronal", "sagittal")
ENDS = (("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"))


@dataclass(frozen=True)
class Scene:
    """A case to draw: grey values from 0 to 1, and the predicted and the reference tumour, all (z, y, x) in LPS."""

    grey: NDArray[np.float32]
    predicted: Mask
    reference: Mask | None
    grid: Grid

    @classmethod
    def of(cls, image: Volume, mask: Volume, reference: Volume | None, *, title: str) -> Scene:
        """Return the scene of volumes (z, y, x) on one grid, each in any voxel order; they are turned to LPS.

        Raises InputError if a mask is not on the grid of the image. title: the case, for the error.
        """
        image, mask = image.turned_to(DISPLAYED), mask.turned_to(DISPLAYED)
        if reference is not None:
            reference = reference.turned_to(DISPLAYED)
        for name, other in (("mask", mask), ("reference", reference)):
            difference = image.grid.difference(other.grid) if other else ""
            if difference:
                raise InputError(f"{name} of {title}", expected="the grid of the image", found=difference)
        return cls(
            grey=windowed(image),
            predicted=tumour_of(mask.array),
            reference=None if reference is None else tumour_of(reference.array),
            grid=image.grid,
        )

    @property
    def tumour(self) -> Mask:
        """What belongs to a tumour by the prediction or by the reference."""
        return self.predicted if self.reference is None else self.predicted | self.reference

    def crop(self, box: Box) -> Scene:
        """Return the scene in a box; its arrays are views."""
        return Scene(
            grey=self.grey[box.slices],
            predicted=self.predicted[box.slices],
            reference=None if self.reference is None else self.reference[box.slices],
            grid=self.grid.crop(box),
        )

    @property
    def target(self) -> Mask:
        """The tumour that decides which slices are shown: that of the reference, or the predicted one without it."""
        return self.predicted if self.reference is None or not self.reference.any() else self.reference

    @property
    def main_axis(self) -> int:
        """The array axis across which the slices lie: the one with the largest spacing, the first of equal ones."""
        return int(np.argmax(self.grid.spacing))

    def focus(self, axis: int) -> int:
        """Return the index with the most tumour along an array axis, or the middle one without a tumour."""
        others: tuple[int, ...] = tuple(a for a in range(3) if a != axis)
        area = self.target.sum(axis=others)
        return int(area.argmax()) if area.any() else self.grid.shape[axis] // 2


@dataclass(frozen=True)
class Plane:
    """One cut in display orientation: arrays (rows, columns), spacing (row, column) in mm.

    index, count: which slice of how many; ends: the patient's sides (R, L, A, P, I or S) at the left, right, top and
    bottom of the picture.
    """

    name: str
    index: int
    count: int
    grey: NDArray[np.float32]
    predicted: Mask
    reference: Mask | None
    spacing: tuple[float, float]
    ends: tuple[str, str, str, str]

    def zoomed(self) -> Plane | None:
        """Return the region around the tumours of this cut, at least 60 mm wide, or None without a tumour."""
        tumour = self.predicted if self.reference is None else self.predicted | self.reference
        if not tumour.any():
            return None
        rows, columns = np.asarray(tumour.any(axis=1)), np.asarray(tumour.any(axis=0))
        window = _window(rows, self.spacing[0]), _window(columns, self.spacing[1])
        return replace(
            self,
            grey=self.grey[window],
            predicted=self.predicted[window],
            reference=None if self.reference is None else self.reference[window],
        )


def cut(scene: Scene, axis: int, index: int | None = None) -> Plane:
    """Return a cut across an array axis (0, 1, 2 = z, y, x), in radiological convention.

    The right of the picture is the patient's left (or posterior), the bottom is posterior (or inferior). index: of the
    slice; by default the one with the most tumour.
    """
    rows, columns = (a for a in range(3) if a != axis)
    index = scene.focus(axis) if index is None else index

    def shown(array: NDArray[Any]) -> NDArray[Any]:
        picture: NDArray[Any] = np.take(array, index, axis=axis)
        return picture[::-1] if rows == 0 else picture  # z runs upwards

    return Plane(
        name=PLANES[axis],
        index=index,
        count=scene.grid.shape[axis],
        grey=shown(scene.grey),
        predicted=shown(scene.predicted),
        reference=None if scene.reference is None else shown(scene.reference),
        spacing=(scene.grid.spacing[rows], scene.grid.spacing[columns]),
        ends=ENDS[axis],
    )


def windowed(image: Volume) -> NDArray[np.float32]:
    """Return the voxels (z, y, x) scaled from the 1st and 99.5th percentile to 0 and 1; a constant image becomes 0."""
    array = image.array.astype(np.float32)
    step = max(1, array.size // MAX_WINDOW_VOXELS)
    low, high = np.percentile(array.ravel()[::step], WINDOW_PERCENTILES)
    if high <= low:
        # Nearly all voxels are equal, but the others must still be visible.
        low, high = float(array.min()), float(array.max())
    if high <= low:
        return np.zeros_like(array)
    scaled: NDArray[np.float32] = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
    return scaled


def _window(occupied: Mask, spacing_mm: float) -> slice:
    """Return the range of the true entries plus a margin, at least MIN_ZOOM_MM wide, clipped to the array."""
    indices = np.flatnonzero(occupied)
    middle = (indices[0] + indices[-1] + 1) / 2
    width = max((indices[-1] + 1 - indices[0]) * spacing_mm + 2 * ZOOM_MARGIN_MM, MIN_ZOOM_MM) / spacing_mm
    start = max(0, round(middle - width / 2))
    return slice(start, max(start + 1, min(len(occupied), round(middle + width / 2))))
