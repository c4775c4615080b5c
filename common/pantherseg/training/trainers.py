"""The trainers that a training recipe can choose by `[trainer] kind`."""

from __future__ import annotations

from pantherseg.errors import RecipeError
from pantherseg.training.trainer import Trainer, TrainingJob
from pantherseg.training.training_recipe import TrainingRecipe


def _train_nnunet(job: TrainingJob) -> None:
    from pantherseg.training.nnunet import train_nnunet  # imports nnU-Net, which takes seconds

    train_nnunet(job)


TRAINERS: dict[str, Trainer] = {"nnunet": _train_nnunet}


def find_trainer(recipe: TrainingRecipe) -> Trainer:
    """Return the trainer that a training recipe names. Raises RecipeError for an unknown name."""
    kind = recipe.trainer.kind
    if kind not in TRAINERS:
        raise RecipeError(recipe.name, expected=f"trainer.kind to be one of {', '.join(TRAINERS)}", found=repr(kind))
    return TRAINERS[kind]
