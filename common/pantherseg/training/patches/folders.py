"""Where the files of a data set are that the trainer `lightning` makes.

preprocessed/<data set>/    pantherseg_plans.json, splits_final.json, and of each case
    <case>.image.npy        the network's input, float32 (z, y, x)
    <case>.labels.npy       its labels on the same grid, uint8 (z, y, x)
    <case>.voxels.npz       `label_<k>`: where patches may be centred, indices of the flattened volume
results/<data set>/lightning/
    pantherseg_plans.json, and fold_<k>/ with checkpoint_final.safetensors, checkpoint_best.safetensors, and
    history.json, what was measured in each epoch
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import ModelError, last_line
from pantherseg.model_sources.lightning_plans import PLANS
from pantherseg.training.folders import TrainingFolders

IMAGE, LABELS, VOXELS = "image.npy", "labels.npy", "voxels.npz"
HISTORY = "history.json"


@dataclass(frozen=True)
class PatchFolders(TrainingFolders):
    """The folders of the training on one data set."""

    @property
    def plans(self) -> Path:
        """The plans of the training."""
        return self.preprocessed / PLANS

    @property
    def model(self) -> Path:
        """The model folder with the plans and the folds."""
        return self.root / "results" / self.name / "lightning"

    def case(self, case: str, what: str) -> Path:
        """Return a file of a preprocessed case. what: IMAGE, LABELS or VOXELS."""
        return self.preprocessed / f"{case}.{what}"


def read_seconds(checkpoint: Path) -> float:
    """Return how long all epochs of the training of a checkpoint took together, 0 without its history.

    Raises ModelError for a history that is damaged.
    """
    history = checkpoint.parent / HISTORY
    try:
        return float(sum(row["seconds"] for row in json.loads(history.read_text()))) if history.is_file() else 0.0
    except (ValueError, KeyError, TypeError) as error:
        expected, hint = "the epochs of a training", "remove this file; the record of the training then lacks its time"
        raise ModelError(history, expected=expected, found=last_line(error), hint=hint) from error
