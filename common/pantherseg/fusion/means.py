"""Fusion by a mean: of the members' logits, or of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace, on_device_of, to_host
from pantherseg.fusion.members import Fused, Fusion, MemberLogits, check_same_classes, largest, slices_of, softmax
from pantherseg.tables import Table


@Fusion.registry.register("mean_logits")
class MeanLogits(Table, Fusion, frozen=True):
    """The weighted mean of the members' logits, nnU-Net's own fusion. The members must have the same classes."""

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError where they have different numbers of classes."""
        check_same_classes(members)
        return FusedLogits(tuple(members))


@Fusion.registry.register("mean_probability")
class MeanProbability(Table, Fusion, frozen=True):
    """The weighted mean of the members' probabilities (softmax).

    A label is predicted where its mean is the largest, and of equal ones the first; where members have different
    numbers of classes, and only the tumour's label can be compared, where its mean is above one half.
    """

    same_classes: ClassVar[bool] = False

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member."""
        return FusedProbabilities(tuple(members))


@dataclass(frozen=True)
class FusedLogits:
    """The mean logits of members with the same classes."""

    members: tuple[MemberLogits, ...]

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return where the label has the largest logit, (z, y, x)."""
        mask: NDArray[np.bool_] = self._labels == label
        return mask

    def labels(self) -> NDArray[np.uint8]:
        """Return the class with the largest logit, (z, y, x); of equal ones the first."""
        return self._labels

    @cached_property
    def _labels(self) -> NDArray[np.uint8]:
        labels = np.empty(self.members[0].shape, np.uint8)
        for part, logits in self.slabs():
            labels[part] = to_host(largest(logits))
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
        first, *others = self.members
        for part in slices_of(self.members):
            logits = as_type(first.slab(part.start, part.stop), "float32", copy=True)
            if first.weight != 1:
                logits *= first.weight
            for member in others:
                more = on_device_of(logits, member.slab(part.start, part.stop))
                logits += more if member.weight == 1 else member.weight * as_type(more, "float32")
            # The label map needs no division, but the softmax does.
            logits /= sum(member.weight for member in self.members)
            yield part, logits


@dataclass(frozen=True)
class FusedProbabilities:
    """The mean probabilities of members, which may have different numbers of classes.

    Where the mask has been computed, the probability of the same label is kept: a threshold, a rescue or a file of
    probabilities asks for it next, and computing it takes as long as the mask.
    """

    members: tuple[MemberLogits, ...]
    _kept: dict[int, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return where the label is predicted, (z, y, x)."""
        mask, probability = np.empty(self.members[0].shape, bool), np.empty(self.members[0].shape, np.float32)
        for part in slices_of(self.members):
            predicted, mean = self._predicted(part, label)
            mask[part], probability[part] = to_host(predicted), to_host(mean)
        self._kept[label] = probability
        return mask

    def labels(self) -> NDArray[np.uint8]:
        """Return the class with the largest mean, (z, y, x); of equal ones the first."""
        check_same_classes(self.members)
        labels = np.empty(self.members[0].shape, np.uint8)
        for part in slices_of(self.members):
            labels[part] = to_host(largest(sum(share * values for share, values in self._probabilities(part))))
        return labels

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the mean probability of a label, (z, y, x)."""
        if label in self._kept:
            return self._kept[label]
        probability = np.empty(self.members[0].shape, np.float32)
        for part in slices_of(self.members):
            probability[part] = to_host(sum(share * values[label] for share, values in self._probabilities(part)))
        return probability

    def _predicted(self, part: slice, label: int) -> tuple[Array, Array]:
        """Return where a label is predicted, and its mean probability, in slices along z."""
        if len({member.classes for member in self.members}) == 1:
            mean = sum(share * values for share, values in self._probabilities(part))
            return largest(mean) == label, mean[label]
        mean = sum(share * values[label] for share, values in self._probabilities(part))
        return mean > 0.5, mean

    def _probabilities(self, part: slice) -> Iterator[tuple[float, Array]]:
        """Yield each member's share of the weight and its probabilities in slices along z, (class, z, y, x) float32."""
        for share, logits in self._logits(part):
            yield share, softmax(logits)

    def _logits(self, part: slice) -> Iterator[tuple[float, Array]]:
        """Yield each member's share of the weight and its logits in slices along z, (class, z, y, x) float32.

        They are on the first member's device.
        """
        total, first = sum(member.weight for member in self.members), None
        for member in self.members:
            logits = as_type(member.slab(part.start, part.stop), "float32")
            first = logits if first is None else first
            yield member.weight / total, on_device_of(first, logits)
