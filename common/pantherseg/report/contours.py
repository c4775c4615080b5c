"""Contours of masks as paths of SVG, along the edges of their voxels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pantherseg.report.planes import Mask

Point = tuple[int, int]  # row, column

# The steps along an edge, so that each is the one before after a turn to the right: east, south, west, north.
STEPS: tuple[Point, ...] = ((0, 1), (1, 0), (0, -1), (-1, 0))


def contour_path(mask: Mask) -> str:
    """Return the path (the attribute `d`) of the closed contours of a mask (rows, columns); empty for an empty mask.

    x and y are columns and rows: the voxel at (row, column) covers x from column to column + 1. Voxels that touch at a
    corner only have contours of their own, and so do holes.
    """
    return "".join(_as_path(corners) for corners in _contours(mask))


def _contours(mask: Mask) -> Iterator[list[Point]]:
    """Yield the corners of each contour, in the order in which the mask lies on the right."""
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


def _as_path(corners: list[Point]) -> str:
    (row, column), *others = corners
    path = [f"M{column} {row}"]
    for r, c in others:
        path.append(f"H{c}" if r == row else f"V{r}")
        row, column = r, c
    return "".join([*path, "Z"])
