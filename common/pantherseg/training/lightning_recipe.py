"""How a stage is trained by the trainer `lightning`, as data. Sizes and spacings are (z, y, x)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# Importing the families of networks registers them.
from pantherseg.networks import Architecture
from pantherseg.preprocessing.intensity import IntensityScheme, ZScore
from pantherseg.tables import Fraction, NotNegative, Positive, Table
from pantherseg.training.training_recipe import Count

Whole = Annotated[int, Meta(ge=0)]
# Larger than any volume, and small enough to count the voxels of a patch.
PatchSide = Annotated[int, Meta(ge=1, le=4096)]


class LightningPlan(Table, frozen=True):
    """The network, and how volumes are prepared for it, in training as at inference."""

    network: Architecture
    """The name of a family of networks, and its settings."""
    spacing: tuple[Positive, Positive, Positive]
    """Spacing in mm to which volumes are resampled."""
    patch_size: tuple[PatchSide, PatchSide, PatchSide]
    """Patch size in voxels, which the network must be able to process."""
    batch_size: Count = 2
    """Patches per batch."""
    normalization: IntensityScheme = msgspec.field(default_factory=ZScore)
    """A scheme of `preprocessing.intensity`; by default, the z-score of the whole volume."""

    def __post_init__(self) -> None:
        self.network.check_patch(self.patch_size)


class LossSettings(Table, frozen=True):
    """The weights of the parts of the loss, a sum; see `patches.losses` for their formulas."""

    dice: NotNegative = 1.0
    cross_entropy: NotNegative = 0.0
    focal: NotNegative = 0.0
    focal_alpha: Fraction = 0.25
    """Weight of the labels in the focal part; the background has the rest of 1."""
    focal_gamma: NotNegative = 2.0
    """The larger, the less the focal part looks at voxels that are already right."""
    boundary: NotNegative = 0.0
    empty_slices: Fraction = 1.0
    """Weight of the slices across z in which nothing is labelled; the other slices have the weight 1."""

    def __post_init__(self) -> None:
        if not self.dice + self.cross_entropy + self.focal + self.boundary:
            raise ValueError("at least one part of the loss must have a weight above 0")


class LightningSchedule(Table, frozen=True):
    """Settings of the training of one fold. Steps are batches."""

    epochs: Count
    iterations: Count = 250
    """Batches per epoch."""
    validation_iterations: Count = 50
    """Validation batches per epoch, the same ones in each; their Dice chooses the best checkpoint."""
    learning_rate: Positive = 3e-4
    """The highest learning rate of AdamW."""
    weight_decay: NotNegative = 1e-2
    """AdamW's weight decay; by default torch's."""
    decay: Literal["poly", "plateau"] = "poly"
    """How the learning rate falls: to zero at the last step with the power 0.9, or by a factor whenever the validation
    Dice has not risen for some epochs."""
    warm_up_steps: Whole = 0
    """Steps at the beginning in which the learning rate rises linearly; only with `poly`."""
    plateau_factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    plateau_patience: Whole = 10
    """Epochs without a higher validation Dice before the learning rate falls; only with `plateau`."""
    early_stopping: Count | None = None
    """End after this many epochs without a higher validation Dice; if omitted, after the last epoch."""
    clip_gradient: Positive | None = None
    """Largest norm of the gradient of all weights."""
    loss: LossSettings = LossSettings()
    sampling: dict[str, NotNegative] = msgspec.field(default_factory=dict)
    """How often patches are centred on a voxel of each label, by its name; `background` is one, and a label that is
    left out is not centred on. By default all labels are equal."""
    augmentation: Literal["none", "intensity", "nnunet"] = "nnunet"
    """Noise, brightness, contrast and gamma; or the kinds of nnU-Net, which also turns, scales, blurs and coarsens."""
    mirroring: bool = True
    """Mirror patches along each axis, which also allows mirroring at inference."""
    mixed_precision: bool = True
    """Compute in float16 on GPUs; CPUs compute in float32."""
    checkpoint_every: Count = 1
    """Epochs between the checkpoints from which an interrupted training is resumed."""

    def __post_init__(self) -> None:
        if self.decay != "poly" and self.warm_up_steps:
            raise ValueError("warm_up_steps needs the decay poly")
        if self.warm_up_steps >= self.steps:
            raise ValueError(f"warm_up_steps must be less than all steps: {self.warm_up_steps} of {self.steps}")
        if self.sampling and not sum(self.sampling.values()):
            raise ValueError("at least one label of sampling must have a number above 0")

    @property
    def steps(self) -> int:
        """The number of steps of all epochs."""
        return self.epochs * self.iterations

    @property
    def optimizer(self) -> Literal["adamw"]:
        """The only one, as in `ScheduleSettings.optimizer`."""
        return "adamw"

    @property
    def mirroring_axes(self) -> tuple[Literal[0, 1, 2], ...]:
        """The axes that training mirrors, 0 = z."""
        return (0, 1, 2) if self.mirroring else ()

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, for the decay poly.

        It rises linearly, and is then multiplied by (1 - progress)^0.9, as in nnU-Net (DeepLab, arXiv 1606.00915).
        """
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        progress = (step - self.warm_up_steps) / (self.steps - self.warm_up_steps)
        return self.learning_rate * float((1 - min(progress, 1)) ** 0.9)


class LightningSettings(Table, frozen=True):
    """What a stage has in place of `plan` and `schedule` where its trainer is `lightning`."""

    plan: LightningPlan
    schedule: LightningSchedule
