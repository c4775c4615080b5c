"""The interface of trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pantherseg.training.training_recipe import TrainingRecipe


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a trainer needs for one model.

    data: data set folder in PANTHER's layout; splits: the cases of each fold of the cross-validation, those to `train`
    on and those for validation (`val`); output: folder for the model; work: folder for the trainer's own files; start:
    model folder to fine-tune, where fold k starts from its fold k, or None; device: `cpu` or `cuda`.
    """

    recipe: TrainingRecipe
    data: Path
    splits: Sequence[Mapping[str, Sequence[str]]]
    output: Path
    work: Path
    start: Path | None = None
    device: str = "cpu"

    @property
    def folds(self) -> range:
        """The folds to train."""
        return range(min(self.recipe.trained_folds or len(self.splits), len(self.splits)))


class Trainer(Protocol):
    """Trains the folds of a job."""

    def __call__(self, job: TrainingJob) -> None:
        """Write a model folder to `job.output`: plans.json, dataset.json and fold_<k>/checkpoint_final.pth.

        Raises PantherSegError; it is a RecipeError, raised before anything is written, if the recipe does not suit the
        trainer or the model to start from.
        """
        ...
