"""Lesion by lesion: which tumours are found, and what is marked where there is none.

A lesion is a component of voxels that touch by a face, an edge or a corner (26 neighbours), in the reference as in the
prediction. A lesion of the reference is found if the prediction covers at least MIN_OVERLAP of it. A predicted lesion
is a false positive if less than MIN_OVERLAP of it lies in the reference. So one predicted lesion may find two, and two
may find one. A lesion that is touched by a few voxels is not found, and a mask of half the abdomen that holds the
tumour finds it, but is a false positive too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.evaluation.bootstrap import Interval, mean_samples, percentile_interval
from pantherseg.evaluation.masks import tumours_of
from pantherseg.volume import Volume

MIN_OVERLAP = 0.1
ML_PER_MM3 = 1e-3
# The bounds of the classes: the volumes of balls of 1, 2 and 4 cm. Staging (TNM) asks for the tumour's diameter: up to
# 2 cm is T1, up to 4 cm T2.
BOUNDS_ML = tuple(round(math.pi / 6 * cm**3, 2) for cm in (1, 2, 4))
CLASSES = tuple(zip((0.0, *BOUNDS_ML), (*BOUNDS_ML, math.inf), strict=True))


@dataclass(frozen=True)
class Lesion:
    """A lesion of one mask: its volume, and the share of its voxels that the other mask has too."""

    volume_ml: float
    overlap: float

    @property
    def is_hit(self) -> bool:
        """Whether enough of it lies in the other mask: a lesion of the reference is found, a predicted one is right."""
        return self.overlap >= MIN_OVERLAP


@dataclass(frozen=True)
class CaseLesions:
    """The lesions of the reference and of the prediction of one case, the largest first."""

    reference: tuple[Lesion, ...]
    predicted: tuple[Lesion, ...]

    @property
    def found(self) -> int:
        """The number of lesions of the reference that are found."""
        return sum(lesion.is_hit for lesion in self.reference)

    @property
    def false_positives(self) -> int:
        """The number of predicted lesions that are false positives."""
        return sum(not lesion.is_hit for lesion in self.predicted)

    def within(self, low_ml: float, high_ml: float) -> CaseLesions:
        """Return the lesions with a volume from `low_ml` up to but not including `high_ml`."""

        def chosen(lesions: Iterable[Lesion]) -> tuple[Lesion, ...]:
            return tuple(lesion for lesion in lesions if low_ml <= lesion.volume_ml < high_ml)

        return CaseLesions(chosen(self.reference), chosen(self.predicted))

    def as_dict(self) -> dict[str, Any]:
        """Return the lesions for a JSON file."""
        return {
            "reference": [asdict(lesion) | {"found": lesion.is_hit} for lesion in self.reference],
            "predicted": [asdict(lesion) | {"false_positive": not lesion.is_hit} for lesion in self.predicted],
        }


@dataclass(frozen=True)
class Detection:
    """How many lesions of one class of volume were found in all cases, and how many marked where there is none.

    from_ml, to_ml: the class; no upper bound is None. sensitivity: found / reference, None without a lesion.
    """

    from_ml: float
    to_ml: float | None
    reference: int
    found: int
    sensitivity: float | None
    predicted: int
    false_positives: int
    false_positives_per_case: float


def find_lesions(prediction: Volume | None, reference: Volume) -> CaseLesions:
    """Return the lesions in two masks (z, y, x) on one grid. A prediction that is missing, or all tumour, has none."""
    turned = None if prediction is None else prediction.turned_to(reference.grid.orientation)
    tumours = tumours_of(turned, reference)
    ml = reference.grid.voxel_mm3 * ML_PER_MM3
    return CaseLesions(
        _components(tumours.reference, tumours.predicted, ml), _components(tumours.predicted, tumours.reference, ml)
    )


def detection(cases: Sequence[CaseLesions], *, low_ml: float = 0.0, high_ml: float = math.inf) -> Detection:
    """Return how well the lesions of a class of volume were detected over cases, of which there is at least one."""
    chosen = [case.within(low_ml, high_ml) for case in cases]
    lesions, found = sum(len(case.reference) for case in chosen), sum(case.found for case in chosen)
    false_positives = sum(case.false_positives for case in chosen)
    return Detection(
        from_ml=low_ml,
        to_ml=None if math.isinf(high_ml) else high_ml,
        reference=lesions,
        found=found,
        sensitivity=found / lesions if lesions else None,
        predicted=sum(len(case.predicted) for case in chosen),
        false_positives=false_positives,
        false_positives_per_case=false_positives / len(cases),
    )


def detection_intervals(cases: Sequence[CaseLesions]) -> dict[str, Interval] | None:
    """Return the intervals of the sensitivity and of the false positives a case, over all volumes; None for one case.

    Whole cases are drawn, because the lesions of a patient are alike.
    """
    if len(cases) < 2:
        return None
    counts = [(case.found, len(case.reference), case.false_positives) for case in cases]
    found, lesions, false_positives = mean_samples(np.array(counts, float)).T
    return {
        "sensitivity": percentile_interval(found / lesions),
        "false_positives_per_case": percentile_interval(false_positives),
    }


def _components(mask: NDArray[np.bool_], other: NDArray[np.bool_], voxel_ml: float) -> tuple[Lesion, ...]:
    """Return the components of a mask (z, y, x), the largest first, and how much of each another mask covers."""
    from scipy import ndimage  # takes a tenth of a second to import

    labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
    voxels = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    shared = np.bincount(labels[other], minlength=number + 1)[1:]
    order = np.argsort(-voxels, kind="stable")
    return tuple(Lesion(int(voxels[i]) * voxel_ml, int(shared[i]) / int(voxels[i])) for i in order)
