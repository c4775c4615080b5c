"""Training of one fold by PantherTrainer, from the beginning or from where it was interrupted."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from pantherseg.errors import InputError, OutputError, first_few
from pantherseg.files import write_text
from pantherseg.machine.allocator import keep_freed_memory
from pantherseg.model_sources.checkpoint import read_checkpoint, read_origin
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, read_json
from pantherseg.training.folders import CONFIGURATION, TrainingFolders, environment
from pantherseg.training.nnunet_trainers.pantherseg_trainer import LATEST, SETTINGS_KEY, PantherTrainer
from pantherseg.training.start import START_RECORD, load_start
from pantherseg.training.training_recipe import UNIMPORTANT, TrainingSettings
from pantherseg.training.workers import WORKERS, workers_for_augmentation

logger = logging.getLogger(__name__)


def train_fold(
    folders: TrainingFolders,
    settings: TrainingSettings,
    *,
    fold: int,
    start: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train one fold of a preprocessed data set, and return its folder with the final and the best checkpoint.

    A training that was interrupted goes on from its latest checkpoint, and a finished one is left as it is. start:
    checkpoint of the model to fine-tune; what is not taken over from it is logged, and listed in start.json.
    device: `cpu` or `cuda`; nnU-Net takes the first GPU that CUDA_VISIBLE_DEVICES leaves.

    Raises InputError unless the data set was preprocessed, ModelError if the start does not fit, and OutputError if the
    fold's folder holds a training with other plans or settings, or if a checkpoint cannot be written.
    """
    began = time.monotonic()
    folders.check()
    if not folders.is_preprocessed:
        raise InputError(folders.preprocessed, expected="a preprocessed data set", found="none, or an incomplete one")
    keep_freed_memory()
    plans = _plans_with(settings, folders)
    output = folders.fold(fold)
    latest = next((path for name in (CHECKPOINT, LATEST) if (path := output / name).is_file()), None)
    if latest is not None:
        _check_same_training(latest, plans)
        if latest.name == CHECKPOINT:
            return output
    workers = environment(**{WORKERS: workers_for_augmentation()})
    # nnU-Net also writes to a file what it prints.
    with folders.environment(), workers, contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(folders, plans, fold=fold, device=device, resumed=latest is not None)
        if latest is not None:
            trainer.load_checkpoint(str(latest))
            logger.info("fold %d: resumed after epoch %d of %d", fold, trainer.current_epoch, trainer.num_epochs)
        elif start is not None:
            _start_from(trainer, start, output)
        trainer.run_training()
    logger.info("fold %d trained in %.0f s", fold, time.monotonic() - began)
    return output


def make_trainer(
    folders: TrainingFolders, plans: Mapping[str, Any], *, fold: int, device: str, resumed: bool = False
) -> PantherTrainer:
    """Return the trainer of a fold, with its network, in the environment of its folders. It creates the fold's folder.

    plans: with the settings of the training; device: `cpu` or `cuda`; resumed: whether a checkpoint will be loaded.
    """
    dataset = read_json(folders.preprocessed / DATASET)
    trainer = PantherTrainer(
        {**plans, "continue_training": resumed}, CONFIGURATION, fold, dataset, torch.device(device)
    )
    trainer.initialize()
    return trainer


def _plans_with(settings: TrainingSettings, folders: TrainingFolders) -> dict[str, Any]:
    """Return the plans with the settings, which are also written to the plans file, for nnU-Net's own commands."""
    plans = read_json(folders.plans)
    changed = plans | {SETTINGS_KEY: msgspec.to_builtins(settings)}
    if changed != plans:
        write_text(folders.plans, json.dumps(changed, indent=2) + "\n")
    return changed


def _check_same_training(checkpoint: Path, plans: dict[str, Any]) -> None:
    """Raise OutputError unless a checkpoint was trained by these plans, and ModelError if it cannot be read."""
    read_checkpoint(checkpoint)  # nnU-Net would run any code that the file contains
    found, _ = read_origin(checkpoint)
    plans, found = _without_unimportant(plans), _without_unimportant(found)
    differing = [key for key in plans.keys() | found.keys() if plans.get(key) != found.get(key)]
    if differing:
        raise OutputError(
            checkpoint.parent,
            expected="a new folder, or a training with the same plans and settings",
            found=f"one that differs in {first_few(sorted(differing))}",
            hint="move it away",
        )


def _without_unimportant(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return plans without the settings that change no weight."""
    settings = plans.get(SETTINGS_KEY, {})
    schedule = {key: value for key, value in settings.get("schedule", {}).items() if key not in UNIMPORTANT}
    return {**plans, SETTINGS_KEY: {**settings, "schedule": schedule}}


def _start_from(trainer: PantherTrainer, checkpoint: Path, output: Path) -> None:
    network: Any = trainer.network
    network = getattr(network, "_orig_mod", network)  # torch.compile wraps it
    skipped = load_start(network, checkpoint, channels=trainer.num_input_channels)
    names = first_few([f"{one.name} {one.shape}" for one in skipped], 4)
    logger.info("fold %s starts from %s, without %s", trainer.fold, checkpoint, names)
    record = {"checkpoint": str(checkpoint), "skipped": [asdict(one) for one in skipped]}
    write_text(output / START_RECORD, json.dumps(record, indent=2) + "\n")
