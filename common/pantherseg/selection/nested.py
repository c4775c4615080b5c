"""Nested cross-validation: how good what a selection chooses is on cases that it did not see.

The patients are divided into outer folds. For each, every procedure chooses on the cases of the others, and what it
chose is scored on the cases of the fold. Together, the folds give each procedure one score a case, none of which had a
part in its choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.evaluation.metrics import METRICS
from pantherseg.selection.candidates import Candidate
from pantherseg.selection.cases import Scorer, Scores
from pantherseg.selection.search import PROCEDURES, Procedure, Selection, mean_ranks, totals

# How often the patients are drawn for the intervals, and the share of the draws that is in them.
DRAWS, CONFIDENCE = 2000, 0.95
MEAN_RANK = "mean_rank"


@dataclass(frozen=True)
class Interval:
    """A figure, and the interval of it that a percentile bootstrap over patients gives."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the interval for a JSON file."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Nested:
    """The result of nested cross-validation.

    scores: by procedure, (case, metric), each by what was chosen without the case; folds: the numbers of the cases of
    each outer fold; chosen: by procedure what was chosen for each; by_size: as scores, for the ensembles of growing
    size of the first procedure, before post-processing; patients: of the cases; seed: of the bootstrap.
    """

    scores: Mapping[str, Scores]
    folds: tuple[tuple[int, ...], ...]
    chosen: Mapping[str, tuple[Candidate, ...]]
    by_size: tuple[Scores, ...]
    patients: tuple[str, ...]
    seed: int

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

    def differences(self) -> dict[str, dict[str, Interval]]:
        """Return the first procedure minus each other one, in each metric and in the mean rank among all procedures."""
        others = list(self.scores)[1:]
        scores = np.stack(list(self.scores.values()))
        drawn, real = self._figures(scores, self._draws()), self._figures(scores, np.ones((1, len(self.patients))))[0]
        edges = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        found: dict[str, dict[str, Interval]] = {}
        for number, other in enumerate(others, start=1):
            low, high = np.quantile(drawn[:, 0] - drawn[:, number], edges, axis=0)
            value = real[0] - real[number]
            names = (*METRICS, MEAN_RANK)
            found[other] = {
                name: Interval(*map(float, figures)) for name, *figures in zip(names, value, low, high, strict=True)
            }
        return found

    @staticmethod
    def _figures(scores: Scores, weights: NDArray[np.float64]) -> Scores:
        """Return the metrics and the mean rank of the procedures, (draw, procedure, 6).

        scores: (procedure, case, metric); weights: (draw, case).
        """
        metrics = totals(scores, weights)
        return np.concatenate([metrics, mean_ranks(metrics)[..., None]], axis=-1)

    def _draws(self) -> NDArray[np.float64]:
        """Return how often each case is in each draw of the patients with replacement, (draw, case)."""
        _, patient = np.unique(self.patients, return_inverse=True)
        number = int(patient.max()) + 1
        counts = np.random.default_rng(self.seed).multinomial(number, np.full(number, 1 / number), DRAWS)
        drawn: NDArray[np.float64] = counts[:, patient].astype(float)
        return drawn


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
    return Nested(scores, parts, done, by_size, patients, seed)


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
