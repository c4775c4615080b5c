"""The trainer `nnunet`: nnU-Net's planner, preprocessor and trainer with the settings of a training recipe."""

from __future__ import annotations

import json
import shutil

import torch

from pantherseg.files import write_text, written_beside
from pantherseg.model_sources.checkpoint import read_checkpoint
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS
from pantherseg.training.dataset import write_nnunet_dataset
from pantherseg.training.folders import SPLITS, TrainingFolders
from pantherseg.training.folds import train_fold
from pantherseg.training.planning import check_plan, plan_and_preprocess
from pantherseg.training.start import start_checkpoint
from pantherseg.training.trainer import TrainingJob
from pantherseg.training.training_recipe import TrainingSettings


def train_nnunet(job: TrainingJob) -> None:
    """Train the folds of a job with nnU-Net, as `trainer.Trainer` says.

    Raises RecipeError unless there is either a network in the plan settings or a model to fine-tune, ModelError if the
    model to fine-tune does not fit, and InputError if the data cannot be used.
    """
    recipe = job.recipe
    check_plan(recipe.plan, start=job.start, name=recipe.name)
    if job.start is not None:
        for fold in job.folds:
            start_checkpoint(job.start, fold)
    dataset = write_nnunet_dataset(recipe, job.data, job.work / "raw")
    write_text(dataset / SPLITS, json.dumps(job.splits))
    folders = TrainingFolders(dataset, job.work)
    plan_and_preprocess(folders, recipe.plan, start=job.start)
    shutil.rmtree(folders.model, ignore_errors=True)  # a training of an earlier run in this folder
    for fold in job.folds:
        settings = TrainingSettings(schedule=recipe.schedule, seed=recipe.seed)
        trained = train_fold(folders, settings, fold=fold, start=job.start, device=job.device)
        checkpoint = read_checkpoint(trained / CHECKPOINT)
        content = {
            "network_weights": checkpoint.weights,
            "init_args": {"configuration": checkpoint.configuration, "fold": fold},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": checkpoint.mirroring_axes or None,
        }
        with written_beside(job.output / f"fold_{fold}" / CHECKPOINT) as target:
            torch.save(content, target)
    for name in (PLANS, DATASET):
        shutil.copyfile(folders.model / name, job.output / name)
