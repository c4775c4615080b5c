"""A training recipe: how one model is planned and trained, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from pantherseg.labels import LabelMapName
from pantherseg.orientation import DEFAULT_ORIENTATION, Orientation
from pantherseg.tables import Fraction, NotNegative, Positive, Table, read_table

Count = Annotated[int, Meta(ge=1)]


class TrainerSettings(Table, frozen=True):
    """Which trainer is used."""

    kind: str = "nnunet"
    """A name in `trainers.TRAINERS`."""


class PlanSettings(Table, frozen=True):
    """Settings of nnU-Net's experiment planner. All sizes are (z, y, x)."""

    spacing: tuple[Positive, Positive, Positive]
    """Target spacing in mm, to which volumes are resampled."""
    network: Literal["ResidualEncoderUNet", "PlainConvUNet"] | None = None
    """If omitted, the network, patch size and batch size of the model to fine-tune are kept."""
    memory_gb: Positive = 8
    """GPU memory for which the planner chooses the patch size; nnU-Net's own presets use 8 to 40."""
    base_features: Count = 32
    max_features: Count = 320
    blocks_encoder: list[int] | None = None
    """Blocks per stage; if omitted, the planner's default."""
    blocks_decoder: list[int] | None = None


class ScheduleSettings(Table, frozen=True):
    """Settings of the training of one fold."""

    epochs: Count
    iterations: Count = 250
    """Batches per epoch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """nnU-Net's SGD with Nesterov momentum 0.99, or AdamW, which converges faster in a few hundred batches."""
    learning_rate: Positive = 1e-2
    foreground: Fraction = 0.33
    """Fraction of the patches of a batch that are centred on a foreground voxel."""
    augmentation: Literal["default", "none"] = "default"
    """nnU-Net's augmentation, or none, for synthetic data of which there are plenty of cases, and slow CPUs."""
    mirroring: bool = True
    """Mirror in augmentation, which also allows mirroring at inference."""


class TrainingRecipe(Table, frozen=True):
    """One model: its trainer, its view of the data, its plan and its schedule."""

    schema: Literal[1]
    name: str
    dataset_id: Annotated[int, Meta(ge=1, le=999)]
    """nnU-Net's data set number, 1 to 999."""
    labels: LabelMapName
    """The label map that is learned, a name in `labels.LABEL_MAPS`."""
    plan: PlanSettings
    schedule: ScheduleSettings
    trainer: TrainerSettings = TrainerSettings()
    folds: Annotated[int, Meta(ge=2)] = 5
    """Number of folds of the cross-validation."""
    trained_folds: Count | None = None
    """Train only the first folds, this many of them; if omitted, all."""
    crop_margin_mm: NotNegative | None = None
    """Crop each case to its pancreas, tumour included, plus this margin; if omitted, the whole volume is used."""
    orientation: Orientation = DEFAULT_ORIENTATION
    """Volumes are turned to it, and the trained model knows it."""
    seed: int = 0


def load_training_recipe(path: Path) -> TrainingRecipe:
    """Read a training recipe. Raises RecipeError with the file and the key."""
    return read_table(path, TrainingRecipe)
