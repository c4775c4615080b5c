"""How one model is planned and trained, as data."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from pantherseg.tables import Fraction, Positive, Table

Count = Annotated[int, Meta(ge=1)]


class PlanSettings(Table, frozen=True):
    """Settings of nnU-Net's experiment planner. All sizes are (z, y, x)."""

    spacing: tuple[Positive, Positive, Positive] | None = None
    """Target spacing in mm, to which volumes are resampled; if omitted, that of the model to fine-tune, or else the
    planner's choice."""
    network: Literal["PlainConvUNet", "ResidualEncoderUNet", "ResEncM", "ResEncL", "ResEncXL"] | None = None
    """A network without a preset, or one of nnU-Net's presets for residual encoders; if omitted, the network, patch
    size and batch size of the model to fine-tune are kept."""
    memory_gb: Positive | None = None
    """GPU memory for which the planner chooses the patch size; if omitted, that of the preset, and 8 without one."""
    base_features: Count = 32
    max_features: Count = 320
    blocks_encoder: list[int] | None = None
    """Blocks per stage; if omitted, the planner's default."""
    blocks_decoder: list[int] | None = None
    patch_size: tuple[Count, Count, Count] | None = None
    """Patch size in voxels, which the network must be able to halve; if omitted, the planner's choice."""
    batch_size: Count | None = None
    """Patches per batch; if omitted, the planner's choice."""


Augmentation = Literal["default", "da5", "da5_nearest_labels", "da5_nearest_images", "none"]


class ScheduleSettings(Table, frozen=True):
    """Settings of the training of one fold. The defaults are nnU-Net's."""

    epochs: Count = 1000
    iterations: Count = 250
    """Batches per epoch."""
    validation_iterations: Count = 50
    """Validation batches per epoch, whose Dice chooses checkpoint_best.pth."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """nnU-Net's SGD with Nesterov momentum 0.99, or AdamW, which converges faster in a few hundred batches."""
    learning_rate: Positive = 1e-2
    """The highest learning rate, at the end of the warm-up."""
    warm_up: Annotated[int, Meta(ge=0)] = 0
    """Epochs at the beginning in which the learning rate rises linearly."""
    decay: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls to zero after the warm-up."""
    foreground: Fraction = 0.33
    """Fraction of the patches of a batch that are centred on a foreground voxel, rounded to whole patches."""
    augmentation: Augmentation = "default"
    """nnU-Net's augmentation; its stronger DA5, which may take the nearest label or the nearest label and image value
    instead of interpolating when it turns and scales; or none, for synthetic data of which there are plenty of cases,
    and slow CPUs."""
    mirroring: bool = True
    """Mirror in augmentation, which also allows mirroring at inference. Without augmentation there is none."""
    checkpoint_every: Count = 1
    """Epochs between the checkpoints from which an interrupted training is resumed."""
    bfloat16: bool = False
    """Compute in bfloat16 on CPUs that support it, where nnU-Net computes in float32; not where a stage of the network
    is two voxels deep, as the gradients of these are not reliable."""

    def __post_init__(self) -> None:
        if self.warm_up >= self.epochs:
            raise ValueError(f"warm_up must be less than epochs: {self.warm_up} of {self.epochs}")

    def learning_rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0, by the formulas of nnU-Net's schedulers."""
        if epoch < self.warm_up:
            return self.learning_rate * (epoch + 1) / self.warm_up
        progress = (epoch - self.warm_up) / (self.epochs - self.warm_up)
        factor = (1 - progress) ** 0.9 if self.decay == "poly" else (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * factor


class Length(Protocol):
    """What every trainer's schedule has: how much is computed, and what the optimizer keeps."""

    @property
    def epochs(self) -> int: ...  # noqa: D102 - as in ScheduleSettings
    @property
    def iterations(self) -> int: ...  # noqa: D102
    @property
    def validation_iterations(self) -> int: ...  # noqa: D102
    @property
    def optimizer(self) -> Literal["sgd", "adamw"]: ...  # noqa: D102


# Settings of a schedule that change no weight.
UNIMPORTANT = ("checkpoint_every",)


class TrainingSettings(Table, frozen=True):
    """How the folds of one model are trained: what a plans file holds under the key `pantherseg`."""

    schedule: ScheduleSettings = ScheduleSettings()
    seed: int = 0
