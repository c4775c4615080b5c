"""A training recipe: how one model is planned and trained, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from pantherseg.tables import Fraction, NotNegative, Positive, Table, read_table

Count = Annotated[int, Meta(ge=1)]


class Plan(Table, frozen=True):
    """What nnU-Net's planner is told. All sizes are (z, y, x)."""

    spacing: tuple[Positive, Positive, Positive]
    """Voxel size that volumes are resampled to, in mm."""
    network: Literal["ResidualEncoderUNet", "PlainConvUNet"] | None = None
    """Without it, network, patch and batch are those of the model that is fine-tuned."""
    memory_gb: Positive = 8
    """The planner picks the patch that fits this; nnU-Net's own presets are 8 to 40."""
    base_features: Count = 32
    max_features: Count = 320
    blocks_encoder: list[int] | None = None
    """Blocks a stage; without it the planner's own."""
    blocks_decoder: list[int] | None = None


class Schedule(Table, frozen=True):
    """How long and how fast a fold learns."""

    epochs: Count
    iterations: Count = 250
    """Batches an epoch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """nnU-Net's SGD with Nesterov momentum .99, or AdamW, which gets further in a few hundred batches."""
    learning_rate: Positive = 1e-2
    foreground: Fraction = 0.33
    """Share of each batch that is sampled around a foreground voxel."""
    augmentation: Literal["default", "none"] = "default"
    """nnU-Net's augmentation, or none where cases are as many as one likes and the processor is slow."""
    mirroring: bool = True
    """Mirror in augmentation; also allows it at inference."""


class TrainingRecipe(Table, frozen=True):
    """One model: the data's view, the plan and the schedule."""

    schema: Literal[1]
    name: str
    dataset_id: Annotated[int, Meta(ge=1, le=999)]
    """nnU-Net's number of the data set, 1 to 999."""
    labels: Literal["tumour+pancreas", "tumour", "organs"]
    """What is learned: 1 tumour and 2 pancreas; 1 tumour; or organsTr, numbered as in MRSegmentator."""
    plan: Plan
    schedule: Schedule
    folds: Annotated[int, Meta(ge=2)] = 5
    """Parts of the cross-validation."""
    trained_folds: Count | None = None
    """Train only the first of them; without it all."""
    crop_margin_mm: NotNegative | None = None
    """Cut each case to its pancreas (tumour included) plus this margin; without it the whole volume."""
    seed: int = 0


def load_training_recipe(path: Path) -> TrainingRecipe:
    """Read a training recipe. Raises RecipeError naming the file and the key."""
    return read_table(path, TrainingRecipe)
