"""The search for an ensemble: greedy forward selection with replacement, before and after it threshold and components.

The members are chosen under the post-processing that suits the best member alone: without any, the distances are those
of far-off spots that would be dropped anyway, and the ensemble would be the one with the fewest of them.

Candidates are ranked as the challenge ranks teams: on each of the five metrics a position, one plus the number of those
that are strictly better, and the mean of the positions. The positions are those among the candidates that are compared
with each other, on the same cases, in the challenge's own convention (`official`).

Source of the greedy selection: Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of
models", ICML 2004.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pantherseg.evaluation.metrics import METRICS
from pantherseg.postprocess import Components
from pantherseg.selection.candidates import FUSIONS, Candidate, Rule
from pantherseg.selection.cases import Scorer, Scores

# Greedy selection ends where this many larger ensembles in a row do not help, or at the largest size.
PATIENCE, MAX_SIZE = 2, 12
# What is tried of the threshold and of the components, in this order; of equal ones the first is taken.
PROBABILITIES = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.3, 0.7)
COMPONENTS = (
    None,
    Components(max_count=1),
    Components(max_count=2),
    Components(min_mm3=50.0),
    Components(min_mm3=100.0),
    Components(min_mm3=250.0),
    Components(min_mm3=500.0),
)
# Where the tumour is as probable as not, without post-processing.
BY_HALVES = Rule()
# All five metrics, in the order of `evaluation.metrics.METRICS`, or the Dice alone.
EVERY_METRIC, DICE_ALONE = (0, 1, 2, 3, 4), (0,)
HIGHER_IS_BETTER = np.array(list(METRICS.values()))


@dataclass(frozen=True)
class Selection:
    """A candidate that was chosen. path: the ensembles by size from which it was chosen, all with the same rule."""

    candidate: Candidate
    path: tuple[Candidate, ...]


Procedure = Callable[[Scorer], Selection]


def totals(scores: Scores) -> Scores:
    """Return the five metrics over cases, (..., metric): means, and the root mean squared error of the volume (mm3).

    scores: as `Scorer.scores` returns them, (..., case, metric).
    """
    return with_root(with_square(scores).mean(axis=-2))


def with_square(scores: Scores) -> Scores:
    """Return scores with the square of the volume's error, whose mean the last metric is the root of."""
    return np.concatenate([scores[..., :4], scores[..., 4:] ** 2], axis=-1)


def with_root(means: Scores) -> Scores:
    """Return the five metrics for means of what `with_square` returns."""
    return np.concatenate([means[..., :4], np.sqrt(means[..., 4:])], axis=-1)


def mean_ranks(metrics: Scores, used: Sequence[int] = EVERY_METRIC) -> NDArray[np.float64]:
    """Return each candidate's mean position among all of them, (..., candidate).

    metrics: (..., candidate, metric); used: the metrics that count.
    """
    goodness = np.where(HIGHER_IS_BETTER, metrics, -metrics)[..., list(used)]
    positions = 1 + (goodness[..., None, :, :] > goodness[..., :, None, :]).sum(axis=-2)
    mean: NDArray[np.float64] = positions.mean(axis=-1)
    return mean


def best_of(candidates: Sequence[Candidate], scorer: Scorer, used: Sequence[int] = EVERY_METRIC) -> int:
    """Return the number of the candidate with the best mean rank among all, of equal ones the first."""
    return int(mean_ranks(totals(scorer.scores(candidates)), used).argmin())


def single_members(scorer: Scorer, rule: Rule = BY_HALVES) -> list[Candidate]:
    """Return each member alone."""
    return [Candidate(tuple(row), rule) for row in np.eye(len(scorer.cases[0].values), dtype=int).tolist()]


def greedy(scorer: Scorer, rule: Rule, used: Sequence[int] = EVERY_METRIC) -> tuple[list[Candidate], int]:
    """Return the ensembles of growing size under a rule, from the best member alone, and the number of the best.

    Each is the one before with that member added, once more if it is in already, that has the best mean rank among all
    such additions. The best has the best mean rank among the ensembles of the path, and of equal ones is the smallest.
    """
    singles = single_members(scorer, rule)
    chosen = singles[best_of(singles, scorer, used)]
    picks, path, best = list(chosen.counts), [chosen], 0
    while len(path) < MAX_SIZE and len(path) - 1 - best < PATIENCE:
        more = [[count + (number == added) for number, count in enumerate(picks)] for added in range(len(picks))]
        picks = more[best_of([Candidate(tuple(counts), rule) for counts in more], scorer, used)]
        path.append(Candidate(tuple(picks), rule))
        best = best_of(path, scorer, used)
    return path, best


def with_post_processing(
    candidates: Sequence[Candidate], scorer: Scorer, used: Sequence[int] = EVERY_METRIC
) -> Candidate:
    """Return the candidate, threshold and components with the best mean rank among all combinations."""
    tried = [
        replace(candidate, rule=Rule(candidate.rule.fusion, probability, components))
        for probability in PROBABILITIES
        for components in COMPONENTS
        for candidate in candidates
    ]
    return tried[best_of(tried, scorer, used)]


def select(scorer: Scorer, used: Sequence[int] = EVERY_METRIC) -> Selection:
    """Choose members, weights and fusion by greedy selection, and before and after it threshold and components."""
    rule = best_single_processed(scorer, used).candidate.rule
    paths = {fusion: greedy(scorer, replace(rule, fusion=fusion), used) for fusion in FUSIONS}
    chosen = with_post_processing([path[best] for path, best in paths.values()], scorer, used)
    return Selection(chosen, tuple(paths[chosen.rule.fusion][0]))


def best_by_dice(scorer: Scorer) -> Selection:
    """Choose like `select`, by the Dice alone."""
    return select(scorer, DICE_ALONE)


def best_single(scorer: Scorer, used: Sequence[int] = EVERY_METRIC) -> Selection:
    """Choose one member, which marks where the tumour is as probable as not."""
    singles = single_members(scorer)
    chosen = singles[best_of(singles, scorer, used)]
    return Selection(chosen, (chosen,))


def best_single_processed(scorer: Scorer, used: Sequence[int] = EVERY_METRIC) -> Selection:
    """Choose one member, and its threshold and components as `select` does."""
    chosen = best_single(scorer, used)
    return Selection(with_post_processing([chosen.candidate], scorer, used), chosen.path)


def uniform(scorer: Scorer) -> Selection:
    """Take every member once; the tumour is where their mean probability is at least one half."""
    chosen = Candidate((1,) * len(scorer.cases[0].values))
    return Selection(chosen, (chosen,))


# What is compared on the outer folds, by name; the first is what the recipe is made by.
PROCEDURES: dict[str, Procedure] = {
    "select": select,
    "best single member": best_single,
    "best single member, post-processed": best_single_processed,
    "uniform ensemble": uniform,
    "best by Dice alone": best_by_dice,
}
