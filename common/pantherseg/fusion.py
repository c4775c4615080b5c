"""Fusion: the logits of all members become one prediction on the volume's grid.

A fusion is a table of the recipe, `fusion = {kind = "mean_logits"}`; a new one is a class with one registration.
A member with weight 2 counts like two members; only the ratio of the weights matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, namespace, on_device_of, to_host
from pantherseg.errors import ModelError
from pantherseg.registry import Registry
from pantherseg.tables import Fraction, Table

# Logits on a volume's own grid are computed in slabs of about this size, as all of them would take too much memory.
SLAB_BYTES = 32 << 20
# The sum of the weights that vote may miss an exact half by this much, because of rounding, and still be an even vote.
EVEN = 1e-6


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

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError for members that cannot be fused in this way."""
        raise NotImplementedError


@Fusion.registry.register("mean_logits")
class MeanLogits(Table, Fusion, frozen=True):
    """The weighted mean of the members' logits, nnU-Net's own fusion. The members must have the same classes."""

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member. Raises ModelError where they have different numbers of classes."""
        _check_same_classes(members)
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


@Fusion.registry.register("vote")
class Vote(Table, Fusion, frozen=True):
    """A label is predicted where more than half of the members vote for it, by weight: an even vote is not enough.

    The probability, which a rescue looks at, is the weighted mean of the members' probabilities.
    """

    probability: Fraction = 0.5
    """A member votes for a label where its probability (softmax) is at least this."""

    same_classes: ClassVar[bool] = False

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member."""
        return FusedVotes(tuple(members), self.probability)


def _check_same_classes(members: Sequence[MemberLogits]) -> None:
    first = members[0].classes
    if other := next((member.classes for member in members if member.classes != first), None):
        raise ModelError("fusion", expected=f"members with {first} classes each", found=f"one with {other}")


def _slices(members: Sequence[MemberLogits]) -> Iterator[slice]:
    """Yield slices along z in which the logits of one member take about SLAB_BYTES."""
    depth, height, width = members[0].shape
    classes = max(member.classes for member in members)
    thickness = max(1, SLAB_BYTES // (classes * height * width * np.dtype(np.float32).itemsize))
    for start in range(0, depth, thickness):
        yield slice(start, min(start + thickness, depth))


def _largest(values: Array) -> Array:
    """Return the number of the class with the largest value, (z, y, x) uint8; of equal ones the first."""
    return as_type(namespace(values).argmax(values, axis=0), "uint8")


def _softmax(logits: Array) -> Array:
    xp = namespace(logits)
    shifted = xp.exp(logits - xp.max(logits, axis=0))
    return shifted / xp.sum(shifted, axis=0)


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
            labels[part] = to_host(_largest(logits))
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
        for part in _slices(self.members):
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
        for part in _slices(self.members):
            predicted, mean = self._predicted(part, label)
            mask[part], probability[part] = to_host(predicted), to_host(mean)
        self._kept[label] = probability
        return mask

    def labels(self) -> NDArray[np.uint8]:
        """Return the class with the largest mean, (z, y, x); of equal ones the first."""
        _check_same_classes(self.members)
        labels = np.empty(self.members[0].shape, np.uint8)
        for part in _slices(self.members):
            labels[part] = to_host(_largest(sum(share * values for share, values in self._softmax(part))))
        return labels

    def probability(self, label: int) -> NDArray[np.float32]:
        """Return the mean probability of a label, (z, y, x)."""
        if label in self._kept:
            return self._kept[label]
        probability = np.empty(self.members[0].shape, np.float32)
        for part in _slices(self.members):
            probability[part] = to_host(sum(share * values[label] for share, values in self._softmax(part)))
        return probability

    def _predicted(self, part: slice, label: int) -> tuple[Array, Array]:
        """Return where a label is predicted, and its mean probability, in slices along z."""
        if len({member.classes for member in self.members}) == 1:
            mean = sum(share * values for share, values in self._softmax(part))
            return _largest(mean) == label, mean[label]
        mean = sum(share * values[label] for share, values in self._softmax(part))
        return mean > 0.5, mean

    def _softmax(self, part: slice) -> Iterator[tuple[float, Array]]:
        """Yield each member's share of the weight and its probabilities in slices along z, (class, z, y, x) float32.

        They are on the first member's device.
        """
        total, first = sum(member.weight for member in self.members), None
        for member in self.members:
            logits = as_type(member.slab(part.start, part.stop), "float32")
            first = logits if first is None else first
            yield member.weight / total, _softmax(on_device_of(first, logits))


@dataclass(frozen=True)
class FusedVotes(FusedProbabilities):
    """The votes of members, which may have different numbers of classes.

    threshold: a member votes for a label where its probability is at least this.
    """

    threshold: float

    def labels(self) -> NDArray[np.uint8]:
        """Return the label that is predicted, (z, y, x): the lowest of several, the background where there is none."""
        _check_same_classes(self.members)
        labels = np.zeros(self.members[0].shape, np.uint8)
        for label in reversed(range(1, self.members[0].classes)):
            labels[self.mask(label)] = label
        return labels

    def _predicted(self, part: slice, label: int) -> tuple[Array, Array]:
        votes: Array = 0
        mean: Array = 0
        for share, values in self._softmax(part):
            mean = mean + share * values[label]
            votes = votes + share * as_type(values[label] >= self.threshold, "float32")
        return votes > 0.5 + EVEN, mean
