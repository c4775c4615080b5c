"""How good expected Dice scores are: errors, correlations, bins, and risk-coverage curves.

The folds of a cross-validation are no deep ensemble: each saw most of the other's cases. Their disagreement need not be
a probability to be useful, so it is also judged by the order in which it puts cases. Risk-coverage: Geifman and
El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017; risk is 1 - Dice here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pantherseg.models.calibration import Figures

# Scores that differ by less do so by rounding.
CONSTANT = 1e-9


@dataclass(frozen=True)
class Bin:
    """Cases with an expected Dice from `low` up to `high`: their number, and means of expected and true Dice."""

    low: float
    high: float
    cases: int
    expected: float
    true: float


def figures(expected: ArrayLike, true: ArrayLike) -> Figures:
    """Return the figures of expected and true Dice scores of at least one case."""
    guess, dice = np.asarray(expected, float), np.asarray(true, float)
    return Figures(
        mean_absolute_error=round(float(np.abs(guess - dice).mean()), 4),
        pearson=_correlation(guess, dice),
        spearman=_correlation(_ranks(guess), _ranks(dice)),
        aurc=round(float(risks(guess, dice).mean()), 4),
        aurc_random=round(float(1 - dice.mean()), 4),
        aurc_best=round(float(risks(dice, dice).mean()), 4),
    )


def risks(expected: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Return the risk-coverage curve: the mean of 1 - Dice over the 1, 2, ... cases with the highest expected Dice.

    Cases with the same expected Dice count as in any order: each has the mean risk of all of them.
    """
    guess, risk = np.asarray(expected, float), 1 - np.asarray(true, float)
    _, group, sizes = np.unique(-guess, return_inverse=True, return_counts=True)
    by_group = np.bincount(group, weights=risk) / sizes
    ordered = np.repeat(by_group, sizes)
    curve: NDArray[np.float64] = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    return curve


def bins(expected: ArrayLike, true: ArrayLike, *, width: float = 0.2) -> list[Bin]:
    """Return the bins of expected Dice scores that hold any case, from low to high; 1 belongs to the last."""
    guess, dice = np.asarray(expected, float), np.asarray(true, float)
    count = round(1 / width)
    number = np.minimum((guess * count + 1e-9).astype(int), count - 1)
    return [
        Bin(k / count, (k + 1) / count, int(inside.sum()), float(guess[inside].mean()), float(dice[inside].mean()))
        for k in range(count)
        if (inside := number == k).any()
    ]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata  # takes half a second to import

    ranks: NDArray[np.float64] = rankdata(values)
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return Pearson's correlation, None where one of the two is constant, but for rounding."""
    if min(np.ptp(a), np.ptp(b)) < CONSTANT:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 4)
