"""The trainers that a stage can choose by `trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pantherseg.training.training_recipe import PlanSettings, TrainingSettings

if TYPE_CHECKING:
    from pantherseg.training.folders import TrainingFolders


class Trainer(Protocol):
    """Plans and trains the folds of a stage in nnU-Net's folders. start: model folder to start from, or None."""

    def plan(self, folders: TrainingFolders, settings: PlanSettings, *, start: Path | None) -> None:
        """Write the plans and the preprocessed cases. Raises PantherSegError."""
        ...

    def train(
        self, folders: TrainingFolders, settings: TrainingSettings, *, fold: int, start: Path | None, device: str
    ) -> None:
        """Train a fold, or go on where it was interrupted: plans.json, dataset.json and fold_<k>/checkpoint_*.pth.

        Raises PantherSegError.
        """
        ...


class NnunetTrainer:
    """nnU-Net's planners, and its trainer with another schedule."""

    # Each imports torch and nnU-Net, which takes seconds.

    def plan(self, folders: TrainingFolders, settings: PlanSettings, *, start: Path | None) -> None:
        """See `Trainer.plan`."""
        from pantherseg.training.planning import plan_and_preprocess

        plan_and_preprocess(folders, settings, start=start)

    def train(
        self, folders: TrainingFolders, settings: TrainingSettings, *, fold: int, start: Path | None, device: str
    ) -> None:
        """See `Trainer.train`."""
        from pantherseg.training.folds import train_fold

        train_fold(folders, settings, fold=fold, start=start, device=device)


TRAINERS: dict[str, Trainer] = {"nnunet": NnunetTrainer()}
