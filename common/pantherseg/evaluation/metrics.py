"""The five metrics of the PANTHER challenge for one case, in two conventions.

official    as the challenge's evaluator computes them: with the spacing in the order (x, y, z) for arrays (z, y, x), so
            that distances along x and z are wrong if the spacing is anisotropic. The leaderboards use this convention.
corrected   with the spacing in the order of the array (z, y, x), so that distances are those in the patient.

Both consider only the tumour in the reference and the prediction. Dice and volumes do not depend on the convention.
Source of the formulas: DeepMind's surface-distance, and `Evaluation/evaluate_local.py` of the challenge's baseline
repository, DIAGNijmegen/PANTHER_baseline.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError, PantherSegError
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.orientation import DEFAULT_ORIENTATION
from pantherseg.volume import Box, Shape, Triple, Volume

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
    tumour), and for a prediction on another grid; PantherSegError if surface-distance is not installed.
    """
    reference = reference.turned_to(DEFAULT_ORIENTATION)
    tumour = tumour_of(reference.array)
    if not tumour.any():
        found = f"no voxel with label {TUMOUR}"
        raise InputError(reference_name, expected=f"a reference mask with a tumour (label {TUMOUR})", found=found)
    if prediction is None:
        return _worst(tumour, reference, missing=True)
    prediction = prediction.turned_to(DEFAULT_ORIENTATION)
    difference = reference.grid.difference(prediction.grid)
    if difference:
        raise InputError(name, expected="a mask on the grid of its reference mask", found=difference)
    predicted = tumour_of(prediction.array)
    if not predicted.any() or predicted.all():
        _warn_if_other_labels(prediction.array, predicted, name)
        return _worst(tumour, reference, missing=False)
    return _scores(predicted, tumour, reference)


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


def _scores(predicted: NDArray[np.bool_], tumour: NDArray[np.bool_], reference: Volume) -> CaseScores:
    """Score two masks (z, y, x) with at least one voxel each."""
    grid = reference.grid
    voxels, reference_voxels = int(predicted.sum()), int(tumour.sum())
    dice = 2 * int((predicted & tumour).sum()) / (voxels + reference_voxels)
    # surface-distance crops to the same box, but takes long to find it; the results are identical.
    box = Box.around(predicted | tumour) or Box.whole(grid.shape)
    masks = np.ascontiguousarray(tumour[box.slices]), np.ascontiguousarray(predicted[box.slices])
    spacing, swapped = grid.spacing, grid.spacing[::-1]
    surface = _surface_metrics(*masks, spacing=spacing)
    volume, reference_volume = voxels * grid.voxel_mm3, reference_voxels * grid.voxel_mm3
    corrected = CaseMetrics(dice, *surface, volume - reference_volume, volume, reference_volume)
    if spacing == swapped:
        return CaseScores(official=corrected, corrected=corrected)
    surface_dice, hd95, masd = _surface_metrics(*masks, spacing=swapped)
    official = replace(corrected, surface_dice_5mm=surface_dice, hd95_mm=hd95, masd_mm=masd)
    return CaseScores(official=official, corrected=corrected)


def _worst(tumour: NDArray[np.bool_], reference: Volume, *, missing: bool) -> CaseScores:
    """Return the scores that the published evaluator gives to a mask that is empty or full."""
    volume = int(tumour.sum()) * reference.grid.voxel_mm3

    def metrics(spacing: Triple) -> CaseMetrics:
        diagonal = _diagonal_mm(reference.grid.shape, spacing)
        return CaseMetrics(0.0, 0.0, diagonal, diagonal, -volume, 0.0, volume, missing)

    return CaseScores(official=metrics(reference.grid.spacing[::-1]), corrected=metrics(reference.grid.spacing))


def _surface_metrics(
    tumour: NDArray[np.bool_], predicted: NDArray[np.bool_], *, spacing: Triple
) -> tuple[float, float, float]:
    """Return surface Dice at 5 mm, HD95 and MASD (mm) of two non-empty masks (z, y, x)."""
    library = surface_distance_library()
    with warnings.catch_warnings():
        # surface-distance 0.1 uses namespaces of scipy.ndimage that SciPy will remove in version 2.0.
        warnings.filterwarnings("ignore", message="Please import", category=DeprecationWarning)
        distances = library.compute_surface_distances(tumour, predicted, spacing_mm=spacing)
    to_predicted, to_reference = library.compute_average_surface_distance(distances)
    return (
        float(library.compute_surface_dice_at_tolerance(distances, SURFACE_TOLERANCE_MM)),
        float(library.compute_robust_hausdorff(distances, HAUSDORFF_PERCENT)),
        float(to_predicted + to_reference) / 2,
    )


def surface_distance_library() -> Any:
    """Return DeepMind's package. Raises PantherSegError if it is not installed: inference does not need it."""
    try:
        import surface_distance
    except ImportError as error:
        raise PantherSegError(
            "evaluation",
            expected="the package surface-distance",
            found=str(error),
            hint="pip install 'pantherseg[evaluate]'",
        ) from error
    return surface_distance


def _warn_if_other_labels(array: NDArray[Any], predicted: NDArray[np.bool_], name: str | Path) -> None:
    """Log why a mask counts as empty although it has other labels, such as 0 and 255."""
    if not predicted.any() and array.any():
        values = np.unique(array)[:5].tolist()
        logger.warning(
            "%s: no voxel has label %d, so the mask counts as empty; its values are %s", name, TUMOUR, values
        )


def _diagonal_mm(shape: Shape, spacing: Triple) -> float:
    return math.hypot(*(n * mm for n, mm in zip(shape, spacing, strict=True)))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
