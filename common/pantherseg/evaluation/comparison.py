"""Comparison of two sets of masks of the same cases."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pantherseg.errors import PantherSegError
from pantherseg.evaluation.metrics import METRICS
from pantherseg.evaluation.run import Evaluation
from pantherseg.evaluation.tables import CONVENTIONS, FORMATS, HEADINGS, aligned

# Smaller differences are due to rounding.
EQUAL = 1e-9
# For a single case, the RMSE of the volume is the absolute error.
CASE_HEADINGS = HEADINGS | {"volume_rmse_mm3": "|volume error| mm3"}


@dataclass(frozen=True)
class Difference:
    """One metric over the common cases: its mean in A and B, B minus A, and in how many cases B is better or worse.

    p_value: two-sided Wilcoxon signed-rank test of the paired differences without equal cases; 1 if all are equal.
    """

    mean_a: float
    mean_b: float
    mean_difference: float
    better: int
    worse: int
    equal: int
    p_value: float


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
        return {m: _difference([getattr(t, m) for t in of_a], [getattr(t, m) for t in of_b], metric=m) for m in METRICS}

    return Comparison(cases, official=differences("official"), corrected=differences("corrected"))


def comparison_table(comparison: Comparison, *, name_a: str = "A", name_b: str = "B") -> str:
    """Return the comparison as text, one table per convention."""
    lines = [f"{name_b} against {name_a}, {len(comparison.cases)} cases"]
    for convention, meaning in CONVENTIONS.items():
        rows = [[convention, name_a, name_b, "difference", "better", "worse", "equal", "p"]]
        for metric, d in getattr(comparison, convention).items():
            form = FORMATS[metric]
            means = [format(d.mean_a, form), format(d.mean_b, form), format(d.mean_difference, "+" + form)]
            counts = [str(d.better), str(d.worse), str(d.equal)]
            rows.append([CASE_HEADINGS[metric], *means, *counts, f"{d.p_value:.3g}"])
        lines += ["", aligned(rows), f"{convention}: {meaning}"]
    lines += [
        "",
        f"better, worse, equal: number of cases in which {name_b} is better than, worse than or equal to {name_a};",
    ]
    lines += ["p: two-sided Wilcoxon signed-rank test, not corrected for the number of metrics. Not for clinical use."]
    return "\n".join(lines)


def _difference(a: Sequence[float], b: Sequence[float], *, metric: str) -> Difference:
    difference = np.subtract(b, a)
    gain = difference if METRICS[metric] else -difference
    better, worse = int((gain > EQUAL).sum()), int((gain < -EQUAL).sum())
    return Difference(
        mean_a=float(np.mean(a)),
        mean_b=float(np.mean(b)),
        mean_difference=float(difference.mean()),
        better=better,
        worse=worse,
        equal=len(difference) - better - worse,
        p_value=_wilcoxon(difference[np.abs(difference) > EQUAL].tolist()),
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
