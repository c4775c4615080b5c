"""Train a model by its recipe: data set folder in, model folder with its cross-validated figures out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split

from pantherseg.errors import InputError, OutputError, RecipeError
from pantherseg.files import write_text, written_beside
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io.itk import read_image, read_labels
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.packing.sources.nnunet import CHECKPOINT, PLANS, read_json
from pantherseg.training.dataset import LABELS, list_cases, write_nnunet_dataset
from pantherseg.training.nnunet import plan, train_fold, workspace
from pantherseg.training.recipe import TrainingRecipe

logger = logging.getLogger(__name__)

RECORD = "training.json"


def train(
    recipe: TrainingRecipe, data: Path, output: Path, *, work: Path, start: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Train the recipe's folds on a data set folder, write a model folder, and return the record beside it.

    data: folder in PANTHER's layout; output: gets plans.json, dataset.json, fold_<k>/checkpoint_final.pth and
    training.json (recipe, cases, seconds, Dice of every label of each case by the fold that has not seen it); work:
    gets nnU-Net's own folders; start: model folder whose fold k is where fold k starts.

    Raises InputError for the data, ModelError for a start that does not fit, OutputError where the output holds a
    model, and RecipeError unless the recipe names a network or there is a model to start from, and not both.
    """
    if (recipe.plan.network is None) == (start is None):
        found = "neither" if start is None else "both"
        raise RecipeError(recipe.name, expected="a network in the plan or a model to start from", found=found)
    if (output / "plans.json").exists() or any(output.glob("fold_*")):
        # Folds of two trainings in one folder would become one ensemble.
        raise OutputError(output, expected="a new folder for the model", found="a model", hint="move it away")
    cases = list_cases(data, recipe.labels)
    if len(cases) < recipe.folds:
        raise InputError(data, expected=f"at least {recipe.folds} cases for as many folds", found=str(len(cases)))
    began = time.monotonic()
    keep_freed_memory()
    splits = generate_crossval_split(cases, seed=12345 + recipe.seed, n_splits=recipe.folds)
    folds = range(min(recipe.trained_folds or recipe.folds, recipe.folds))
    starts = _start_checkpoints(start, folds)
    with workspace(work):
        dataset = write_nnunet_dataset(recipe, data, work / "raw")
        preprocessed = work / "preprocessed"
        (preprocessed / dataset.name).mkdir(parents=True, exist_ok=True)
        start_plans = None if start is None else read_json(start / PLANS)
        plans = plan(recipe, dataset, preprocessed, start=start_plans)
        (preprocessed / dataset.name / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
        dataset_json = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
        for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
            write_text(output / name, json.dumps(content, indent=2) + "\n")
        for fold in folds:
            fold_began = time.monotonic()
            checkpoint = train_fold(recipe, plans, dataset_json, fold=fold, start=starts[fold], device=device)
            with written_beside(output / f"fold_{fold}" / CHECKPOINT) as target:
                torch.save(checkpoint, target)
            logger.info("fold %d trained in %.0f s", fold, time.monotonic() - fold_began)
    record = {
        "recipe": recipe.name,
        "labels": recipe.labels,
        "cases": len(cases),
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - began),
        "dice": _cross_validate(recipe, dataset, output, {fold: splits[fold]["val"] for fold in folds}, device),
    }
    write_text(output / RECORD, json.dumps(record, indent=2) + "\n")
    return record


def _start_checkpoints(start: Path | None, folds: Sequence[int]) -> dict[int, Path | None]:
    if start is None:
        return dict.fromkeys(folds)
    model = open_model_folder(start, folds=folds)
    return {fold: model.checkpoint_path(str(fold)) for fold in folds}


def _cross_validate(
    recipe: TrainingRecipe, dataset: Path, output: Path, held_out: dict[int, list[str]], device: str
) -> dict[str, Any]:
    """Return Dice per case and label by the fold that has not seen the case, and the means over cases."""
    labels = {name: value for name, value in LABELS[recipe.labels].items() if value}
    by_case: dict[str, dict[str, float | None]] = {}
    bundle, backend = as_bundle(open_model_folder(output)), choose_backend(device)
    for fold, cases in held_out.items():
        predictor = Predictor(replace(bundle, folds=(str(fold),)), backend)
        for case in cases:
            image, _ = read_image(dataset / "imagesTr" / f"{case}_0000.mha")
            predicted, _ = predictor.labels(image)
            truth = read_labels(dataset / "labelsTr" / f"{case}.mha").array
            by_case[str(case)] = {name: _dice(predicted == value, truth == value) for name, value in labels.items()}
    means = {
        name: round(float(np.mean([dice[name] for dice in by_case.values() if dice[name] is not None])), 4)
        for name in labels
    }
    return {"mean": means, "cases": dict(sorted(by_case.items()))}


def _dice(predicted: Any, truth: Any) -> float | None:
    total = int(predicted.sum()) + int(truth.sum())
    return round(2 * int((predicted & truth).sum()) / total, 4) if total else None
