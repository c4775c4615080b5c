"""Axes that are not exactly at right angles: rounded direction cosines are corrected, sheared volumes refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.volume import Grid, as_triple

# Directions whose products differ from the identity matrix by at most EXACT are used as they are.
EXACT = 1e-4
# Beyond, the nearest orthogonal matrix is used where rounding to two digits may be the reason: for cosines of at most
# MAX_COSINE (1 degree) between two axes, and squared lengths that differ from 1 by at most MAX_LENGTH_DIFFERENCE.
# Two digits: each component is off by up to 0.005, so products of two columns by up to 2 * 0.005 * sqrt(3) = 0.0173.
MAX_COSINE = 0.0175
MAX_LENGTH_DIFFERENCE = 0.0175

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


def as_matrix(values: NDArray[np.float64]) -> Matrix:
    """Return a 3x3 array as the direction of a `Grid`."""
    return as_triple(values[0]), as_triple(values[1]), as_triple(values[2])


def with_orthogonal_axes(path: str | Path, grid: Grid, *, hint: str = "") -> tuple[Grid, tuple[Event, ...]]:
    """Return a grid with its axes at right angles, and an event if its direction was changed.

    hint: how to resample the file; without it, the error names a call of SimpleITK. Raises InputError where the axes
    are sheared, and where the direction cosines are not of length 1.
    """
    direction = np.array(grid.direction)
    with np.errstate(over="ignore", invalid="ignore"):
        products = direction.T @ direction
        lengths = np.sqrt(np.diag(products))
        unit = direction / np.maximum(lengths, np.finfo(float).tiny)
        cosine = np.abs(np.triu(unit.T @ unit, 1)).max()
        deviation = np.abs(products - np.eye(3)).max()
    if deviation <= EXACT:
        return grid, ()
    degrees = np.degrees(np.arcsin(min(cosine, 1)))
    if cosine > MAX_COSINE:
        problem = f"the axes of the volume are not at right angles ({degrees:.2g} degrees off)"
        raise InputError(path, problem, hint=hint or f"resample it, for example in Python: {_resampling_call(grid)}")
    if not np.abs(lengths**2 - 1).max() <= MAX_LENGTH_DIFFERENCE:
        found = " ".join(f"{length:g}" for length in lengths)
        raise InputError(path, expected="direction cosines of length 1", found=f"the lengths {found}")
    # The orthogonal factor of the polar decomposition, which is the nearest one and keeps the handedness.
    left, _, right = np.linalg.svd(unit)
    off = f", and the axes are {degrees:.2g} degrees off right angles" if cosine > EXACT else ""
    message = (
        f"the direction cosines differ by up to {deviation:.1e} from an orthonormal matrix{off}; "
        "the nearest one was used"
    )
    corrected = replace(grid, direction=as_matrix(left @ right))
    return corrected, (Event(EventCode.DIRECTION_CORRECTED, message),)


def _resampling_call(grid: Grid) -> str:
    """Return the call of SimpleITK that resamples a sheared volume to the patient's axes without cutting anything off.

    Each of these axes gets the spacing of the volume's axis that is nearest to it.
    """
    steps = np.array(grid.direction) * grid.spacing[::-1]
    last = np.array(grid.shape[::-1]) - 1
    corners = np.array(list(itertools.product((0, 1), repeat=3))) * last @ steps.T + grid.origin
    spacing = np.array(grid.spacing[::-1])[np.abs(grid.direction).argmax(axis=1)]
    size = np.ceil((corners.max(axis=0) - corners.min(axis=0)) / spacing - 1e-3) + 1
    numbers = [", ".join(f"{n:.6g}" for n in values) for values in (size, corners.min(axis=0), spacing)]
    return (
        f"SimpleITK.Resample(image, ({numbers[0]}), SimpleITK.Transform(), SimpleITK.sitkLinear, "
        f"({numbers[1]}), ({numbers[2]}))"
    )
