"""The trainers that a stage can choose by `trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pantherseg.training.folders import TrainingFolders
    from pantherseg.training.graph import Stage
    from pantherseg.training.patches.folders import PatchFolders

Configuration = dict[str, Any]


class Trainer(Protocol):
    """Plans and trains the folds of a stage.

    final, best: file names of a fold's checkpoints. kept: configuration of the plans of the model to start from, or
    None; start: its checkpoint, or None.
    """

    final: str
    best: str

    def folders(self, dataset: Path, root: Path) -> TrainingFolders:
        """Return where the files of a raw data set lie below a folder."""
        ...

    def plan(self, folders: TrainingFolders, stage: Stage, *, kept: Configuration | None) -> Configuration:
        """Write the plans and the preprocessed cases, and return the configuration. Raises PantherSegError."""
        ...

    def train(self, folders: TrainingFolders, stage: Stage, *, fold: int, start: Path | None, device: str) -> None:
        """Train a fold, or go on where it was interrupted: a model folder that can be packed.

        Raises PantherSegError.
        """
        ...

    def seconds(self, checkpoint: Path) -> float:
        """Return how long the training of a final checkpoint took, 0 where it is not known. Raises ModelError."""
        ...


class NnunetTrainer:
    """nnU-Net's planners, and its trainer with another schedule."""

    final, best = "checkpoint_final.pth", "checkpoint_best.pth"

    # Each imports torch and nnU-Net, which takes seconds.

    def folders(self, dataset: Path, root: Path) -> TrainingFolders:
        """See `Trainer.folders`."""
        from pantherseg.training.folders import TrainingFolders

        return TrainingFolders(dataset, root)

    def plan(self, folders: TrainingFolders, stage: Stage, *, kept: Configuration | None) -> Configuration:
        """See `Trainer.plan`."""
        from pantherseg.model_sources.nnunet import read_json
        from pantherseg.training.folders import CONFIGURATION
        from pantherseg.training.planning import plan_and_preprocess
        from pantherseg.training.start import kept_configuration

        plans = plan_and_preprocess(folders, stage.plan, kept=kept)
        return kept_configuration(read_json(plans), CONFIGURATION, plans)

    def train(self, folders: TrainingFolders, stage: Stage, *, fold: int, start: Path | None, device: str) -> None:
        """See `Trainer.train`."""
        from pantherseg.training.folds import train_fold
        from pantherseg.training.training_recipe import TrainingSettings

        settings = TrainingSettings(schedule=stage.schedule, seed=stage.seed)
        train_fold(folders, settings, fold=fold, start=start, device=device)

    def seconds(self, checkpoint: Path) -> float:
        """See `Trainer.seconds`."""
        from pantherseg.model_sources.checkpoint import read_seconds

        return read_seconds(checkpoint)


class LightningTrainer:
    """Networks of any registered family, trained on patches with Lightning and MONAI."""

    final, best = "checkpoint_final.safetensors", "checkpoint_best.safetensors"

    # Most import Lightning and MONAI, which takes seconds.

    def folders(self, dataset: Path, root: Path) -> PatchFolders:
        """See `Trainer.folders`."""
        from pantherseg.training.patches.folders import PatchFolders

        return PatchFolders(dataset, root)

    def plan(self, folders: TrainingFolders, stage: Stage, *, kept: Configuration | None) -> Configuration:
        """See `Trainer.plan`. Nothing is kept of a model to start from: the stage names its network."""
        from pantherseg.training.patches.preparing import prepare_cases

        assert stage.lightning is not None
        prepare_cases(self.folders(folders.dataset, folders.root), stage.lightning)
        return {}

    def train(self, folders: TrainingFolders, stage: Stage, *, fold: int, start: Path | None, device: str) -> None:
        """See `Trainer.train`."""
        from pantherseg.training.patches.fold import train_fold

        assert stage.lightning is not None
        own = self.folders(folders.dataset, folders.root)
        train_fold(own, stage.lightning, seed=stage.seed, fold=fold, start=start, device=device)

    def seconds(self, checkpoint: Path) -> float:
        """See `Trainer.seconds`."""
        from pantherseg.training.patches.folders import read_seconds

        return read_seconds(checkpoint)


NNUNET, LIGHTNING = "nnunet", "lightning"
TRAINERS: dict[str, Trainer] = {NNUNET: NnunetTrainer(), LIGHTNING: LightningTrainer()}
