"""Nested cross-validation: how good what a selection chooses is on cases that it did not see.

The patients are divided into outer folds. For each, every procedure chooses on the cases of the others, and what it
chose is scored on the cases of the fold. Together, the folds give each procedure one score a case, none of which had a
part in its choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pantherseg.errors import InputError
from pantherseg.evaluation.bootstrap import Interval, mean_samples, percentile_interval
from pantherseg.evaluation.metrics import METRICS
from pantherseg.selection.candidates import Candidate
from pantherseg.selection.cases import Scorer, Scores
from pantherseg.selection.search import (
    PROCEDURES,
    Procedure,
    Selection,
    mean_ranks,
    totals,
    with_root,
    with_square,
)

MEAN_RANK = "mean_rank"


@dataclass(frozen=True)
class Difference:
    """A difference, and the 95 % interval of it that a bootstrap over cases gives."""

    value: float
    interval: Interval

    def as_dict(self) -> dict[str, float]:
        """Return the difference for a JSON file."""
        return {"value": self.value, "low": self.interval[0], "high": self.interval[1]}


@dataclass(frozen=True)
class Nested:
    """The result of nested cross-validation.

    scores: by procedure, (case, metric), each by what was chosen without the case; folds: the numbers of the cases of
    each outer fold; chosen: by procedure what was chosen for each; by_size: as scores, for the ensembles of growing
    size of the first procedure, before the last choice of the post-processing.
    """

    scores: Mapping[str, Scores]
    folds: tuple[tuple[int, ...], ...]
    chosen: Mapping[str, tuple[Candidate, ...]]
    by_size: tuple[Scores, ...]

    @property
    def totals(self) -> dict[str, Scores]:
        """The five metrics of each procedure over all cases."""
        return {name: totals(scores) for name, scores in self.scores.items()}

    @property
    def mean_ranks(self) -> dict[str, float]:
        """The mean rank of each procedure among all of them."""
        ranks = mean_ranks(np.stack(list(self.totals.values())))
        return dict(zip(self.scores, ranks.tolist(), strict=True))

    @property
    def size_totals(self) -> tuple[Scores, ...]:
        """The five metrics of the first procedure's ensembles by size, over all cases."""
        return tuple(totals(scores) for scores in self.by_size)

    def differences(self) -> dict[str, dict[str, Difference]]:
        """Return the first procedure minus each other one, in each metric and in the mean rank among all procedures."""
        scores = with_square(np.stack(list(self.scores.values()), axis=1))  # (case, procedure, metric)
        drawn = mean_samples(scores.reshape(len(scores), -1)).reshape(-1, *scores.shape[1:])
        figures, real = _with_ranks(with_root(drawn)), _with_ranks(with_root(scores.mean(axis=0)))
        found: dict[str, dict[str, Difference]] = {}
        for number, other in enumerate(list(self.scores)[1:], start=1):
            samples, values = figures[:, 0] - figures[:, number], real[0] - real[number]
            found[other] = {
                name: Difference(float(value), percentile_interval(column))
                for name, value, column in zip((*METRICS, MEAN_RANK), values, samples.T, strict=True)
            }
        return found


def _with_ranks(metrics: Scores) -> Scores:
    """Return metrics and mean ranks of procedures, (..., procedure, 6)."""
    return np.concatenate([metrics, mean_ranks(metrics)[..., None]], axis=-1)


def outer_folds(patients: Sequence[str], folds: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Divide cases into folds at random, those of a patient into the same. Raises InputError for too few patients."""
    names = sorted(set(patients))
    if len(names) < folds:
        expected = f"at least one patient for each of {folds} outer folds"
        raise InputError("cases", expected=expected, found=str(len(names)), hint="add cases, or ask for fewer --folds")
    parts = np.array_split(np.random.default_rng(seed).permutation(len(names)), folds)
    of_patient = {names[number]: fold for fold, part in enumerate(parts) for number in part.tolist()}
    return tuple(
        tuple(number for number, patient in enumerate(patients) if of_patient[patient] == fold) for fold in range(folds)
    )


def nested(scorer: Scorer, *, folds: int, seed: int, procedures: Mapping[str, Procedure] = PROCEDURES) -> Nested:
    """Return what the procedures achieve on cases that they did not see. Raises InputError for too few patients."""
    from tqdm import tqdm

    patients = tuple(case.patient for case in scorer.cases)
    parts = outer_folds(patients, folds, seed)
    chosen: dict[str, list[Candidate]] = {name: [] for name in procedures}
    scores: dict[str, Scores] = {name: np.empty((len(patients), len(METRICS))) for name in procedures}
    paths: list[tuple[Candidate, ...]] = []
    for part in tqdm(parts, unit="outer fold", disable=None, leave=False):
        seen = scorer.part([number for number in range(len(patients)) if number not in part])
        unseen = scorer.part(part)
        for number, (name, procedure) in enumerate(procedures.items()):
            selection: Selection = procedure(seen)
            chosen[name].append(selection.candidate)
            scores[name][list(part)] = unseen.scores([selection.candidate])[0]
            if number == 0:
                paths.append(selection.path)
    by_size = _by_size(scorer, parts, paths)
    done = {name: tuple(candidates) for name, candidates in chosen.items()}
    return Nested(scores, parts, done, by_size)


def _by_size(
    scorer: Scorer, parts: Sequence[tuple[int, ...]], paths: Sequence[tuple[Candidate, ...]]
) -> tuple[Scores, ...]:
    """Return the scores of the ensembles of each size on the unseen cases; a path that ends earlier keeps its last."""
    by_size = []
    for size in range(max(map(len, paths))):
        scores = np.empty((len(scorer.cases), len(METRICS)))
        for part, path in zip(parts, paths, strict=True):
            scores[list(part)] = scorer.part(part).scores([path[min(size, len(path) - 1)]])[0]
        by_size.append(scores)
    return tuple(by_size)
