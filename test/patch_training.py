"""A small data set for training, and settings for the trainer `lightning`, which several test modules use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from pantherseg.datasets.splits import SPLITS
from pantherseg.phantom import write_dataset
from pantherseg.tables import decode_registered
from pantherseg.training.lightning_recipe import LightningSettings

LABELS = {"background": 0, "tumour": 1, "pancreas": 2}
PLAN: dict[str, Any] = {
    "network": {"family": "attention_unet", "base_features": 2, "depth": 1, "squeeze": 2},
    "spacing": [6.0, 5.0, 5.0],
    "patch_size": [8, 16, 16],
    "normalization": {"scheme": "NonZeroZScoreNormalization", "percentiles": [1.0, 99.0]},
}
SCHEDULE: dict[str, Any] = {"epochs": 4, "iterations": 3, "validation_iterations": 2, "mixed_precision": False}


def settings(plan: dict[str, Any] | None = None, **schedule: Any) -> LightningSettings:
    """Return small settings with some values changed."""
    tables = {"plan": PLAN | (plan or {}), "schedule": SCHEDULE | schedule}
    return msgspec.convert(tables, LightningSettings, dec_hook=decode_registered)


def write_raw(folder: Path, labels: dict[str, int] | None = None) -> Path:
    """Write four phantoms as a raw nnU-Net data set with two folds."""
    raw = folder / "Dataset990_tiny"
    cases = write_dataset(raw, task=1, cases=4, seed=70, size="small")
    description = {
        "channel_names": {"0": "MR"},
        "labels": labels or LABELS,
        "numTraining": len(cases),
        "file_ending": ".mha",
        "orientation": "LPS",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:2], "val": cases[2:]}]
    (raw / SPLITS).write_text(json.dumps(splits))
    return raw
