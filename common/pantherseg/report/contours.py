"""Contours of masks as paths of SVG."""

from __future__ import annotations

from pantherseg.contours import Mask, Point, contours


def contour_path(mask: Mask) -> str:
    """Return the path (the attribute `d`) of the closed contours of a mask (rows, columns); empty for an empty mask.

    x and y are columns and rows.
    """
    return "".join(_as_path(corners) for corners in contours(mask))


def _as_path(corners: list[Point]) -> str:
    (row, column), *others = corners
    path = [f"M{column} {row}"]
    for r, c in others:
        path.append(f"H{c}" if r == row else f"V{r}")
        row, column = r, c
    return "".join([*path, "Z"])
