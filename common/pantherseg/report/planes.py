"""Cuts through a volume: which slices to show, how they lie in the patient, grey values for the screen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pantherseg.volume import Grid, Volume

Mask = NDArray[np.bool_]

WINDOW_PERCENTILES = (1.0, 99.5)
# Percentiles of a part of the voxels are as good and do not take a second.
MAX_WINDOW_VOXELS = 2_000_000
ZOOM_MARGIN_MM = 15.0
MIN_ZOOM_MM = 60.0

# ITK's physical axes point to the patient's left, posterior and superior.
TOWARDS = ("L", "P", "S")
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Scene:
    """What is shown: grey values 0 to 1 and tumours, all (z, y, x); the reference is None where there is none."""

    grey: NDArray[np.float32]
    predicted: Mask
    reference: Mask | None
    grid: Grid

    @property
    def shown(self) -> Mask:
        """The tumour that decides which slices are shown: the reference's, or else the predicted one."""
        return self.predicted if self.reference is None or not self.reference.any() else self.reference

    def focus(self, axis: int) -> int:
        """Return the index with most tumour along an array axis, or the middle one without a tumour."""
        others: tuple[int, ...] = tuple(a for a in range(3) if a != axis)
        area = self.shown.sum(axis=others)
        return int(area.argmax()) if area.any() else self.grid.shape[axis] // 2


@dataclass(frozen=True)
class Plane:
    """One cut, as it lies on the screen: arrays (rows, columns), spacing mm (row, column).

    ends: the patient's sides at the picture's left, right, top and bottom, as letters of R/L, A/P, I/S.
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
        """Return the region around the tumours of this cut, at least 60 mm wide; None without a tumour."""
        tumour = self.predicted if self.reference is None else self.predicted | self.reference
        if not tumour.any():
            return None
        hits = np.asarray(tumour.any(axis=1)), np.asarray(tumour.any(axis=0))
        window = _window(hits[0], self.spacing[0]), _window(hits[1], self.spacing[1])
        return replace(
            self,
            grey=self.grey[window],
            predicted=self.predicted[window],
            reference=None if self.reference is None else self.reference[window],
        )


def cut(scene: Scene, axis: int) -> Plane:
    """Return the cut with most tumour across an array axis (0, 1, 2 = z, y, x), turned as radiologists see it.

    Right of the picture is the patient's left (or posterior), below is posterior (or inferior). An axial volume with x
    to the patient's left and y to the posterior lies so already; an axis is turned round where it runs the other way.
    """
    rows, columns = (a for a in range(3) if a != axis)
    index = scene.focus(axis)
    right, bottom = _side(scene.grid, columns), _side(scene.grid, rows)
    mirrored, upside_down = right in ("R", "A"), bottom in ("A", "S")
    turn = slice(None, None, -1 if upside_down else 1), slice(None, None, -1 if mirrored else 1)

    def mask(array: Mask) -> Mask:
        return np.asarray(np.take(array, index, axis=axis)[turn], bool)

    left, top = OPPOSITE[right], OPPOSITE[bottom]
    return Plane(
        name=PLANES[_physical(scene.grid, axis)],
        index=index,
        count=scene.grid.shape[axis],
        grey=np.asarray(np.take(scene.grey, index, axis=axis)[turn], np.float32),
        predicted=mask(scene.predicted),
        reference=None if scene.reference is None else mask(scene.reference),
        spacing=(scene.grid.spacing[rows], scene.grid.spacing[columns]),
        ends=(*((right, left) if mirrored else (left, right)), *((bottom, top) if upside_down else (top, bottom))),
    )


def windowed(image: Volume) -> NDArray[np.float32]:
    """Return voxels (z, y, x) between the 1st and the 99.5th percentile as 0 to 1; a constant image as 0."""
    array = image.array.astype(np.float32)
    step = max(1, array.size // MAX_WINDOW_VOXELS)
    low, high = np.percentile(array.ravel()[::step], WINDOW_PERCENTILES)
    if high <= low:
        # Nearly all voxels are the same: what differs must still be seen.
        low, high = float(array.min()), float(array.max())
    if high <= low:
        return np.zeros_like(array)
    scaled: NDArray[np.float32] = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
    return scaled


def _physical(grid: Grid, axis: int) -> int:
    """Return the physical axis (0, 1, 2 = x, y, z) that an array axis runs along most."""
    return int(np.abs(np.array(grid.direction)[:, 2 - axis]).argmax())


def _side(grid: Grid, axis: int) -> str:
    """Return the patient's side that an array axis goes to."""
    physical = _physical(grid, axis)
    return TOWARDS[physical] if grid.direction[physical][2 - axis] > 0 else OPPOSITE[TOWARDS[physical]]


def _window(hit: Mask, spacing_mm: float) -> slice:
    """Return the range of the true entries with a margin, grown to the minimal width, within the array."""
    where = np.flatnonzero(hit)
    middle = (where[0] + where[-1] + 1) / 2
    wide = max((where[-1] + 1 - where[0]) * spacing_mm + 2 * ZOOM_MARGIN_MM, MIN_ZOOM_MM) / spacing_mm
    start = max(0, round(middle - wide / 2))
    return slice(start, max(start + 1, min(len(hit), round(middle + wide / 2))))
