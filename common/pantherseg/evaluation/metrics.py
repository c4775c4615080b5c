"""The five metrics of the PANTHER challenge for one case, in two conventions.

official    as the challenge's evaluator computes them: with the spacing in the order (x, y, z) for arrays (z, y, x), so
            that distances along x and z are wrong if the spacing is anisotropic. The leaderboards use this convention.
corrected   with the spacing in the order of the array (z, y, x), so that distances are those in the patient.

Both consider only the tumour in the reference and the prediction. Dice and volumes do not depend on the convention.
Source of the formulas: DeepMind's surface-distance, which the tests compare them with (`surfaces.py`), and
`Evaluation/evaluate_local.py` of the challenge's baseline repository, DIAGNijmegen/PANTHER_baseline.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.evaluation.bootstrap import Interval, mean_samples, percentile_interval
from pantherseg.evaluation.masks import Tumours, tumours_of
from pantherseg.evaluation.surfaces import surface_metrics
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.orientation import DEFAULT_ORIENTATION
from pantherseg.volume import Grid, Shape, Triple, Volume

logger = logging.getLogger(__name__)

SURFACE_TOLERANCE_MM = 5.0
HAUSDORFF_PERCENT = 95

# Each metric, and whether higher values are better, in the order of the leaderboards.
METRICS = {
    "dice": True,
    "surface_dice_5mm": True,
    "hd95_mm": False,
    "masd_mm": False,
    "volume_rmse_mm3": False,
}


@dataclass(frozen=True)
class Totals:
    """The five ranked metrics: means over cases, and the root mean squared volume error."""

    dice: float
    surface_dice_5mm: float
    hd95_mm: float
    masd_mm: float
    volume_rmse_mm3: float

    def as_dict(self) -> dict[str, float]:
        """Return the five metrics by name, in the order of the leaderboards."""
        return asdict(self)


@dataclass(frozen=True)
class CaseMetrics:
    """One case in one convention. The volume error is the predicted volume minus the reference volume."""

    dice: float
    surface_dice_5mm: float
    hd95_mm: float
    masd_mm: float
    volume_error_mm3: float
    predicted_volume_mm3: float
    reference_volume_mm3: float
    missing: bool = False

    def as_totals(self) -> Totals:
        """Return the case as if it were the only one: its volume RMSE is the absolute volume error."""
        return Totals(self.dice, self.surface_dice_5mm, self.hd95_mm, self.masd_mm, abs(self.volume_error_mm3))


@dataclass(frozen=True)
class CaseScores:
    """One case in both conventions."""

    official: CaseMetrics
    corrected: CaseMetrics

    @property
    def missing(self) -> bool:
        """Whether there was no prediction. A missing prediction is scored as an empty mask."""
        return self.official.missing

    @property
    def empty(self) -> bool:
        """Whether there was a prediction without tumour, or with nothing else."""
        return not self.missing and self.official.predicted_volume_mm3 == 0


def score_case(
    prediction: Volume | None,
    reference: Volume,
    *,
    name: str | Path = "prediction",
    reference_name: str | Path = "reference",
) -> CaseScores:
    """Score the tumour in a mask against the tumour in the reference mask of the case, both (z, y, x).

    As in the published evaluator, a mask that is empty, full or missing gets 0 for Dice and surface Dice, the diagonal
    of the volume in mm for HD95 and MASD, and a predicted volume of 0. Both are turned to LPS first, in which the
    challenge's masks are stored: the official convention depends on the voxel order. `name` and `reference_name` are
    for messages.

    Raises InputError for a reference without a tumour, for which the metrics are undefined (every challenge case has a
    tumour), and for a prediction on another grid.
    """
    reference = reference.turned_to(DEFAULT_ORIENTATION)
    if prediction is not None:
        prediction = prediction.turned_to(DEFAULT_ORIENTATION)
        difference = reference.grid.difference(prediction.grid)
        if difference:
            raise InputError(name, expected="a mask on the grid of its reference mask", found=difference)
    tumours = tumours_of(prediction, reference)
    if not tumours.reference.any():
        found = f"no voxel with label {TUMOUR}"
        raise InputError(reference_name, expected=f"a reference mask with a tumour (label {TUMOUR})", found=found)
    if tumours.predicted.any():
        return _scores(tumours, reference.grid)
    if prediction is not None:
        _warn_if_other_labels(prediction.array, name)
    return _worst(int(np.count_nonzero(tumours.reference)), reference.grid, missing=prediction is None)


def totals(cases: Sequence[CaseMetrics]) -> Totals:
    """Return the means over cases, and the root mean squared volume error (mm3). Raises ValueError without a case."""
    if not cases:
        raise ValueError("totals need at least one case")
    return Totals(
        dice=_mean(c.dice for c in cases),
        surface_dice_5mm=_mean(c.surface_dice_5mm for c in cases),
        hd95_mm=_mean(c.hd95_mm for c in cases),
        masd_mm=_mean(c.masd_mm for c in cases),
        volume_rmse_mm3=math.sqrt(_mean(c.volume_error_mm3**2 for c in cases)),
    )


def totals_interval(cases: Sequence[CaseMetrics]) -> dict[str, Interval] | None:
    """Return the bootstrap interval of each of the five totals; None for a single case, which has none."""
    if len(cases) < 2:
        return None
    values = [(c.dice, c.surface_dice_5mm, c.hd95_mm, c.masd_mm, c.volume_error_mm3**2) for c in cases]
    samples = mean_samples(np.array(values))
    samples[:, -1] = np.sqrt(samples[:, -1])
    return {metric: percentile_interval(column) for metric, column in zip(METRICS, samples.T, strict=True)}


def _scores(tumours: Tumours, grid: Grid) -> CaseScores:
    """Score two masks with at least one voxel each. grid: that of the volume."""
    predicted, reference = tumours.predicted, tumours.reference
    voxels, reference_voxels, common = (
        int(np.count_nonzero(mask)) for mask in (predicted, reference, predicted & reference)
    )
    dice = 2 * common / (voxels + reference_voxels)
    volume, reference_volume = voxels * grid.voxel_mm3, reference_voxels * grid.voxel_mm3
    spacing = grid.spacing
    # The conventions are one where the outer axes have the same spacing.
    spacings = [spacing] if spacing == spacing[::-1] else [spacing, spacing[::-1]]
    found = surface_metrics(
        reference, predicted, spacings, tolerance_mm=SURFACE_TOLERANCE_MM, percent=HAUSDORFF_PERCENT
    )
    corrected, official = (
        CaseMetrics(
            dice=dice,
            surface_dice_5mm=each.surface_dice,
            hd95_mm=each.hausdorff_mm,
            masd_mm=each.masd_mm,
            volume_error_mm3=volume - reference_volume,
            predicted_volume_mm3=volume,
            reference_volume_mm3=reference_volume,
        )
        for each in (found[0], found[-1])
    )
    return CaseScores(official=official, corrected=corrected)


def _worst(voxels: int, grid: Grid, *, missing: bool) -> CaseScores:
    """Return the scores that the published evaluator gives to an empty or full mask. voxels: those of the reference."""
    volume = voxels * grid.voxel_mm3

    def metrics(spacing: Triple) -> CaseMetrics:
        diagonal = _diagonal_mm(grid.shape, spacing)
        return CaseMetrics(0.0, 0.0, diagonal, diagonal, -volume, 0.0, volume, missing)

    return CaseScores(official=metrics(grid.spacing[::-1]), corrected=metrics(grid.spacing))


def _warn_if_other_labels(array: NDArray[Any], name: str | Path) -> None:
    """Log why a mask counts as empty although it has other labels, such as 0 and 255."""
    if array.any() and not tumour_of(array).any():
        values = np.unique(array)[:5].tolist()
        logger.warning(
            "%s: no voxel has label %d, so the mask counts as empty; its values are %s", name, TUMOUR, values
        )


def _diagonal_mm(shape: Shape, spacing: Triple) -> float:
    return math.hypot(*(n * mm for n, mm in zip(shape, spacing, strict=True)))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
