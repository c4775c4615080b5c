"""What Lightning trains: a network, its loss, its optimizer and learning rates."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from monai.losses import DeepSupervisionLoss
from monai.metrics import DiceMetric
from monai.networks import one_hot
from torch import nn

from pantherseg.training.lightning_recipe import LightningSchedule
from pantherseg.training.patches.batches import Patch
from pantherseg.training.patches.losses import PatchLoss

# The names of what is logged.
LOSS, VALIDATION_LOSS, DICE = "loss", "validation_loss", "validation_dice"


class PatchModule(LightningModule):
    """Trains a network (n, 1, z, y, x) -> logits, or a list of logits of which the first is at full resolution.

    classes: number of labels, background included. The validation Dice is the mean over labels and patches that have
    the label.
    """

    def __init__(self, network: nn.Module, schedule: LightningSchedule, *, classes: int) -> None:
        super().__init__()
        self.network = network
        self._schedule, self._classes = schedule, classes
        # The auxiliary heads have the weights 1/2, 1/4, ..., on targets of their resolution.
        self._loss = DeepSupervisionLoss(PatchLoss(schedule.loss, classes=classes))
        self._dice = DiceMetric(include_background=False)

    def configure_optimizers(self) -> Any:
        """Return AdamW, and for the decay `poly` the learning rate of each step."""
        schedule = self._schedule
        optimizer = torch.optim.AdamW(
            self.network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        if schedule.decay == "plateau":
            return optimizer
        rates = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule.learning_rate_at(step) / schedule.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def training_step(self, batch: Patch, _: int) -> torch.Tensor:
        """Return the loss of a batch, with the auxiliary heads."""
        loss: torch.Tensor = self._loss(self.network(batch["image"]), batch["target"])
        self.log(LOSS, loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Patch, _: int) -> None:
        """Log the loss of a batch without the auxiliary heads, and collect its Dice."""
        logits, target = self.network(batch["image"]).float(), batch["target"]
        self.log(VALIDATION_LOSS, self._loss(logits, target), batch_size=len(target))
        mask, labels = logits.argmax(1, keepdim=True), target[:, :1]
        self._dice(one_hot(mask, self._classes), one_hot(labels, self._classes))

    def on_validation_epoch_end(self) -> None:
        """Log the validation Dice, 0 where no patch has a label."""
        self.log(DICE, self._dice.aggregate().float())
        self._dice.reset()
