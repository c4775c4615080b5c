"""Where nnU-Net's files of one data set are. nnU-Net takes its folders from environment variables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import InputError
from pantherseg.model_sources.nnunet import DATASET

CONFIGURATION = "3d_fullres"
PLANS_NAME = "pantherseg"
TRAINER = "PantherTrainer"
FINDS_TRAINER = {"nnUNet_extTrainer": str(Path(__file__).parent / "nnunet_trainers")}
# What a fold's folder has of its validation cases: masks, and nnU-Net's summary of their metrics.
VALIDATION, SUMMARY = "validation", "summary.json"


@dataclass(frozen=True)
class TrainingFolders:
    """The folders of the training on one data set.

    dataset: raw nnU-Net data set, a folder Dataset<number>_<name> with dataset.json, imagesTr, labelsTr and
    splits_final.json; root: gets nnU-Net's folders `preprocessed` and `results`.
    """

    dataset: Path
    root: Path

    def check(self) -> None:
        """Raise InputError unless there is a raw data set with splits."""
        for name in (DATASET, SPLITS):
            if not (self.dataset / name).is_file():
                found = "no such file" if self.dataset.is_dir() else "no such folder"
                raise InputError(self.dataset / name, expected="a raw nnU-Net data set", found=found)

    @property
    def name(self) -> str:
        """The name of the data set, such as Dataset901_T1."""
        return self.dataset.name

    @property
    def preprocessed(self) -> Path:
        """The folder of the preprocessed data set, with the plans."""
        return self.root / "preprocessed" / self.name

    @property
    def plans(self) -> Path:
        """The plans of the training."""
        return self.preprocessed / f"{PLANS_NAME}.json"

    @property
    def is_preprocessed(self) -> bool:
        """Whether the preprocessing is complete: the splits are copied last."""
        return (self.preprocessed / SPLITS).is_file()

    @property
    def model(self) -> Path:
        """The model folder with plans.json, dataset.json and the folds."""
        return self.root / "results" / self.name / f"{TRAINER}__{PLANS_NAME}__{CONFIGURATION}"

    def fold(self, fold: int) -> Path:
        """Return the folder of a fold with its checkpoints and its validation."""
        return self.model / f"fold_{fold}"

    def environment(self) -> contextlib.AbstractContextManager[None]:
        """Point nnU-Net to these folders, and to PantherTrainer."""
        return nnunet_environment(self.dataset.parent, self.root)


def nnunet_environment(raw: Path, root: Path) -> contextlib.AbstractContextManager[None]:
    """Point nnU-Net to a folder of raw data sets, to the other folders below `root`, and to PantherTrainer."""
    return environment(
        nnUNet_raw=str(raw),
        nnUNet_preprocessed=str(root / "preprocessed"),
        nnUNet_results=str(root / "results"),
        **FINDS_TRAINER,
    )


def trainer_environment() -> contextlib.AbstractContextManager[None]:
    """Let nnU-Net find PantherTrainer, so that it can read the models that it trained."""
    return environment(**FINDS_TRAINER)


@contextlib.contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Set environment variables for as long as the context is open."""
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
