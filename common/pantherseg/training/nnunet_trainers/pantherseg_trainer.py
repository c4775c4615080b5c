"""PantherTrainer: nnU-Net's trainer with the settings that the plans file holds under the key `pantherseg`.

nnU-Net's own commands find it if the environment variable nnUNet_extTrainer names the folder of this file:
`nnUNetv2_train 901 3d_fullres 0 -tr PantherTrainer -p pantherseg`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
    nnUNetTrainerDA5ord0,
    nnUNetTrainerDA5Segord0,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from pantherseg.errors import RecipeError
from pantherseg.files import written_beside
from pantherseg.training.epoch_curves import EpochCurves
from pantherseg.training.seeds import reseed
from pantherseg.training.training_recipe import Augmentation, ScheduleSettings, TrainingSettings

logger = logging.getLogger(__name__)

SETTINGS_KEY = "pantherseg"
LATEST = "checkpoint_latest.pth"
SECONDS_BETWEEN_DRAWINGS = 30

# nnU-Net's trainers whose augmentation is used.
AUGMENTATIONS: dict[Augmentation, type[nnUNetTrainer]] = {
    "default": nnUNetTrainer,
    "da5": nnUNetTrainerDA5,
    "da5_nearest_labels": nnUNetTrainerDA5Segord0,
    "da5_nearest_images": nnUNetTrainerDA5ord0,
    "none": nnUNetTrainerNoDA,
}


class PantherTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with another schedule and augmentation, and with a training that can be resumed exactly.

    The random numbers of each epoch follow from the seed, the fold and the epoch. Without worker processes
    (nnUNet_n_proc_DA=0) and on a CPU, a training that is resumed ends in the same weights as one without interruption.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - as in nnU-Net, which reads this signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        settings = read_settings(plans)
        self.schedule: ScheduleSettings = settings.schedule
        self.seed = settings.seed
        self.num_epochs = self.schedule.epochs
        self.num_iterations_per_epoch = self.schedule.iterations
        self.num_val_iterations_per_epoch = self.schedule.validation_iterations
        self.initial_lr = self.schedule.learning_rate
        self.oversample_foreground_percent = self.schedule.foreground
        self.current_epoch: int = 0
        # nnU-Net would write the latest checkpoint before it knows whether the epoch was the best: see on_epoch_end.
        self.save_every = self.num_epochs + 1
        self._curves: EpochCurves | None = None
        self._draw, self._drawn = self.logger.plot_progress_png, 0.0
        self.logger.plot_progress_png = self._draw_progress

    def initialize(self) -> None:
        """Do as nnU-Net does, with initial weights that follow from the seed and the fold."""
        reseed(self.seed, self.fold)
        super().initialize()

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return the optimizer of the schedule, with nnU-Net's settings for SGD, and its learning rates."""
        optimizer, _ = super().configure_optimizers()
        if self.schedule.optimizer == "adamw":
            optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, LearningRates(optimizer, self.schedule)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Do as the augmentation's trainer does, but without mirroring if the schedule says so."""
        # nnUNetTrainerNoDA calls its base class in a way that needs an instance of its own.
        is_none = self.schedule.augmentation == "none"
        base = nnUNetTrainer if is_none else AUGMENTATIONS[self.schedule.augmentation]
        rotation, dummy_2d, patch_size, mirror_axes = base.configure_rotation_dummyDA_mirroring_and_inital_patch_size(
            self
        )
        if is_none:
            patch_size = self.configuration_manager.patch_size  # without rotation there are no corners to cut away
        if is_none or not self.schedule.mirroring:
            mirror_axes, self.inference_allowed_mirroring_axes = None, None
        return rotation, dummy_2d, patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the transforms of the augmentation's trainer."""
        transforms = AUGMENTATIONS[self.schedule.augmentation].get_training_transforms(*args, **kwargs)
        if get_allowed_n_proc_DA() == 0:
            _blur_without_timing(transforms)
        return transforms

    def on_epoch_start(self) -> None:
        """Do as nnU-Net does, with random numbers that follow from the seed, the fold and the epoch."""
        super().on_epoch_start()
        reseed(self.seed, self.fold, self.current_epoch)

    @cached_property
    def in_bfloat16(self) -> bool:
        """Whether steps compute in bfloat16."""
        wanted = self.schedule.bfloat16 and self.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        # Where a convolution sees two voxels in depth, oneDNN's gradient of its weights in bfloat16 contains memory
        # that was never written, at times NaN (torch 2.10).
        strides = [stride[0] for stride in self.configuration_manager.pool_op_kernel_sizes]
        depths = self.configuration_manager.patch_size[0] // np.cumprod(strides)
        return bool(wanted and 2 not in depths)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do as nnU-Net does, but in bfloat16 on CPUs if the schedule says so."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            result: dict[str, Any] = super().train_step(batch)
        return result

    def on_epoch_end(self) -> None:
        """Do as nnU-Net does, then write the checkpoint to resume from, the curves and one line of the log."""
        epoch: int = self.current_epoch
        super().on_epoch_end()  # which also counts the epoch
        if self.current_epoch % self.schedule.checkpoint_every == 0 and self.current_epoch < self.num_epochs:
            self.current_epoch = epoch  # `save_checkpoint` stores the epoch after this one
            self.save_checkpoint(str(Path(self.output_folder) / LATEST))
            self.current_epoch = epoch + 1
        if self.local_rank == 0:
            self._report(epoch)

    def on_train_end(self) -> None:
        """Do as nnU-Net does, and close the curves."""
        super().on_train_end()
        if self._curves is not None:
            self._curves.close()

    def save_checkpoint(self, filename: str) -> None:
        """Do as nnU-Net does, so that the file is complete or absent. Raises OutputError, as on a full disk."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        with written_beside(Path(filename)) as beside:
            super().save_checkpoint(str(beside))

    def _draw_progress(self, folder: str) -> None:
        """Let nnU-Net draw progress.png, which takes a second or more: too long after every epoch of a few seconds."""
        is_last = self.current_epoch == self.num_epochs - 1
        if is_last or time.monotonic() - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self._draw(folder)
            self._drawn = time.monotonic()

    def _report(self, epoch: int) -> None:
        if self._curves is None:
            self._curves = EpochCurves(Path(self.output_folder), first_epoch=epoch)
        names = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs")
        values = {name: float(self.logger.get_value(name, step=epoch)) for name in names}
        self._curves.add(epoch, values)
        logger.info(
            "fold %s: epoch %d of %d, loss %.3f, validation loss %.3f, pseudo Dice %.3f",
            *(self.fold, epoch + 1, self.num_epochs),
            *(values[name] for name in ("train_losses", "val_losses", "mean_fg_dice")),
        )


class LearningRates:
    """Sets the learning rate of an optimizer at the start of each epoch, as nnU-Net's schedulers do."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: ScheduleSettings) -> None:
        self._optimizer, self._schedule = optimizer, schedule

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch, counted from 0."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate_at(epoch)


def read_settings(plans: Mapping[str, Any]) -> TrainingSettings:
    """Return the settings in plans; nnU-Net's own where there are none. Raises RecipeError for invalid settings."""
    try:
        return msgspec.convert(plans.get(SETTINGS_KEY, {}), TrainingSettings)
    except msgspec.ValidationError as error:
        raise RecipeError(f"plans {plans.get('plans_name')}", f"invalid {SETTINGS_KEY}: {error}") from error


def _blur_without_timing(transforms: Any) -> None:
    """Let each blur use convolutions, and not what is faster in a timing, so that it gives the same values again."""
    for transform in getattr(transforms, "transforms", ()):
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
