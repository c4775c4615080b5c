"""Candidates: an ensemble of some members, and the rule by which its probabilities become a mask.

The mask is computed from probabilities in 8 bits with whole numbers. That of the recipe can differ in voxels whose
fused probability, or for a vote a member's, is within 1/510 of the threshold; besides, a rescue may end at another
voxel where probabilities are that small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pantherseg.io.probabilities import STEPS
from pantherseg.postprocess import Components

FusionName = Literal["mean_probability", "vote"]
FUSIONS: tuple[FusionName, ...] = ("mean_probability", "vote")
# Before post-processing is chosen, the tumour is where it is as probable as not.
HALF = 0.5


@dataclass(frozen=True)
class Rule:
    """How members become a mask.

    probability: the tumour is where the weighted mean of the members is at least this; for a vote, a member votes for
    it there, and more than half of the votes decide. components: which components are kept; None for all.
    """

    fusion: FusionName = "mean_probability"
    probability: float = HALF
    components: Components | None = None


@dataclass(frozen=True)
class Candidate:
    """An ensemble with a rule. counts: how often each member was taken, which is its weight."""

    counts: tuple[int, ...]
    rule: Rule = Rule()

    def __post_init__(self) -> None:
        # {2, 2} and {1, 1} are the same ensemble.
        divisor = math.gcd(*self.counts)
        if divisor > 1:
            object.__setattr__(self, "counts", tuple(count // divisor for count in self.counts))

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of the members that take part."""
        return tuple(number for number, count in enumerate(self.counts) if count)


def tumour_in(values: NDArray[np.uint8], counts: tuple[int, ...], rule: Rule) -> NDArray[np.bool_]:
    """Return where an ensemble sees the tumour, before components are dropped.

    values: the members' probabilities in steps of 1/255, (member, voxel).
    """
    total = sum(counts)
    weights = np.array([count for count in counts if count], np.int32)
    used = values[[number for number, count in enumerate(counts) if count]]
    # A hair less, so that 0.6 of 255 is 153 and not a little more.
    level = rule.probability * STEPS - 1e-6
    if rule.fusion == "vote":
        votes: NDArray[np.int32] = weights @ (used >= level)
        majority: NDArray[np.bool_] = 2 * votes > total
        return majority
    sums: NDArray[np.int32] = weights @ used.astype(np.int32)
    seen: NDArray[np.bool_] = sums >= level * total
    return seen


def mean_of(values: NDArray[np.uint8], counts: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the weighted mean of the members' probabilities, 0 to 1, for each voxel. values: as for `tumour_in`."""
    mean: NDArray[np.float32] = (np.array(counts, np.float32) @ values) / np.float32(STEPS * sum(counts))
    return mean
