"""Ways to fit the Dice to what the networks say, of which the library has one; see `bench.confidence`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from pantherseg.confidence.calibrate import Cohort
from pantherseg.confidence.fit import fit_line
from pantherseg.results import Confidence

# Makes a function from confidences to Dice scores of confidences and Dice scores.
Fit = Callable[[Sequence[Confidence], Sequence[float]], Callable[[Confidence], float]]
DIGITS = 4


def isotonic(feature: str, sign: int) -> Fit:
    """Return the fit of a rising (sign 1) or falling (-1) step function of one feature, linear between its steps."""
    from scipy.optimize import isotonic_regression

    def fit(confidences: Sequence[Confidence], dice: Sequence[float]) -> Callable[[Confidence], float]:
        x = np.array([sign * (getattr(one, feature) or 0.0) for one in confidences])
        order = np.argsort(x, kind="stable")
        heights = isotonic_regression(np.asarray(dice)[order]).x
        return lambda one: float(np.interp(sign * (getattr(one, feature) or 0.0), x[order], heights))

    return fit


def line_of(*features: str) -> Fit:
    """Return the fit of the library's line, of some of its features."""

    def only(one: Confidence) -> Confidence:
        hidden = {"pairwise_dice"} - set(features)
        return msgspec.structs.replace(one, **dict.fromkeys(hidden), **_without_entropy(features))

    def fit(confidences: Sequence[Confidence], dice: Sequence[float]) -> Callable[[Confidence], float]:
        line = fit_line([only(one) for one in confidences], dice)
        return lambda one: line.expected(only(one))

    return fit


def _without_entropy(features: Sequence[str]) -> dict[str, float]:
    # The same entropy everywhere says nothing; without any, the mask would count as empty.
    return {} if "mean_entropy" in features else {"mean_entropy": 0.0}


def mean_of(confidences: Sequence[Confidence], dice: Sequence[float]) -> Callable[[Confidence], float]:
    """Fit the mean Dice, whatever the networks say."""
    mean = float(np.mean(dice))
    return lambda _: mean


CANDIDATES: dict[str, Fit] = {
    "the mean": mean_of,
    "isotonic, pairwise Dice": isotonic("pairwise_dice", 1),
    "isotonic, entropy": isotonic("mean_entropy", -1),
    "line, pairwise Dice": line_of("pairwise_dice"),
    "line, entropy": line_of("mean_entropy"),
    "line, both": line_of("pairwise_dice", "mean_entropy"),
}


def compare_fits(fit_set: Cohort, judge_set: Cohort) -> dict[str, dict[str, float]]:
    """Return the mean absolute error of each candidate: of each case of the first set by all others, and of the second.

    Cases in which the networks mark no tumour are left out: what is expected of them is not fitted.
    """
    (seen, dice), (new, true) = (_with_a_tumour(cohort) for cohort in (fit_set, judge_set))
    results = {}
    for label, fit in CANDIDATES.items():
        left_out = [
            fit([*seen[:k], *seen[k + 1 :]], [*dice[:k], *dice[k + 1 :]])(seen[k]) - dice[k] for k in range(len(dice))
        ]
        fitted = fit(seen, dice)
        unseen = [fitted(one) - value for one, value in zip(new, true, strict=True)]
        errors = {"left_out": left_out, "second_set": unseen}
        results[label] = {name: round(float(np.abs(error).mean()), DIGITS) for name, error in errors.items()}
    return results


def _with_a_tumour(cohort: Cohort) -> tuple[list[Confidence], list[float]]:
    names = [name for name, one in cohort.confidences.items() if one.mean_entropy is not None]
    return [cohort.confidences[name] for name in names], [cohort.dice[name] for name in names]
