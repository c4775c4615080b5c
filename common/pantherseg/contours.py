"""Contours of masks along the edges of their voxels.

A point (row, column) is a corner of voxels: the voxel at (row, column) covers the rows from row to row + 1 and the
columns from column to column + 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Point = tuple[int, int]  # row, column

# The steps along an edge, so that each is the one before after a turn to the right: east, south, west, north.
STEPS: tuple[Point, ...] = ((0, 1), (1, 0), (0, -1), (-1, 0))


def contours(mask: Mask) -> Iterator[list[Point]]:
    """Yield the corners of each closed contour of a mask (rows, columns), with the mask on the right.

    Voxels that touch at a corner only have contours of their own, and so do holes.
    """
    edges = _edges(mask)
    while edges:
        start, (direction, *_) = next(iter(edges.items()))
        corners, point, came = [start], start, direction
        while point != start or len(corners) == 1:
            ways = edges[point]
            # To the right where there is a choice, so that the contour stays with its voxel.
            way = next(d for d in ((came + 1) % 4, came, (came - 1) % 4) if d in ways)
            ways.remove(way)
            if not ways:
                del edges[point]
            if way != came:
                corners.append(point)
            point, came = (point[0] + STEPS[way][0], point[1] + STEPS[way][1]), way
        yield corners


def polygons(mask: Mask) -> list[list[Point]]:
    """Return the corners of a polygon for each component of a mask (rows, columns), with its holes cut in by keyholes.

    Components are those of voxels that share an edge. A keyhole is a cut of no width from the outer contour to a hole,
    which the polygon follows there and back, so that it encloses exactly the component, by the even-odd rule and by
    the winding number.
    """
    outer: list[list[Point]] = []
    holes: list[list[Point]] = []
    for corners in contours(mask):
        (outer if _encloses_voxels(corners) else holes).append(corners)
    # From its uppermost corner, a hole's cut runs up to the contour above: the outer one, or that of a hole which
    # begins further up, and has been cut in before.
    for hole in sorted(holes, key=min):
        start = min(hole)
        first = hole.index(start)
        around = [*hole[first:], *hole[:first], start]
        polygon, place, end = _above(outer, start)
        there = [end] if polygon[place - 1] != end else []
        back = [end] if polygon[place % len(polygon)] != end else []
        polygon[place:place] = [*there, *around, *back]
    return outer


def _encloses_voxels(corners: list[Point]) -> bool:
    """Return whether a contour runs around voxels, rather than around a hole: by the sign of its area."""
    rows, columns = np.array(corners).T
    return bool(np.sum(columns * np.roll(rows, -1) - np.roll(columns, -1) * rows) > 0)


def _above(polygons: list[list[Point]], point: Point) -> tuple[list[Point], int, Point]:
    """Return the nearest horizontal edge above a corner: its polygon, the place of its second corner, the point met."""
    row, column = point
    best: tuple[list[Point], int, Point] | None = None
    for polygon in polygons:
        for place, ((r, a), (other, b)) in enumerate(zip(polygon, [*polygon[1:], polygon[0]], strict=True), start=1):
            nearer = best is None or r > best[2][0]
            if r == other and r < row and min(a, b) <= column <= max(a, b) and nearer:
                best = polygon, place, (r, column)
    if best is None:
        raise ValueError(f"the hole at {point} (row, column) lies in no contour")
    return best


def _edges(mask: Mask) -> dict[Point, list[int]]:
    """Return the directions of the edges that begin at each corner of a voxel, with the mask on their right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # The neighbour beyond the top, right, bottom and left edge, and where the edge begins in the voxel.
    sides = (
        (padded[:-2, 1:-1], (0, 0)),
        (padded[1:-1, 2:], (0, 1)),
        (padded[2:, 1:-1], (1, 1)),
        (padded[1:-1, :-2], (1, 0)),
    )
    edges: dict[Point, list[int]] = {}
    for direction, (neighbour, (row, column)) in enumerate(sides):
        for r, c in np.argwhere(inside & ~neighbour).tolist():
            edges.setdefault((r + row, c + column), []).append(direction)
    return edges
