"""Fusion: the logits of all members become one prediction on the volume's grid.

A fusion is a table of the recipe, `fusion = {kind = "mean_logits"}`; a new one is a class with one registration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace, on_device_of, to_host
from pantherseg.errors import ModelError
from pantherseg.registry import Registry
from pantherseg.tables import Table

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

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop, (class, stop - start, y, x), on any device."""
        ...


class Fused(Protocol):
    """What a fusion makes of its members. Nothing is computed before it is asked for."""

    def labels(self) -> NDArray[np.uint8]:
        """Return the label map, (z, y, x)."""
        ...

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the probability of a label, (z, y, x)."""
        ...


class Fusion:
    """A way to fuse members."""

    registry: ClassVar[Registry[Fusion]] = Registry("fusion")

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError for members that cannot be fused in this way."""
        raise NotImplementedError


@Fusion.registry.register("mean_logits")
class MeanLogits(Table, Fusion, frozen=True):
    """The mean of the members' logits, nnU-Net's own fusion. The members must have the same classes."""

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError where they have different numbers of classes."""
        first = members[0].classes
        if other := next((member.classes for member in members if member.classes != first), None):
            raise ModelError("fusion", expected=f"members with {first} classes each", found=f"one with {other}")
        return FusedLogits(tuple(members))


@dataclass(frozen=True)
class FusedLogits:
    """The mean logits of members with the same classes."""

    members: tuple[MemberLogits, ...]

    def labels(self) -> NDArray[np.uint8]:
        """Return the class with the largest logit, (z, y, x); of equal ones the first."""
        labels = np.empty(self.members[0].shape, np.uint8)
        for part, logits in self.slabs():
            labels[part] = to_host(as_type(namespace(logits).argmax(logits, axis=0), "uint8"))
        return labels

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the softmax of one class, (z, y, x)."""
        probability = np.empty(self.members[0].shape, np.float32)
        for part, logits in self.slabs():
            xp = namespace(logits)
            shifted = xp.exp(logits - xp.max(logits, axis=0))
            probability[part] = to_host(shifted[label] / xp.sum(shifted, axis=0))
        return probability

    def slabs(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices along z and the mean logits of them, (class, z, y, x) float32, on the first member's device."""
        depth, height, width = self.members[0].shape
        bytes_per_slice = self.members[0].classes * height * width * np.dtype(np.float32).itemsize
        thickness = max(1, SLAB_BYTES // bytes_per_slice)
        for start in range(0, depth, thickness):
            stop = min(start + thickness, depth)
            logits = as_type(self.members[0].slab(start, stop), "float32", copy=True)
            for member in self.members[1:]:
                logits += on_device_of(logits, member.slab(start, stop))
            # The label map needs no division, but the softmax does.
            logits /= len(self.members)
            yield slice(start, stop), logits
