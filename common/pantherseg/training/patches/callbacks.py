"""What happens beside the steps of a training. The state of each is part of the checkpoints to resume from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pantherseg.errors import PantherSegError
from pantherseg.training.epoch_curves import EpochCurves
from pantherseg.training.lightning_recipe import LightningSchedule
from pantherseg.training.patches.module import DICE, LOSS, VALIDATION_LOSS
from pantherseg.training.seeds import reseed

logger = logging.getLogger(__name__)

RATE, SECONDS = "learning_rate", "seconds"
Row = dict[str, float]


class Seeds(Callback):
    """Random numbers of each epoch, such as for dropout, that do not depend on the epochs before."""

    def __init__(self, seed: int, fold: int) -> None:
        self._seed, self._fold = seed, fold

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed."""
        reseed(self._seed, self._fold, trainer.current_epoch)


class ReduceOnPlateau(Callback):
    """Lowers the learning rate where the validation Dice does not rise.

    Lightning would do it after the checkpoint of the epoch is written, so that a resumed training would miss it.
    """

    def __init__(self, schedule: LightningSchedule) -> None:
        self._schedule = schedule
        self._state: dict[str, Any] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the Dice of an epoch."""
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            trainer.optimizers[0],
            mode="max",
            factor=self._schedule.plateau_factor,
            patience=self._schedule.plateau_patience,
        )
        if self._state:
            plateau.load_state_dict(self._state)
        plateau.step(float(trainer.callback_metrics[DICE]))
        self._state = plateau.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return what torch's scheduler knows."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state = dict(state_dict)


class History(Callback):
    """Notes each epoch, for TensorBoard and the log, and keeps the best one.

    fold: for the log; keep: called after an epoch with a higher validation Dice than all before. rows: the epochs.
    """

    def __init__(self, output: Path, schedule: LightningSchedule, *, fold: int, keep: Callable[[], None]) -> None:
        self._output, self._schedule, self._fold, self._keep = output, schedule, fold, keep
        self._curves: EpochCurves | None = None
        self._began = 0.0
        self.rows: list[Row] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch. Raises PantherSegError where the loss is no longer a finite number."""
        row = {name: float(trainer.callback_metrics[name]) for name in (LOSS, VALIDATION_LOSS, DICE)}
        if not math.isfinite(row[LOSS]):
            problem = f"the loss of epoch {trainer.current_epoch + 1} is {row[LOSS]}"
            raise PantherSegError(self._output, problem, hint="lower learning_rate, or set clip_gradient")
        row |= {
            RATE: float(trainer.optimizers[0].param_groups[0]["lr"]),
            SECONDS: round(time.monotonic() - self._began, 3),
        }
        if row[DICE] > max((earlier[DICE] for earlier in self.rows), default=-1.0):
            self._keep()
        if self._curves is None:
            self._curves = EpochCurves(self._output, first_epoch=len(self.rows))
        self._curves.add(len(self.rows), {name: value for name, value in row.items() if name != SECONDS})
        self.rows.append(row)
        logger.info(
            "fold %d: epoch %d of %d, loss %.3f, validation loss %.3f, validation Dice %.3f",
            *(self._fold, len(self.rows), self._schedule.epochs),
            *(row[name] for name in (LOSS, VALIDATION_LOSS, DICE)),
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the curves."""
        if self._curves is not None:
            self._curves.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = list(state_dict["rows"])
