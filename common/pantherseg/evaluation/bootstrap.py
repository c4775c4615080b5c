"""Bootstrap intervals over cases: how far a mean would move with other cases of the same kind.

Source of the method: the percentile bootstrap, B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993),
chapter 13. Cases are drawn with replacement, as many as there are, many times; the interval is that of the middle 95 %
of the means. It says nothing about cases of another kind, and is too narrow for a handful of cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20250816
# How many draws are held in memory at once.
DRAWS_AT_ONCE = 1_000_000

# The lower and the upper bound.
Interval = tuple[float, float]


def mean_samples(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of drawn cases, (RESAMPLES, columns). values: one row for each case, (cases, columns).

    The same number of cases is always drawn in the same way, so that figures of one case stay together.
    """
    cases, generator = len(values), np.random.default_rng(SEED)
    means, done = np.empty((RESAMPLES, values.shape[1])), 0
    while done < RESAMPLES:
        number = min(RESAMPLES - done, max(1, DRAWS_AT_ONCE // cases))
        # How often each case is drawn.
        draws = generator.integers(0, cases, (number, cases)) + cases * np.arange(number)[:, None]
        counts = np.bincount(draws.ravel(), minlength=number * cases).reshape(number, cases)
        means[done : done + number] = counts @ values / cases
        done += number
    return means


def percentile_interval(samples: NDArray[np.float64]) -> Interval:
    """Return the interval that holds CONFIDENCE of the samples."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def settings() -> dict[str, Any]:
    """Return how intervals are computed, for a JSON file."""
    return {"method": "percentile bootstrap over cases", "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}
