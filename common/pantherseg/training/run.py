"""Trains a model by its training recipe, and measures each fold on the cases that it was not trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split
from numpy.typing import NDArray

from pantherseg.errors import InputError, OutputError
from pantherseg.files import write_text
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import BACKGROUND, LABEL_MAPS
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.model_sources.nnunet import PLANS
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.training.dataset import list_cases, read_case
from pantherseg.training.trainer import TrainingJob
from pantherseg.training.trainers import find_trainer
from pantherseg.training.training_recipe import TrainingRecipe

RECORD = "training.json"


def train(
    recipe: TrainingRecipe, data: Path, output: Path, *, work: Path, start: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Train the recipe's folds on a data set folder, write a model folder, and return the record beside it.

    data: folder in PANTHER's layout; output: gets plans.json, dataset.json, fold_<k>/checkpoint_final.pth and
    training.json, which holds the recipe's name, the number of cases, the seconds, and the Dice of every label of each
    case by the fold that was not trained on it; work: gets the trainer's own folders; start: model folder whose fold k
    is the starting point of fold k.

    Raises InputError if the data cannot be used, ModelError if the start does not fit, OutputError if the output folder
    already holds a model, and RecipeError if the recipe names an unknown trainer or does not suit its trainer.
    """
    trainer = find_trainer(recipe)
    if (output / PLANS).exists() or any(output.glob("fold_*")):
        # Folds of two trainings in one folder would become one ensemble.
        raise OutputError(output, expected="a new folder for the model", found="a model", hint="move it away")
    cases = list_cases(data, recipe.labels)
    if len(cases) < recipe.folds:
        raise InputError(data, expected=f"at least one case for each of {recipe.folds} folds", found=str(len(cases)))
    began = time.monotonic()
    keep_freed_memory()
    splits = generate_crossval_split(cases, seed=12345 + recipe.seed, n_splits=recipe.folds)
    job = TrainingJob(recipe, data, splits, output, work, start, device)
    trainer(job)
    record = {
        "recipe": recipe.name,
        "labels": recipe.labels,
        "cases": len(cases),
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began),
        "dice": _cross_validate(job),
    }
    write_text(output / RECORD, json.dumps(record, indent=2) + "\n")
    return record


def _cross_validate(job: TrainingJob) -> dict[str, Any]:
    """Return the Dice of each label of each validation case, and their means over cases."""
    labels = {name: number for name, number in LABEL_MAPS[job.recipe.labels].items() if number != BACKGROUND}
    by_case: dict[str, dict[str, float | None]] = {}
    bundle, backend = as_bundle(open_model_folder(job.output)), choose_backend(job.device)
    for fold in job.folds:
        predictor = Predictor(replace(bundle, folds=(str(fold),)), backend)
        for case in map(str, job.splits[fold]["val"]):
            image, reference = read_case(job.recipe, job.data, case)
            predicted = predictor.predict(image).labels()
            by_case[case] = {
                name: _dice(predicted == number, reference.array == number) for name, number in labels.items()
            }
    return {"mean": _means(list(by_case.values()), list(labels)), "cases": dict(sorted(by_case.items()))}


def _means(cases: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(np.mean([case[name] for case in cases if case[name] is not None])), 4) for name in names}


def _dice(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float | None:
    """Return the Dice of two masks, or None if both are empty."""
    total = int(predicted.sum()) + int(reference.sum())
    return round(2 * int((predicted & reference).sum()) / total, 4) if total else None
