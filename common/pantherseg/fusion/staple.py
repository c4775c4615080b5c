"""STAPLE: the probability that a voxel has a label, from the marks of several raters of unknown quality.

S. K. Warfield, K. H. Zou, W. M. Wells, Simultaneous truth and performance level estimation (STAPLE), IEEE Transactions
on Medical Imaging 23 (2004), for one label and without a spatial prior. Start, prior and end of the iteration are those
of SimpleITK's `STAPLEImageFilter`, and so are the results (`test/test_staple.py`). The filter visits every voxel in
every iteration; here voxels with the same marks are counted once, which takes a small part of the time, and raters who
mark nothing at all have a result too.

Members may split so evenly that nothing tells which of them are right, for example where two mark one place and two
another of the same size. Sums and products here do not depend on the order of raters and voxels, so that both places
then get the same probability, and not the one that rounding prefers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Patterns of marks are kept as uint16.
MAX_RATERS = 16
# Every rater's sensitivity and specificity before the first iteration.
START = 0.99999
# The iteration ends where none of them changes by more than this, or where it has not done so after so many.
CONVERGED, MAX_ITERATIONS = 1e-7, 10_000


def posteriors(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of the label for each pattern of marks, 0 for patterns that do not occur.

    counts: the voxels of each of the 2**n patterns of n raters; rater k marks those whose bit k is set.
    """
    found = np.flatnonzero(counts)
    marks = (found[:, None] >> np.arange(len(counts).bit_length() - 1)) & 1 == 1
    result = np.zeros(len(counts))
    result[found] = _posteriors(counts[found].astype(np.float64), marks)
    return result


def _posteriors(voxels: NDArray[np.float64], marks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probability of the label, (pattern,). voxels: (pattern,); marks: (pattern, rater)."""
    prior = float((voxels @ marks).mean() / voxels.sum())
    if prior in (0.0, 1.0):  # all agree about every voxel, and one of the two qualities of a rater is unknown
        return np.full(len(voxels), prior)
    sensitivity = specificity = np.full(marks.shape[1], START)
    for _ in range(MAX_ITERATIONS):
        inside = prior * _in_any_order(np.prod, np.where(marks, sensitivity, 1 - sensitivity).T)
        outside = (1 - prior) * _in_any_order(np.prod, np.where(marks, 1 - specificity, specificity).T)
        probability: NDArray[np.float64] = inside / (inside + outside)
        label, rest = (voxels * probability)[:, None], (voxels * (1 - probability))[:, None]
        before = np.concatenate([sensitivity, specificity])
        sensitivity = _share(label * marks, label, sensitivity)
        specificity = _share(rest * ~marks, rest, specificity)
        if np.abs(np.concatenate([sensitivity, specificity]) - before).max() <= CONVERGED:
            break
    return probability


def _share(part: NDArray[np.float64], whole: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of a part over that of the whole, (rater,); as before where there is nothing to take a part of."""
    total = float(_in_any_order(np.sum, whole)[0])
    # By rounding, a part may be more than the whole.
    return before if total == 0 else np.minimum(_in_any_order(np.sum, part) / total, 1.0)


def _in_any_order(combine: Callable[..., NDArray[np.float64]], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum or product over the first axis, with the same rounding in whatever order the values are."""
    return combine(np.sort(values, axis=0), axis=0)
