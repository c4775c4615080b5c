"""Lightning's checkpoints to resume from, which are read as tensors and plain values and never unpickled freely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pantherseg.errors import ModelError, OutputError, first_few
from pantherseg.model_sources.checkpoint import misfits, read_plain
from pantherseg.model_sources.lightning_plans import LightningPlans
from pantherseg.training.lightning_recipe import LightningSchedule
from pantherseg.training.training_recipe import UNIMPORTANT

LATEST = "checkpoint_latest.ckpt"
WHAT = "a checkpoint to resume from"
# The key of what is noted in a checkpoint, and the version of its form.
KEY, SCHEMA = "pantherseg", 1


@dataclass(frozen=True)
class Resumable:
    """What a checkpoint must belong to."""

    plans: LightningPlans
    schedule: LightningSchedule
    seed: int
    fold: int

    def described(self) -> dict[str, Any]:
        """Return it as plain data, without what changes no weight."""
        data: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode({**self.plans.described, **msgspec.to_builtins(self.schedule)})
        )
        own = {"schema": SCHEMA, "seed": self.seed, "fold": self.fold}
        return {key: value for key, value in data.items() if key not in UNIMPORTANT} | own

    def note(self) -> Callback:
        """Return what writes it into every checkpoint."""
        return _Note(self.described())


class _Note(Callback):
    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the note."""
        checkpoint[KEY] = self._content


def check_resumable(path: Path, expected: Mapping[str, torch.Tensor], wanted: Resumable) -> None:
    """Check that a training can go on from a checkpoint. expected: the state that it must have.

    Raises ModelError for a damaged file, for one that contains more than tensors and plain values, and for one with
    other tensors, which it names; OutputError for a training with other settings.
    """
    again = f"move {path.parent.name} away to train from the beginning"
    content = read_plain(path, what=WHAT, hint=again)
    found = content.get(KEY) if isinstance(content, dict) else None
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not isinstance(weights, dict):
        raise ModelError(path, expected=WHAT, found="a file of something else", hint=again)
    described = wanted.described()
    differing = sorted(key for key in described.keys() | found.keys() if described.get(key) != found.get(key))
    tensors = misfits(expected, weights)
    if tensors:
        others = f", trained with other settings: {first_few(differing)}" if differing else ""
        raise ModelError(
            path,
            expected="the tensors of the network to train",
            found=tensors + others,
            hint=again,
        )
    if differing:
        raise OutputError(
            path.parent,
            expected="a new folder, or a training with the same plans and settings",
            found=f"one that differs in {first_few(differing)}",
            hint="move it away",
        )
