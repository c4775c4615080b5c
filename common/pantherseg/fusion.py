"""Members' logits -> one map of logits, a slab at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace, on_device_of, to_host
from pantherseg.errors import ModelError

# Logits on a volume's own grid exist for so many bytes at a time.
SLAB_BYTES = 32 << 20


class Member(Protocol):
    """Logits of one member, to be had slice by slice on the volume's grid."""

    @property
    def classes(self) -> int:
        """Number of classes, the background's included."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """The volume's shape, (z, y, x)."""
        ...

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop, (class, stop - start, y, x), on any device."""
        ...


@dataclass(frozen=True)
class MeanLogits:
    """The mean of members' logits. All of them on the volume's grid at once would be the largest array of a case."""

    members: tuple[Member, ...]

    def labels(self) -> NDArray[np.uint8]:
        """Return the class with the largest logit, (z, y, x); of equal ones the first."""
        labels = np.empty(self.members[0].shape, np.uint8)
        for part, logits in self._slabs():
            labels[part] = to_host(as_type(namespace(logits).argmax(logits, axis=0), "uint8"))
        return labels

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the softmax of one class, (z, y, x)."""
        probability = np.empty(self.members[0].shape, np.float32)
        for part, logits in self._slabs():
            xp = namespace(logits)
            shifted = xp.exp(logits - xp.max(logits, axis=0))
            probability[part] = to_host(shifted[label] / xp.sum(shifted, axis=0))
        return probability

    def _slabs(self) -> Iterator[tuple[slice, Array]]:
        depth, height, width = self.members[0].shape
        bytes_a_slice = self.members[0].classes * height * width * np.dtype(np.float32).itemsize
        thickness = max(1, SLAB_BYTES // bytes_a_slice)
        for start in range(0, depth, thickness):
            stop = min(start + thickness, depth)
            logits = as_type(self.members[0].slab(start, stop), "float32", copy=True)
            for member in self.members[1:]:
                logits += on_device_of(logits, member.slab(start, stop))
            # An argmax needs no mean, but a softmax does.
            logits /= len(self.members)
            yield slice(start, stop), logits


def mean_logits(members: Sequence[Member]) -> MeanLogits:
    """Return the mean of at least one member's logits. Raises ModelError where they do not have the same classes."""
    counts = {member.classes for member in members}
    if len(counts) > 1:
        first = members[0].classes
        other = next(count for count in counts if count != first)
        raise ModelError("fusion", expected=f"members with {first} classes each", found=f"one with {other}")
    return MeanLogits(tuple(members))
