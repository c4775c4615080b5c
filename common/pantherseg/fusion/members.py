"""What members are to a fusion, and what a fusion makes of them.

A label's number means the same in all members: `models.label_maps` sees to it. A member with weight 2 counts like two
members; only the ratio of the weights matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace
from pantherseg.errors import ModelError
from pantherseg.registry import Registry

# Logits on a volume's own grid are computed in slabs of about this size, as all of them would take too much memory.
SLAB_BYTES = 32 << 20


class MemberLogits(Protocol):
    """The logits of one member, computed slab by slab on the volume's grid."""

    @property
    def classes(self) -> int:
        """Number of classes, including the background."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the volume, (z, y, x)."""
        ...

    @property
    def weight(self) -> float:
        """The member's weight, more than 0."""
        ...

    @property
    def threshold(self) -> float | None:
        """The probability from which the member marks a label, None for that of the fusion."""
        ...

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop, (class, stop - start, y, x), on any device."""
        ...


class Fused(Protocol):
    """What a fusion makes of its members. Nothing is computed before it is asked for."""

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return where a label is predicted, (z, y, x)."""
        ...

    def labels(self) -> NDArray[np.uint8]:
        """Return the label map, (z, y, x). Raises ModelError for members with different numbers of classes."""
        ...

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the probability of a label, (z, y, x)."""
        ...


class Fusion:
    """A way to fuse members."""

    registry: ClassVar[Registry[Fusion]] = Registry("fusion")
    same_classes: ClassVar[bool] = True
    """Whether all members must have the same number of classes."""
    takes_weights: ClassVar[bool] = True
    """Whether members may have different weights."""
    takes_thresholds: ClassVar[bool] = False
    """Whether members may have thresholds of their own."""
    max_members: ClassVar[int | None] = None
    """How many members can be fused at most; None for any number."""

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError for members that cannot be fused in this way."""
        raise NotImplementedError


def check_same_classes(members: Sequence[MemberLogits]) -> None:
    """Raise ModelError unless all members have the same number of classes."""
    first = members[0].classes
    if other := next((member.classes for member in members if member.classes != first), None):
        raise ModelError("fusion", expected=f"members with {first} classes each", found=f"one with {other}")


def slices_of(members: Sequence[MemberLogits]) -> Iterator[slice]:
    """Yield slices along z in which the logits of one member take about SLAB_BYTES."""
    depth, height, width = members[0].shape
    classes = max(member.classes for member in members)
    thickness = max(1, SLAB_BYTES // (classes * height * width * np.dtype(np.float32).itemsize))
    for start in range(0, depth, thickness):
        yield slice(start, min(start + thickness, depth))


def largest(values: Array) -> Array:
    """Return the number of the class with the largest value, (z, y, x) uint8; of equal ones the first."""
    return as_type(namespace(values).argmax(values, axis=0), "uint8")


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits, (class, z, y, x)."""
    xp = namespace(logits)
    shifted = xp.exp(logits - xp.max(logits, axis=0))
    return shifted / xp.sum(shifted, axis=0)
