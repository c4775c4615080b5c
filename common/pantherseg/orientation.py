"""Orientations: to which sides of the patient the axes of a volume run, and turns from one orientation to another.

An orientation is a code of three letters, one for each of the index axes x, y, z: the side of the patient to which the
axis runs, as in SimpleITK's DICOMOrient and nibabel's axcodes. In LPS the axes run to the patient's left, posterior and
superior. A turn permutes and flips axes, and never resamples. Arrays and shapes are (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

# fmt: off
Orientation = Literal[
    "LPS", "LPI", "LAS", "LAI", "RPS", "RPI", "RAS", "RAI",
    "LSP", "LSA", "LIP", "LIA", "RSP", "RSA", "RIP", "RIA",
    "PLS", "PLI", "PRS", "PRI", "ALS", "ALI", "ARS", "ARI",
    "PSL", "PSR", "PIL", "PIR", "ASL", "ASR", "AIL", "AIR",
    "SLP", "SLA", "SRP", "SRA", "ILP", "ILA", "IRP", "IRA",
    "SPL", "SPR", "SAL", "SAR", "IPL", "IPR", "IAL", "IAR",
]
# fmt: on
T = TypeVar("T")
Axes = tuple[int, int, int]
Flags = tuple[bool, bool, bool]

# For each physical axis (x, y, z): the side to which it runs, and the opposite side.
SIDES = ("LR", "PA", "SI")
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)
# PANTHER's volumes, and what MRSegmentator turns its volumes to.
DEFAULT_ORIENTATION: Orientation = "LPS"
# Weight of the tie-break between axes that are equally near.
TIE_BREAK = 1e-4


@dataclass(frozen=True)
class Turn:
    """A permutation of the axes of an array (z, y, x), followed by flips.

    axes: for each axis of the turned array, the axis of the array before; flipped: whether the turned axis is reversed.
    """

    axes: Axes = (0, 1, 2)
    flipped: Flags = (False, False, False)

    @classmethod
    def between(cls, start: Orientation, end: Orientation) -> Turn:
        """Return the turn from one orientation to another. Raises ValueError for an unknown one."""
        if unknown := {start, end} - set(ORIENTATIONS):
            raise ValueError(f"expected an orientation such as LPS, found {unknown.pop()!r}")
        before, after = ([_physical(letter) for letter in code[::-1]] for code in (start, end))
        axes = [before.index(axis) for axis in after]
        z, y, x = axes
        flipped = [start[::-1][own] != letter for own, letter in zip(axes, end[::-1], strict=True)]
        return cls((z, y, x), (flipped[0], flipped[1], flipped[2]))

    @property
    def inverse(self) -> Turn:
        """The turn back."""
        z, y, x = (int(axis) for axis in np.argsort(self.axes))
        return Turn((z, y, x), (self.flipped[z], self.flipped[y], self.flipped[x]))

    def then(self, transpose: Axes) -> Turn:
        """Return this turn followed by a transposition."""
        z, y, x = transpose
        axes, flipped = self.axes, self.flipped
        return Turn((axes[z], axes[y], axes[x]), (flipped[z], flipped[y], flipped[x]))

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the turned array as a view of an array."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def order(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        """Return three values, one for each axis, in the order of the turned axes."""
        z, y, x = (values[axis] for axis in self.axes)
        return z, y, x


def nearest_orientation(direction: ArrayLike) -> Orientation:
    """Return the orientation to which a direction matrix is nearest; as in nibabel and ITK, the nearest axes go first.

    direction: rows x, y, z (LPS), one column for each of the index axes x, y, z, as in ITK.
    """
    matrix = np.asarray(direction, float)
    # The product of two components keeps its sign when the column is flipped, so ties are decided alike in every order.
    nearness = np.abs(matrix) + TIE_BREAK * matrix * np.roll(matrix, -1, axis=0)
    letters = [""] * 3
    for _ in letters:
        row, column = np.unravel_index(int(nearness.argmax()), nearness.shape)
        letters[column] = SIDES[row][int(matrix[row, column] < 0)]
        nearness[row, :] = nearness[:, column] = -1
    return cast(Orientation, "".join(letters))


NO_TURN = Turn()


def _physical(letter: str) -> int:
    return next(axis for axis, sides in enumerate(SIDES) if letter in sides)
