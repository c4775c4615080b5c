"""Fits the line from what the networks say about a case to the Dice of its mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pantherseg.models.calibration import SIGNS, Feature, Line
from pantherseg.results import Confidence

DIGITS = 5


def fit_line(confidences: Sequence[Confidence], dice: Sequence[float]) -> Line:
    """Fit the line by least squares to cases with a tumour in the fused mask.

    A slope of the wrong sign is 0, so that more agreement or less entropy never lowers the expected Dice. Members of
    one fold have no pairwise Dice, so that only the entropy is left.
    """
    from scipy.optimize import nnls

    names: list[Feature] = [name for name in SIGNS if any(getattr(one, name) is not None for one in confidences)]
    columns = np.array([[SIGNS[name] * (getattr(one, name) or 0.0) for name in names] for one in confidences])
    means, mean = columns.mean(axis=0), float(np.mean(dice))
    # About the means, so that the intercept may have any sign.
    slopes, _ = nnls(columns - means, np.asarray(dice) - mean)
    return Line(
        intercept=round(mean - float(slopes @ means), DIGITS),
        slopes={name: SIGNS[name] * round(float(slope), DIGITS) for name, slope in zip(names, slopes, strict=True)},
    )


def leave_one_out(confidences: Sequence[Confidence], dice: Sequence[float]) -> list[float]:
    """Return the expected Dice of each case by the line of all others."""
    return [
        fit_line([*confidences[:k], *confidences[k + 1 :]], [*dice[:k], *dice[k + 1 :]]).expected(confidences[k])
        for k in range(len(dice))
    ]
