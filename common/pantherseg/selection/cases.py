"""The cases of a selection: what all members say about each, kept in little memory, and the scores of candidates.

Of a case only those voxels are kept in which any member's probability, in steps of 1/255, is not 0: four bytes and one
for each member. Whatever candidate is tried, its mask lies in these voxels. Nearly all masks lie in far fewer, where
some member's probability reaches the lowest threshold; those are kept apart, so that a candidate takes less time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pantherseg.datasets.raw import patient_of
from pantherseg.errors import InputError
from pantherseg.evaluation.metrics import CaseMetrics, score_case
from pantherseg.io import read_labels
from pantherseg.io.probabilities import STEPS, StoredProbability, read_stored
from pantherseg.labels import tumour_of
from pantherseg.orientation import DEFAULT_ORIENTATION
from pantherseg.postprocess import Prediction, Step
from pantherseg.selection.candidates import Candidate, mean_of, tumour_in
from pantherseg.volume import Box, Shape, Volume, as_shape

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=np.generic)

# Dice, surface Dice, HD95, MASD and the signed error of the volume, in the official convention.
Scores = NDArray[np.float64]
# No mask of a case may fill the box that is kept of it, as only a mask that fills the whole volume counts as full.
MARGIN = 1
# A mean or a vote reaches a threshold of 0.3 or more only where a member's probability does. In steps of 1/255.
LIKELY = 76


@dataclass(frozen=True)
class Case:
    """What is kept of a case.

    reference: its reference mask in the box that holds the tumour and all voxels, with a margin (uint8, z, y, x);
    voxels: where any member's probability is not 0, as indexes of the flattened box; values: the members' probabilities
    there in steps of 1/255, (member, voxel); empty: the scores of an empty mask; likely: the same for the voxels alone
    in which a member's probability is at least LIKELY, from which most masks can be told.
    """

    name: str
    reference: Volume
    voxels: NDArray[np.int32]
    values: NDArray[np.uint8]
    empty: CaseMetrics
    likely: Case | None = None
    known: dict[bytes, CaseMetrics] = field(default_factory=dict, repr=False, compare=False)

    @property
    def patient(self) -> str:
        """The patient, as far as the case's name tells."""
        return patient_of(self.name)

    def mask(self, candidate: Candidate, steps: Sequence[Step] = ()) -> NDArray[np.bool_]:
        """Return the mask of a candidate in the box, (z, y, x). steps: follow after its own post-processing."""
        mask, _ = self._processed(candidate, steps)
        return mask

    def score(self, candidate: Candidate, steps: Sequence[Step] = ()) -> CaseMetrics:
        """Return the official metrics of a candidate's mask. A mask that several candidates have is scored once."""
        if self.likely is not None and candidate.rule.probability * STEPS >= LIKELY:
            mask, was_empty = self.likely._processed(candidate, steps)
            if not was_empty:
                return self.likely._score(mask)
        return self._score(self.mask(candidate, steps))

    def _processed(self, candidate: Candidate, steps: Sequence[Step]) -> tuple[NDArray[np.bool_], bool]:
        """Return a candidate's mask, and whether it was ever empty, where a step may have looked at probabilities."""
        own = candidate.rule.components
        prediction = Prediction(
            mask=self._boxed(tumour_in(self.values, candidate.counts, candidate.rule)),
            grid=self.reference.grid,
            probability=lambda: self._boxed(mean_of(self.values, candidate.counts)),
        )
        was_empty = not prediction.mask.any()
        for step in steps if own is None else (own, *steps):
            # No member sees anything in the empty case, and a rescue would mark what comes first.
            if prediction.mask.any() or self.values[list(candidate.members)].any():
                prediction = step.apply(prediction)
            was_empty |= not prediction.mask.any()
        return prediction.mask, was_empty

    def _score(self, mask: NDArray[np.bool_]) -> CaseMetrics:
        if not mask.any():
            return self.empty
        key = hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
        if key not in self.known:
            predicted = Volume(mask.astype(np.uint8), self.reference.grid)
            self.known[key] = score_case(predicted, self.reference, name=self.name, reference_name=self.name).official
        return self.known[key]

    def _boxed(self, values: NDArray[T]) -> NDArray[T]:
        box = np.zeros(self.reference.array.size, values.dtype)
        box[self.voxels] = values
        return box.reshape(self.reference.array.shape)


def read_case(name: str, reference: Path, files: Sequence[Path]) -> Case:
    """Read the reference mask of a case, and each member's probabilities of it.

    Raises InputError for a file that cannot be read, a reference without a tumour, and a probability on another grid.
    """
    whole = read_labels(reference).turned_to(DEFAULT_ORIENTATION)
    tumour = Box.around(tumour_of(whole.array))
    empty = score_case(None, whole, name=name, reference_name=reference).official
    assert tumour is not None  # score_case refuses a reference without a tumour
    stored = []
    for path in files:
        found = read_stored(path).turned_to(DEFAULT_ORIENTATION)
        if difference := whole.grid.difference(found.grid):
            raise InputError(path, expected="probabilities on the grid of the reference mask", found=difference)
        stored.append(found)
    box = _union([tumour, *(one.box for one in stored if one.box is not None)], whole.grid.shape)
    crop = whole.crop(box)
    own = Volume(tumour_of(crop.array).astype(np.uint8), crop.grid)
    dense = np.stack([_in_box(one, box) for one in stored])
    strong = np.asarray((dense >= LIKELY).any(axis=0))
    around = Box.around((own.array > 0) | strong)
    assert around is not None  # the tumour is in it
    around = _union([around], own.grid.shape)
    likely = _case(name, own.crop(around), dense[(slice(None), *around.slices)], strong[around.slices], empty)
    return replace(_case(name, own, dense, np.asarray(dense.any(axis=0)), empty), likely=likely)


def _case(name: str, own: Volume, dense: NDArray[np.uint8], kept: NDArray[np.bool_], empty: CaseMetrics) -> Case:
    """Return a case of the kept voxels. own: the reference; dense: the members' probabilities, (member, z, y, x)."""
    voxels = np.flatnonzero(kept).astype(np.int32)
    return Case(name, own, voxels, np.ascontiguousarray(dense[:, kept]), empty)


def _union(boxes: Sequence[Box], shape: Shape) -> Box:
    """Return the box around some boxes with the margin, within a volume of a shape."""
    start = np.min([box.start for box in boxes], axis=0) - MARGIN
    stop = np.max([box.stop for box in boxes], axis=0) + MARGIN
    return Box(as_shape(np.maximum(start, 0)), as_shape(np.minimum(stop, shape)))


def _in_box(stored: StoredProbability, box: Box) -> NDArray[np.uint8]:
    """Return probabilities in a box that holds all of them, (z, y, x)."""
    dense = np.zeros(box.shape, np.uint8)
    if stored.box is not None:
        dense[stored.box.within(box).slices] = stored.values
    return dense


@dataclass(frozen=True)
class Scorer:
    """The scores of candidates in some cases; each is computed once.

    steps: of post-processing, which follow after each candidate's own. A scorer of a part of the cases knows no others.
    """

    cases: tuple[Case, ...]
    steps: tuple[Step, ...] = ()
    _known: dict[str, dict[Candidate, Scores]] = field(default_factory=dict, repr=False, compare=False)

    def part(self, numbers: Sequence[int]) -> Scorer:
        """Return a scorer of some of the cases, which shares what is known about them."""
        chosen = tuple(self.cases[number] for number in numbers)
        shared = {case.name: self._known.setdefault(case.name, {}) for case in chosen}
        return Scorer(chosen, self.steps, shared)

    def scores(self, candidates: Sequence[Candidate]) -> Scores:
        """Return the scores of candidates, (candidate, case, metric); the last metric is the volume's signed error."""
        return np.stack([self._of_case(case, candidates) for case in self.cases], axis=1)

    def _of_case(self, case: Case, candidates: Sequence[Candidate]) -> Scores:
        known = self._known.setdefault(case.name, {})
        for candidate in candidates:
            if candidate not in known:
                known[candidate] = _as_scores(case.score(candidate, self.steps))
        return np.stack([known[candidate] for candidate in candidates])


def _as_scores(metrics: CaseMetrics) -> Scores:
    error = metrics.volume_error_mm3
    return np.array([metrics.dice, metrics.surface_dice_5mm, metrics.hd95_mm, metrics.masd_mm, error])


def read_cases(
    references: Mapping[str, Path], members: Sequence[Mapping[str, Path]]
) -> tuple[list[Case], dict[str, str]]:
    """Read all cases that every member has. Return them, and why others could not be read.

    references: the reference mask of each case; members: the probabilities of each member by case.
    """
    from tqdm import tqdm

    cases, failed = [], {}
    for name, reference in tqdm(references.items(), unit="case", disable=None, leave=False):
        try:
            cases.append(read_case(name, reference, [files[name] for files in members]))
        except InputError as error:
            failed[name] = str(error)
            logger.error("error: %s", error)
    return cases, failed
