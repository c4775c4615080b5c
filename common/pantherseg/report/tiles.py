"""The pictures of a case on a page: slices through the tumour, and whole cuts that show where it lies.

A tile is a PNG of the voxels as they are, with contours in the coordinates of the voxels that the page draws over it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pantherseg.report.contours import contour_path
from pantherseg.report.planes import Plane, Scene, cut
from pantherseg.volume import Box, as_shape

# Around the tumours, and the shortest side of a slice.
MARGIN_MM, MIN_SIDE_MM = 20.0, 80.0
# The most slices of a case, and the longest side of a picture in pixels: from the largest to the smallest form. The
# first that fits is taken, or else the last.
FORMS = ((15, 256), (12, 192), (9, 128), (6, 96), (4, 64), (3, 48))
# How much longer the text of a page is than the bytes of a picture, which is in base 64.
BASE64 = 4 / 3
CM2_PER_MM2 = 0.01


@dataclass(frozen=True)
class Tile:
    """One cut: a PNG, the contours over it as paths of SVG, and what a reader must know.

    columns, rows: voxels, in whose coordinates the contours are. width_mm, height_mm: of the whole picture. ends: the
    patient's sides at the left, right, top and bottom. predicted_cm2, reference_cm2: area of the tumour in this cut.
    """

    name: str
    png: bytes
    columns: int
    rows: int
    width_mm: float
    height_mm: float
    ends: tuple[str, str, str, str]
    predicted: str
    reference: str
    predicted_cm2: float
    reference_cm2: float | None

    @property
    def description(self) -> str:
        """What the picture shows, in words."""
        areas = [f"predicted tumour {self.predicted_cm2:.2f} cm²"]
        if self.reference_cm2 is not None:
            areas.append(f"reference {self.reference_cm2:.2f} cm²")
        return f"{self.name}: {', '.join(areas)}"

    @property
    def bytes_on_page(self) -> float:
        """How much the tile adds to a page."""
        return len(self.png) * BASE64 + len(self.predicted) + len(self.reference)


@dataclass(frozen=True)
class Tiles:
    """The pictures of a case.

    slices: through the tumour, in the order in which they lie; the one at `main` has most of it. cuts: whole, across
    the three axes. left_out: how many slices with tumour are not shown. smaller: whether that or the size of the
    pictures is due to the room on the page.
    """

    slices: tuple[Tile, ...]
    cuts: tuple[Tile, ...]
    main: int
    left_out: int
    smaller: bool


def tiles_of(scene: Scene, *, max_bytes: float) -> Tiles:
    """Return the pictures of a case in the largest form that adds at most `max_bytes` to a page, or in the smallest."""
    for form in FORMS:
        tiles = _tiles(scene, *form)
        if sum(tile.bytes_on_page for tile in (*tiles.slices, *tiles.cuts)) <= max_bytes:
            break
    return tiles


def around_tumour(scene: Scene, margin_mm: float, min_side_mm: float = 0.0) -> Box:
    """Return the box around all tumours with a margin, each side at least so long where the volume is; all without."""
    box = Box.around(scene.tumour)
    if box is None:
        return Box.whole(scene.grid.shape)
    box = box.expanded(margin_mm, scene.grid)
    sides = zip(box.start, box.stop, scene.grid.spacing, scene.grid.shape, strict=True)
    start, stop = zip(*(_lengthened(*side, min_side_mm) for side in sides), strict=True)
    return Box(as_shape(start), as_shape(stop))


def _lengthened(start: int, stop: int, spacing: float, size: int, min_mm: float) -> tuple[int, int]:
    missing = max(0, min(size, round(min_mm / spacing)) - (stop - start))
    first = min(max(0, start - missing // 2), size - (stop - start) - missing)
    return first, first + (stop - start) + missing


def _tiles(scene: Scene, most: int, pixels: int) -> Tiles:
    axis = scene.main_axis
    indices, left_out = _indices(scene, axis, most)
    near = around_tumour(scene, MARGIN_MM, MIN_SIDE_MM)
    # All along the axis, so that the numbers of the slices remain.
    start, stop = list(near.start), list(near.stop)
    start[axis], stop[axis] = 0, scene.grid.shape[axis]
    close = scene.crop(Box(as_shape(start), as_shape(stop)))
    return Tiles(
        slices=tuple(_tile(cut(close, axis, index), "slice", pixels) for index in indices),
        cuts=tuple(_tile(cut(scene, each), "cut", pixels) for each in (axis, *(a for a in range(3) if a != axis))),
        main=indices.index(scene.focus(axis)),
        left_out=left_out,
        smaller=(most, pixels) != FORMS[0],
    )


def _indices(scene: Scene, axis: int, most: int) -> tuple[list[int], int]:
    """Return evenly spread slices, with the one that has most tumour among them, and how many with tumour are not."""
    others: tuple[int, ...] = tuple(a for a in range(3) if a != axis)
    tumour = np.flatnonzero(scene.tumour.any(axis=others))
    size, focus = scene.grid.shape[axis], scene.focus(axis)
    # One slice more at each end shows where the tumour ends.
    first, last = (max(0, tumour[0] - 1), min(size - 1, tumour[-1] + 1)) if len(tumour) else (0, size - 1)
    spread = np.unique(np.rint(np.linspace(first, last, min(most, last - first + 1))).astype(int))
    spread[np.abs(spread - focus).argmin()] = focus
    return spread.tolist(), len(np.setdiff1d(tumour, spread))


def _tile(plane: Plane, kind: str, pixels: int) -> Tile:
    rows, columns = plane.grey.shape
    voxel_cm2 = plane.spacing[0] * plane.spacing[1] * CM2_PER_MM2
    return Tile(
        name=f"{plane.name} {kind} {plane.index + 1} of {plane.count}",
        png=_png(plane.grey, pixels),
        columns=columns,
        rows=rows,
        width_mm=columns * plane.spacing[1],
        height_mm=rows * plane.spacing[0],
        ends=plane.ends,
        predicted=contour_path(plane.predicted),
        reference="" if plane.reference is None else contour_path(plane.reference),
        predicted_cm2=float(plane.predicted.sum()) * voxel_cm2,
        reference_cm2=None if plane.reference is None else float(plane.reference.sum()) * voxel_cm2,
    )


def _png(grey: NDArray[np.float32], pixels: int) -> bytes:
    """Return a PNG of grey values from 0 to 1 (rows, columns), shrunk where a side is longer than `pixels`."""
    picture = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    picture.thumbnail((pixels, pixels), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
