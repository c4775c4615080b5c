"""Validation of a trained fold on the cases that it was not trained on, with the engine of inference."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from pantherseg.datasets.raw import IMAGES, LABELS
from pantherseg.datasets.splits import SPLITS, read_splits
from pantherseg.files import written_beside
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.io import read_image, write_volume
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, read_json
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.training.folders import SUMMARY, VALIDATION, TrainingFolders
from pantherseg.volume import Volume

Each = Callable[[str, Volume, Logits], None]


def validate_fold(
    folders: TrainingFolders,
    *,
    fold: int,
    device: str = "cpu",
    checkpoint: str = CHECKPOINT,
    each: Each | None = None,
) -> dict[str, Any]:
    """Segment the validation cases of a trained fold, and return the metrics that nnU-Net computes of them.

    As by nnU-Net, fold_<k>/validation gets the masks and summary.json, which is the result: `mean` and
    `metric_per_case` with `Dice` of each label, and `foreground_mean`. Nothing is mirrored, as in the recipes. each: is
    also given every case's name, its image and its logits, for example to store probabilities; the case's mask is
    written after it. The preprocessed cases are not needed.

    Raises ModelError if the fold has no such checkpoint, and InputError if an image cannot be read.
    """
    model = folders.model
    bundle = as_bundle(open_model_folder(model, folds=[fold], checkpoint=checkpoint))
    predictor = Predictor(bundle, choose_backend(device), mirroring=False)
    dataset, output = read_json(folders.dataset / DATASET), folders.fold(fold) / VALIDATION
    shutil.rmtree(output, ignore_errors=True)
    ending = dataset["file_ending"]
    for case in validation_cases(folders, fold):
        image, _ = read_image(folders.dataset / IMAGES / f"{case}_0000{ending}")
        logits = predictor.predict(image)
        if each is not None:
            each(case, image, logits)
        write_volume(Volume(logits.labels(), image.grid), output / f"{case}{ending}")
    return _summarize(folders, output, dataset)


def validation_cases(folders: TrainingFolders, fold: int) -> list[str]:
    """Return the cases on which a fold is validated, in the order of splits_final.json."""
    return read_splits(folders.dataset / SPLITS)[fold]["val"]


def _summarize(folders: TrainingFolders, output: Path, dataset: dict[str, Any]) -> dict[str, Any]:
    """Let nnU-Net compare each mask with the reference, write summary.json and return its content.

    The content is that of nnU-Net's `compute_metrics_on_folder`, which starts processes that take longer than the work.
    """
    reader, labels = SimpleITKIO(), sorted(number for number in dataset["labels"].values() if number)
    references, masks = folders.dataset / LABELS, sorted(output.glob(f"*{dataset['file_ending']}"))
    cases = [compute_metrics(str(references / mask.name), str(mask), reader, labels) for mask in masks]
    names = list(cases[0]["metrics"][labels[0]])
    means = {label: {name: _mean(case["metrics"][label][name] for case in cases) for name in names} for label in labels}
    foreground = {name: float(np.mean([means[label][name] for label in labels])) for name in names}
    summary = {"metric_per_case": cases, "mean": means, "foreground_mean": foreground}
    for each in (*cases, means, foreground):
        recursive_fix_for_json_export(each)
    with written_beside(output / SUMMARY) as beside:
        save_summary_json(summary, str(beside))
    return read_json(output / SUMMARY)


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are numbers; not a number if none is."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
