"""Validation of a trained fold on the cases that it was not trained on, with the engine of inference."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from pantherseg.files import written_beside
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.io import read_image, write_volume
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS, read_json
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.training.folders import SPLITS, TrainingFolders
from pantherseg.volume import Volume

SUMMARY = "summary.json"
Each = Callable[[str, Volume, Logits], None]


def validate_fold(
    folders: TrainingFolders,
    *,
    fold: int,
    device: str = "cpu",
    checkpoint: str = CHECKPOINT,
    mirroring: bool = False,
    each: Each | None = None,
) -> dict[str, Any]:
    """Segment the validation cases of a trained fold, and return the metrics that nnU-Net computes of them.

    As by nnU-Net, fold_<k>/validation gets the masks and summary.json, which is the result: `mean` and
    `metric_per_case` with `Dice` of each label, and `foreground_mean`. mirroring: average over mirrored inputs if the
    fold was trained with mirroring, as nnU-Net's own validation does. each: is also given every case's name, its image
    and its logits, for example to store probabilities; the case's mask is written after it.

    Raises ModelError if the fold has no such checkpoint, and InputError if an image cannot be read.
    """
    model = folders.model
    bundle = as_bundle(open_model_folder(model, folds=[fold], checkpoint=checkpoint))
    predictor = Predictor(bundle, choose_backend(device), mirroring=mirroring)
    dataset, output = read_json(model / DATASET), folders.fold(fold) / "validation"
    shutil.rmtree(output, ignore_errors=True)
    ending = dataset["file_ending"]
    for case in validation_cases(folders, fold):
        image, _ = read_image(folders.dataset / "imagesTr" / f"{case}_0000{ending}")
        logits = predictor.predict(image)
        if each is not None:
            each(case, image, logits)
        write_volume(Volume(logits.labels(), image.grid), output / f"{case}{ending}")
    return _summarize(folders, output, dataset)


def validation_cases(folders: TrainingFolders, fold: int) -> list[str]:
    """Return the cases on which a fold is validated, in the order of splits_final.json."""
    splits = json.loads((folders.preprocessed / SPLITS).read_text(encoding="utf-8"))
    return [str(case) for case in splits[fold]["val"]]


def _summarize(folders: TrainingFolders, output: Path, dataset: dict[str, Any]) -> dict[str, Any]:
    """Let nnU-Net compare the masks with the reference, write summary.json and return its content."""
    manager = PlansManager(read_json(folders.model / PLANS))
    with written_beside(output / SUMMARY) as beside:
        compute_metrics_on_folder(
            str(folders.preprocessed / "gt_segmentations"),
            str(output),
            str(beside),
            manager.image_reader_writer_class(),
            dataset["file_ending"],
            manager.get_label_manager(dataset).foreground_labels,
            num_processes=min(4, os.cpu_count() or 1),
        )
    return read_json(output / SUMMARY)
