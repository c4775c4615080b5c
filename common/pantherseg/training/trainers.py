"""The trainers that a stage can choose by `trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pantherseg.training.training_recipe import PlanSettings, TrainingSettings

if TYPE_CHECKING:
    from pantherseg.training.folders import TrainingFolders

Configuration = dict[str, Any]


class Trainer(Protocol):
    """Plans and trains the folds of a stage in nnU-Net's folders.

    kept: configuration of the plans of the model to start from, or None; start: its checkpoint, or None.
    """

    def plan(self, folders: TrainingFolders, settings: PlanSettings, *, kept: Configuration | None) -> Configuration:
        """Write the plans and the preprocessed cases, and return the configuration. Raises PantherSegError."""
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

    def plan(self, folders: TrainingFolders, settings: PlanSettings, *, kept: Configuration | None) -> Configuration:
        """See `Trainer.plan`."""
        from pantherseg.model_sources.nnunet import read_json
        from pantherseg.training.folders import CONFIGURATION
        from pantherseg.training.planning import plan_and_preprocess
        from pantherseg.training.start import kept_configuration

        plans = plan_and_preprocess(folders, settings, kept=kept)
        return kept_configuration(read_json(plans), CONFIGURATION, plans)

    def train(
        self, folders: TrainingFolders, settings: TrainingSettings, *, fold: int, start: Path | None, device: str
    ) -> None:
        """See `Trainer.train`."""
        from pantherseg.training.folds import train_fold

        train_fold(folders, settings, fold=fold, start=start, device=device)


TRAINERS: dict[str, Trainer] = {"nnunet": NnunetTrainer()}
