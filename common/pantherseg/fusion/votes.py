"""Fusion by the members' marks: each marks a label where it is probable enough, and a vote or STAPLE decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, as_type, to_host
from pantherseg.fusion.means import FusedProbabilities
from pantherseg.fusion.members import Fused, Fusion, MemberLogits, check_same_classes, largest, slices_of, softmax
from pantherseg.fusion.staple import MAX_RATERS, posteriors
from pantherseg.tables import Fraction, Table

# The sum of the weights that vote may miss an exact half by this much, because of rounding, and still be an even vote.
EVEN = 1e-6


@Fusion.registry.register("vote")
class Vote(Table, Fusion, frozen=True):
    """A label is predicted where more than half of the members mark it, by weight: an even vote is not enough.

    The probability, which a rescue looks at, is the weighted mean of the members' probabilities.
    """

    probability: Fraction | None = None
    """A member marks a label where its probability (softmax) is at least this; None: where its own label map has it.

    A member's own `threshold` prevails.
    """

    same_classes: ClassVar[bool] = False
    takes_thresholds: ClassVar[bool] = True

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member."""
        return FusedVotes(tuple(members), self.probability)


@Fusion.registry.register("staple")
class Staple(Table, Fusion, frozen=True):
    """A label is predicted where STAPLE, which weighs members by their agreement with the others, finds it probable.

    The prior of the label is its mean share of all voxels of the crop, so a crop with more background around the same
    marks has a lower one. The members' weights are STAPLE's own, so recipes give them none. The probability, which a
    rescue looks at, is the mean of the members' probabilities.
    """

    probability: Fraction | None = None
    """A member marks a label where its probability (softmax) is at least this; None: where its own label map has it.

    A member's own `threshold` prevails.
    """
    consensus: Fraction = 0.5
    """The label is predicted where STAPLE's probability of it is at least this."""

    same_classes: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
    takes_thresholds: ClassVar[bool] = True
    max_members: ClassVar[int | None] = MAX_RATERS

    def fuse(self, members: Sequence[MemberLogits]) -> Fused:
        """Fuse at least one member."""
        return FusedStaple(tuple(members), self.probability, self.consensus)


@dataclass(frozen=True)
class FusedVotes(FusedProbabilities):
    """The votes of members, which may have different numbers of classes.

    threshold: a member without its own marks a label where its probability is at least this; None: where it is the
    largest of the member's classes, of equal ones the first.
    """

    threshold: float | None

    def labels(self) -> NDArray[np.uint8]:
        """Return the label that is predicted, (z, y, x): the lowest of several, the background where there is none."""
        check_same_classes(self.members)
        labels = np.zeros(self.members[0].shape, np.uint8)
        for label in reversed(range(1, self.members[0].classes)):
            labels[self.mask(label)] = label
        return labels

    def _predicted(self, part: slice, label: int) -> tuple[Array, Array]:
        votes: Array = 0
        mean: Array = 0
        for share, values, marked in self._marks(part, label):
            mean = mean + share * values
            votes = votes + share * as_type(marked, "float32")
        return votes > 0.5 + EVEN, mean

    def _marks(self, part: slice, label: int) -> Iterator[tuple[float, Array, Array]]:
        """Yield each member's share of the weight, its probability of a label, and where it marks it, (z, y, x)."""
        for member, (share, logits) in zip(self.members, self._logits(part), strict=True):
            threshold = self.threshold if member.threshold is None else member.threshold
            values = softmax(logits)[label]
            yield share, values, largest(logits) == label if threshold is None else values >= threshold


@dataclass(frozen=True)
class FusedStaple(FusedVotes):
    """What STAPLE makes of the marks of members. consensus: the label is where its probability is at least this."""

    consensus: float

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return where the label is predicted, (z, y, x).

        STAPLE's probability depends only on which members mark a voxel, so that is all that is kept of it: one bit a
        member.
        """
        raters = len(self.members)
        patterns, mean = np.zeros(self.members[0].shape, np.uint16), np.zeros(self.members[0].shape, np.float32)
        counts = np.zeros(2**raters, np.int64)
        for part in slices_of(self.members):
            for number, (share, values, marked) in enumerate(self._marks(part, label)):
                mean[part] += share * to_host(values)
                patterns[part] |= to_host(marked).astype(np.uint16) << number
            counts += np.bincount(patterns[part].ravel(), minlength=2**raters)
        self._kept[label] = mean
        mask: NDArray[np.bool_] = (posteriors(counts) >= self.consensus)[patterns]
        return mask
