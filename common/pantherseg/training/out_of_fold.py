"""What is kept of each case that a fold was not trained on: its scores, and the tumour's probability in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.datasets.raw import RawDataset
from pantherseg.errors import InputError
from pantherseg.evaluation.metrics import CaseMetrics, score_case, totals
from pantherseg.fusion import MeanLogits
from pantherseg.inference.predictor import Logits
from pantherseg.io import case_name
from pantherseg.io.probabilities import SUFFIX, write_probability
from pantherseg.labels import LABEL_MAPS, TUMOUR, TUMOUR_NAME, LabelMapName, tumour_of
from pantherseg.volume import Box, Grid, Volume, uncrop

CONVENTIONS = ("official", "corrected")


class OutOfFold:
    """Collects the scores of a fold's validation cases, and writes their probabilities.

    whole: the data set before the stage cropped it, or the data set itself, on whose grids scores and probabilities
    are; dataset: the one that the stage trains on; folder: gets <case>.npz.

    scores: the metrics of each case in both conventions; unscored: why a case has none.
    """

    def __init__(self, whole: Path, dataset: Path, folder: Path) -> None:
        self._whole, self._dataset, self._folder = RawDataset.open(whole), RawDataset.open(dataset), folder
        self._has_tumour = TUMOUR_NAME in self._dataset.labels
        self.scores: dict[str, dict[str, Any]] = {}
        self.unscored: dict[str, str] = {}

    def add(self, case: str, image: Volume, logits: Logits) -> None:
        """Take the logits of a case. Raises OutputError, and InputError if the case's label cannot be read."""
        if not self._has_tumour:
            return
        reference = self._whole.label(case)
        assert reference is not None  # a stage has labels
        box = self._box(case)
        fused = MeanLogits().fuse([logits])
        probability = _on_grid(fused.probability(TUMOUR), box, reference.grid)
        write_probability(probability, self._folder / f"{case}{SUFFIX}")
        mask = _on_grid(tumour_of(fused.labels()).astype(np.uint8), box, reference.grid)
        try:
            scores = score_case(mask, reference, name=case, reference_name=self._whole.label_path(case))
        except InputError as error:  # a reference without a tumour
            self.unscored[case] = str(error)
        else:
            self.scores[case] = {name: asdict(getattr(scores, name)) for name in CONVENTIONS}

    def _box(self, case: str) -> Box | None:
        """Return the box of a case in its whole volume, None where the stage does not crop.

        Cases that were cropped before they came in have a box too, but in a volume that is not here.
        """
        crop = self._dataset.cases[case].crop
        return None if crop is None or self._whole.folder == self._dataset.folder else crop.box


def cropped_by_reference(dataset: RawDataset) -> dict[str, str]:
    """Return the cases that are cropped around their label map because the localizer failed, with the remarks.

    At inference nobody knows where the pancreas is, so their scores are higher than those of the whole method.
    """
    return {
        name: case.remark for name, case in dataset.cases.items() if case.crop is not None and case.crop.by_reference
    }


def total_metrics(scores: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the five metrics over cases, in both conventions; an empty dict without any case."""
    every = list(scores)
    if not every:
        return {}
    return {name: totals([CaseMetrics(**case[name]) for case in every]).as_dict() for name in CONVENTIONS}


def dice_by_label(summary: Mapping[str, Any], labels: LabelMapName) -> dict[str, dict[str, float | None]]:
    """Return the Dice of each label of each case by their names. summary: the content of nnU-Net's summary.json."""
    numbers = {number: name for name, number in LABEL_MAPS[labels].items() if number}
    found: dict[str, dict[str, float | None]] = {}
    for case in summary["metric_per_case"]:
        name = case_name(Path(case["prediction_file"]))
        values = {numbers[int(label)]: float(metrics["Dice"]) for label, metrics in case["metrics"].items()}
        # nnU-Net's Dice of a label that neither mask has is not a number.
        found[name] = {label: round(value, 4) if np.isfinite(value) else None for label, value in values.items()}
    return found


def mean_dice(cases: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean Dice of each label over the cases that have it."""
    values: dict[str, list[float]] = {}
    for case in cases:
        for label, value in case.items():
            if value is not None:
                values.setdefault(label, []).append(value)
    return {label: round(float(np.mean(found)), 4) for label, found in values.items()}


def _on_grid(array: NDArray[Any], box: Box | None, grid: Grid) -> Volume:
    return Volume(array if box is None else uncrop(array, box, grid.shape), grid)
