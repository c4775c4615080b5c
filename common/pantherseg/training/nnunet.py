"""The trainer `nnunet`: nnU-Net's planner, preprocessor and trainer with the settings of a training recipe.

nnU-Net takes its folders and its number of workers from environment variables, which are set only while it runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from pantherseg.errors import RecipeError
from pantherseg.files import write_text, written_beside
from pantherseg.model_sources.checkpoint import check_fit, read_checkpoint
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS, read_json
from pantherseg.models.find import open_model_folder
from pantherseg.training.dataset import write_nnunet_dataset
from pantherseg.training.trainer import TrainingJob
from pantherseg.training.training_recipe import PlanSettings, ScheduleSettings, TrainingRecipe

logger = logging.getLogger(__name__)

PLANNERS: dict[str, type[ExperimentPlanner]] = {
    "PlainConvUNet": ExperimentPlanner,
    "ResidualEncoderUNet": ResEncUNetPlanner,
}
CONFIGURATION = "3d_fullres"
PLANS_NAME = "pantherseg"
FEW_CORES = 8
SEGMENTATION_HEAD = ".seg_layers."


def train_nnunet(job: TrainingJob) -> None:
    """Train the folds of a job with nnU-Net, as `trainer.Trainer` says.

    Raises RecipeError unless there is either a network in the plan settings or a model to fine-tune, ModelError if the
    model to fine-tune does not fit, and InputError if the data cannot be used.
    """
    recipe = job.recipe
    if (recipe.plan.network is None) == (job.start is None):
        found = "neither" if job.start is None else "both"
        raise RecipeError(recipe.name, expected="either plan.network or a model to fine-tune", found=found)
    starts = _start_checkpoints(job.start, job.folds)
    with workspace(job.work):
        dataset = write_nnunet_dataset(recipe, job.data, job.work / "raw")
        preprocessed = job.work / "preprocessed"
        (preprocessed / dataset.name).mkdir(parents=True, exist_ok=True)
        start_plans = None if job.start is None else read_json(job.start / PLANS)
        plans = make_plans(recipe, dataset, preprocessed, start=start_plans)
        (preprocessed / dataset.name / "splits_final.json").write_text(json.dumps(job.splits), encoding="utf-8")
        dataset_json = json.loads((dataset / DATASET).read_text(encoding="utf-8"))
        for name, content in ((PLANS, plans), (DATASET, dataset_json)):
            write_text(job.output / name, json.dumps(content, indent=2) + "\n")
        for fold in job.folds:
            began = time.monotonic()
            checkpoint = train_fold(recipe, plans, dataset_json, fold=fold, start=starts[fold], device=job.device)
            with written_beside(job.output / f"fold_{fold}" / CHECKPOINT) as target:
                torch.save(checkpoint, target)
            logger.info("fold %d trained in %.0f s", fold, time.monotonic() - began)


@contextlib.contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Set environment variables for as long as the context is open."""
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def workspace(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Point nnU-Net to raw, preprocessed and results folders below `folder`."""
    return environment(**{f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")})


def make_plans(
    recipe: TrainingRecipe, dataset: Path, preprocessed: Path, *, start: dict[str, Any] | None
) -> dict[str, Any]:
    """Extract nnU-Net's fingerprint, plan, preprocess, and return the plans.

    start: plans of the model to fine-tune, whose network, patch size and batch size are kept so that its weights fit.
    """
    processes = min(4, os.cpu_count() or 1)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints its plans, which are also written to a file
        extract_fingerprint_dataset(recipe.dataset_id, num_processes=processes, show_progress_bar=False, verbose=False)
        planner = _planner(recipe.plan, dataset.name)
        plans: dict[str, Any] = planner.plan_experiment()
    configuration = plans["configurations"][CONFIGURATION]
    # Only one configuration is trained, so the others are left out of the plans.
    plans["configurations"] = {CONFIGURATION: configuration}
    if start is not None:
        source = start["configurations"][CONFIGURATION]
        configuration.update({key: source[key] for key in ("architecture", "patch_size", "batch_size")})
    plans_file = preprocessed / dataset.name / f"{PLANS_NAME}.json"
    plans_file.write_text(json.dumps(plans, indent=2) + "\n", encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        preprocess_dataset(recipe.dataset_id, PLANS_NAME, (CONFIGURATION,), (processes,), show_progress_bar=False)
    saved: dict[str, Any] = json.loads(plans_file.read_text(encoding="utf-8"))
    return saved


def _planner(settings: PlanSettings, dataset_name: str) -> ExperimentPlanner:
    # For fine-tuning, either planner will do: only its normalisation and resampling are used.
    planner = PLANNERS[settings.network or "PlainConvUNet"](
        dataset_name,
        gpu_memory_target_in_gb=settings.memory_gb,
        plans_name=PLANS_NAME,
        overwrite_target_spacing=list(settings.spacing),
    )
    planner.UNet_base_num_features = settings.base_features
    planner.UNet_max_features_3d = settings.max_features
    if settings.blocks_encoder is not None:
        planner.UNet_blocks_per_stage_encoder = tuple(settings.blocks_encoder)
    if settings.blocks_decoder is not None:
        planner.UNet_blocks_per_stage_decoder = tuple(settings.blocks_decoder)
    return planner


class RecipeTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with the schedule of a training recipe."""

    schedule: ScheduleSettings

    def apply(self, schedule: ScheduleSettings) -> None:
        """Set the schedule. Call it before `initialize`."""
        self.schedule = schedule
        self.num_epochs = schedule.epochs
        self.num_iterations_per_epoch = schedule.iterations
        self.num_val_iterations_per_epoch = 1
        self.initial_lr = schedule.learning_rate
        self.oversample_foreground_percent = schedule.foreground
        # Training is never resumed: the weights are taken from the network at the end.
        self.disable_checkpointing = True

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Do as nnU-Net does, but without mirroring if the schedule says so."""
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.schedule.mirroring:
            mirror_axes, self.inference_allowed_mirroring_axes = None, None
        if self.schedule.augmentation == "none":
            patch_size = self.configuration_manager.patch_size  # without rotation there are no corners to cut away
        return rotation, dummy_2d, patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's transforms; those of validation if the schedule wants no augmentation."""
        if self.schedule.augmentation == "default":
            return super().get_training_transforms(*args, **kwargs)
        _patch_size, _rotation, scales, _mirror_axes, _dummy_2d = args
        shared = ("is_cascaded", "foreground_labels", "regions", "ignore_label")
        return self.get_validation_transforms(scales, **{key: kwargs[key] for key in shared})

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Do as nnU-Net does, but with AdamW instead of SGD if the schedule says so."""
        optimizer, scheduler = super().configure_optimizers()
        if self.schedule.optimizer == "adamw":
            optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        return optimizer, scheduler

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do as nnU-Net does, but in bfloat16 on CPUs that support it, where nnU-Net would use float32."""
        bfloat16 = self.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            result: dict[str, Any] = super().train_step(batch)
        return result

    def on_epoch_end(self) -> None:
        """Do as nnU-Net does, and log one line."""
        epoch = self.current_epoch
        super().on_epoch_end()
        losses = self.logger.get_value("train_losses", step=epoch)
        logger.info("fold %s: epoch %d of %d, loss %.3f", self.fold, epoch + 1, self.num_epochs, losses)

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to nnU-Net's log file only: `on_epoch_end` logs one line per epoch to the console."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)


def train_fold(
    recipe: TrainingRecipe,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    *,
    fold: int,
    start: Path | None,
    device: str,
) -> dict[str, Any]:
    """Train one fold, starting from the checkpoint `start` unless it is None.

    Return its checkpoint in nnU-Net's layout, without the state of the optimizer.
    """
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(recipe.seed + fold)
    with contextlib.redirect_stdout(io.StringIO()):  # the constructor prints a greeting
        trainer = RecipeTrainer(
            {**plans, "continue_training": False}, CONFIGURATION, fold, dataset_json, torch.device(device)
        )
    trainer.apply(recipe.schedule)
    trainer.initialize()
    if start is not None:
        _load_all_but_heads(trainer.network, start, read_checkpoint(start).weights)
    # On few cores, worker processes for augmentation would only compete with the network.
    with environment(nnUNet_n_proc_DA="0" if (os.cpu_count() or 1) < FEW_CORES else "6"):
        trainer.run_training()
    return {
        "network_weights": {key: value.cpu() for key, value in trainer.network.state_dict().items()},
        "init_args": {"configuration": CONFIGURATION, "fold": fold},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def _start_checkpoints(start: Path | None, folds: Sequence[int]) -> dict[int, Path | None]:
    """Return the checkpoint that each fold starts from. Raises ModelError if one is missing."""
    if start is None:
        return dict.fromkeys(folds)
    model = open_model_folder(start, folds=folds)
    return {fold: model.checkpoint_path(str(fold)) for fold in folds}


def _load_all_but_heads(network: torch.nn.Module, start: Path, weights: dict[str, Any]) -> None:
    """Load another model's weights, except for its segmentation heads, which belong to other labels."""
    state = network.state_dict()
    body = {key: value for key, value in weights.items() if SEGMENTATION_HEAD not in key}
    check_fit(start, {key: value for key, value in state.items() if SEGMENTATION_HEAD not in key}, body)
    network.load_state_dict(state | body)
