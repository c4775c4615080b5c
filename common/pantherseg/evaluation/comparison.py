"""Comparison of two sets of masks of the same cases."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pantherseg.errors import PantherSegError
from pantherseg.evaluation.bootstrap import Interval, mean_samples, percentile_interval
from pantherseg.evaluation.metrics import METRICS
from pantherseg.evaluation.run import Evaluation
from pantherseg.evaluation.tables import CONVENTIONS, FORMATS, HEADINGS, aligned

# Differences are rounded to so many decimals, so that those that are equal but for rounding are ties of the test.
DECIMALS = 6
# For a single case, the RMSE of the volume is the absolute error.
CASE_HEADINGS = HEADINGS | {"volume_rmse_mm3": "|volume error| mm3"}


@dataclass(frozen=True)
class Difference:
    """One metric over the common cases: its mean in A and B, B minus A, and in how many cases B is better or worse.

    values: B minus A of each case. interval: of the mean difference, by bootstrap over cases; None for a single case.
    p_value: two-sided Wilcoxon signed-rank test of the paired differences without equal cases; 1 if all are equal.
    p_holm: the same, corrected by Holm's method for the five metrics of a convention.
    """

    mean_a: float
    mean_b: float
    mean_difference: float
    interval: Interval | None
    better: int
    worse: int
    equal: int
    p_value: float
    p_holm: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The difference of each metric in both conventions, over the cases that both evaluations contain."""

    cases: tuple[str, ...]
    official: dict[str, Difference]
    corrected: dict[str, Difference]

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for a JSON file."""
        return asdict(self)


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare B with A over the cases that both contain. Volumes are compared by their absolute error (mm3).

    Raises PantherSegError if they have no case in common.
    """
    cases = tuple(name for name in a.cases if name in b.cases)
    if not cases:
        found = f"{len(a.cases)} and {len(b.cases)} cases, none of them in both"
        raise PantherSegError("comparison", expected="two evaluations with cases in common", found=found)

    def differences(convention: str) -> dict[str, Difference]:
        of_a, of_b = ([getattr(e.cases[name], convention).as_totals() for name in cases] for e in (a, b))
        found = [_difference([getattr(t, m) for t in of_a], [getattr(t, m) for t in of_b], metric=m) for m in METRICS]
        corrected = holm([d.p_value for d in found])
        return {m: replace(d, p_holm=p) for m, d, p in zip(METRICS, found, corrected, strict=True)}

    return Comparison(cases, official=differences("official"), corrected=differences("corrected"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.

    The smallest is multiplied by their number, the next by one less, and so on; none is smaller than one before it.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in corrected]


def comparison_table(comparison: Comparison, *, name_a: str = "A", name_b: str = "B") -> str:
    """Return the comparison as text, one table per convention."""
    lines = [f"B: {name_b}", f"A: {name_a}", f"{len(comparison.cases)} cases that both have"]
    for convention, meaning in CONVENTIONS.items():
        rows = [[convention, "A", "B", "B - A", "95 % from", "to", "better", "worse", "equal", "p", "p Holm"]]
        for metric, d in getattr(comparison, convention).items():
            form, signed = FORMATS[metric], "+" + FORMATS[metric]
            means = [format(d.mean_a, form), format(d.mean_b, form), format(d.mean_difference, signed)]
            interval = [format(bound, signed) for bound in d.interval] if d.interval else ["-", "-"]
            counts = [str(d.better), str(d.worse), str(d.equal)]
            rows.append([CASE_HEADINGS[metric], *means, *interval, *counts, f"{d.p_value:.3g}", f"{d.p_holm:.3g}"])
        lines += ["", aligned(rows), f"{convention}: {meaning}"]
    lines += [
        "",
        "better, worse, equal: number of cases in which B is better than, worse than or equal to A;",
        "95 %: bootstrap interval of the mean difference; p: two-sided Wilcoxon signed-rank test of the cases;",
        "p Holm: corrected for the five metrics. Not for clinical use.",
    ]
    return "\n".join(lines)


def _difference(a: Sequence[float], b: Sequence[float], *, metric: str) -> Difference:
    difference = np.asarray(np.round(np.subtract(b, a, dtype=float), DECIMALS), np.float64)
    gain = difference if METRICS[metric] else -difference
    samples = mean_samples(difference[:, None])
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    return Difference(
        mean_a=float(np.mean(a)),
        mean_b=float(np.mean(b)),
        mean_difference=float(difference.mean()),
        interval=percentile_interval(samples) if len(difference) > 1 else None,
        better=better,
        worse=worse,
        equal=len(difference) - better - worse,
        p_value=(p_value := _wilcoxon(difference[difference != 0].tolist())),
        p_holm=p_value,
        values=tuple(difference.tolist()),
    )


def _wilcoxon(differences: list[float]) -> float:
    """Return the p-value of non-zero differences; 1 if there are none, which SciPy cannot test."""
    if not differences:
        return 1.0
    from scipy.stats import wilcoxon  # takes half a second to import

    with warnings.catch_warnings():
        # Older versions of SciPy warn that the approximation is rough for ties in a small sample.
        warnings.filterwarnings("ignore", message="Sample size too small", category=UserWarning)
        return float(wilcoxon(differences).pvalue)
