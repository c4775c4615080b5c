"""What the networks' own figures say about a case: the agreement of the folds, and the entropy of the fused mask.

They are about the networks, so post-processing, such as the rescue of an empty mask, does not change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array
from pantherseg.fusion import Fusion, MemberLogits
from pantherseg.inference.predictor import Logits
from pantherseg.results import Confidence
from pantherseg.volume import Grid

DICE_DIGITS, ML_DIGITS = 4, 3


def estimate(
    members: Sequence[Logits], mask: NDArray[np.bool_], *, fusion: Fusion, label: int, grid: Grid
) -> Confidence:
    """Return how sure the networks are of a tumour, without an expected Dice.

    members: with the agreement of their folds about the tumour; mask: the fused one (z, y, x), before post-processing;
    label: the tumour's; grid: of the mask. Folds are compared within each member, on the grid of its network, and the
    means of the members are averaged: on the volume's grid each fold would have to be resampled.
    """
    agreements = [member.agreement for member in members if member.agreement is not None]
    found = [agreement.pairwise_dice for agreement in agreements if agreement.pairwise_dice is not None]
    volumes = [
        round(voxels * _network_voxel_mm3(member, grid) / 1000, ML_DIGITS)
        for member in members
        for voxels in (() if member.agreement is None else member.agreement.voxels)
    ]
    entropy = mean_entropy(members, mask, fusion=fusion, label=label)
    return Confidence(
        pairwise_dice=round(mean(found), DICE_DIGITS) if found else None,
        mean_entropy=None if entropy is None else round(entropy, DICE_DIGITS),
        fold_volumes_ml=tuple(volumes),
        expected_dice=None,
    )


def mean_entropy(
    members: Sequence[MemberLogits], mask: NDArray[np.bool_], *, fusion: Fusion, label: int
) -> float | None:
    """Return the mean entropy in bits of the fused probability of a label over a mask (z, y, x); None for an empty one.

    Only the slices of the mask are fused again: -p log2 p - (1 - p) log2 (1 - p), with 0 log2 0 = 0.
    """
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        return None
    start, stop = int(slices[0]), int(slices[-1]) + 1
    fused = fusion.fuse([SomeSlices(member, start, stop) for member in members])
    probability = fused.probability(label)[mask[start:stop]].astype(np.float64)
    entropy = 0.0
    for share in (probability, 1 - probability):
        positive = share[share > 0]
        entropy -= float(np.sum(positive * np.log2(positive)))
    # Rounding may leave a little below 0 or above 1.
    return float(np.clip(entropy / len(probability), 0, 1))


@dataclass(frozen=True)
class SomeSlices:
    """The logits of a member in slices start..stop of the volume, as if the volume had no others."""

    member: MemberLogits
    start: int
    stop: int

    @property
    def classes(self) -> int:
        """Number of classes, including the background."""
        return self.member.classes

    @property
    def weight(self) -> float:
        """The member's weight in the fusion."""
        return self.member.weight

    @property
    def threshold(self) -> float | None:
        """The probability from which the member marks a label."""
        return self.member.threshold

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of these slices, (z, y, x)."""
        return (self.stop - self.start, *self.member.shape[1:])

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop of these, (class, stop - start, y, x)."""
        return self.member.slab(self.start + start, self.start + stop)


def _network_voxel_mm3(member: Logits, grid: Grid) -> float:
    """Return the volume of a voxel on the grid of a member's network."""
    shape: tuple[int, ...] = tuple(member.values.shape[1:])
    return math.prod(member.back.box.shape) * grid.voxel_mm3 / math.prod(shape)
