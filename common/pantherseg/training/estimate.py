"""What the training of a fold will take: memory and hours, before it begins.

Memory: the largest size of the features that exist at the same time in a forward and a backward pass of one batch
(measured by following their shapes, without computing), in float16 on GPUs, where nnU-Net trains so; plus the weights,
their gradients and what the optimizer keeps, in float32; plus a fixed amount for the libraries.

Hours: the multiplications and additions of those passes (counted in the same way), times the number of batches, divided
by the speed of the device, which is either measured on a convolution or taken from a table.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pantherseg.machine.cpus import usable_cpus
from pantherseg.packing.activations import PeakBytes
from pantherseg.training.training_recipe import Length

GB = 1e9
# torch, nnU-Net and the CUDA context; and the augmentation of the next batches.
LIBRARIES_BYTES = 1.5 * GB
# Weights, gradients, and one (SGD) or two (AdamW) values that the optimizer keeps of each weight.
COPIES = {"sgd": 3, "adamw": 4}
# Each has the weights and what the optimizer keeps.
CHECKPOINTS = 3
# Operations per second in training: one core of a server's CPU, and a data centre's GPU (A100) with float16.
TABLE = {"cpu": 1e10, "cuda": 4e13}
# A validation batch has the forward pass alone, which is a third of the work.
VALIDATION_SHARE = 1 / 3
TIMED_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """What one batch of a training takes: activations in bytes (float32), weights as a number, operations."""

    activations: int
    weights: int
    operations: int

    def memory(self, schedule: Length, device: str) -> float:
        """Return the memory of a training in bytes."""
        activations = self.activations / 2 if device.startswith("cuda") else self.activations
        return activations + 4 * COPIES[schedule.optimizer] * self.weights + LIBRARIES_BYTES

    def disk(self, schedule: Length) -> float:
        """Return the size in bytes of what a fold leaves: the final and the best checkpoint, and one being written."""
        return CHECKPOINTS * 4.0 * (COPIES[schedule.optimizer] - 1) * self.weights

    def seconds(self, schedule: Length, speed: float) -> float:
        """Return the time of a training. speed: operations per second."""
        batches = schedule.iterations + VALIDATION_SHARE * schedule.validation_iterations
        return schedule.epochs * batches * self.operations / speed


def cost_of(network: nn.Module, patch: tuple[int, ...], batch_size: int) -> Cost:
    """Return what one batch of a network takes. patch: (z, y, x) or (y, x)."""
    on_meta = copy.deepcopy(network).to("meta").train()
    with FlopCounterMode(display=False) as operations, PeakBytes() as bytes_:
        logits = on_meta(torch.empty((batch_size, 1, *patch), device="meta"))
        heads = logits if isinstance(logits, (list, tuple)) else [logits]
        torch.autograd.backward([head.sum() for head in heads])
    weights = sum(value.numel() for value in on_meta.parameters())
    return Cost(bytes_.peak, weights, operations.get_total_flops())


def speed_in_table(device: str) -> float:
    """Return the operations per second that the table gives to a device."""
    return TABLE["cuda"] if device.startswith("cuda") else TABLE["cpu"] * usable_cpus()


def measured_speed(device: str) -> float:
    """Return the operations per second of a device in training, measured on convolutions for about two seconds."""
    block = nn.Sequential(nn.Conv3d(32, 32, 3, padding=1), nn.InstanceNorm3d(32), nn.LeakyReLU()).to(device)
    image = torch.zeros((2, 32, 32, 64, 64), device=device)
    with FlopCounterMode(display=False) as operations:
        _pass(block, image)
    began, passes = time.monotonic(), 0
    while time.monotonic() - began < TIMED_SECONDS:
        _pass(block, image)
        passes += 1
    return float(passes * operations.get_total_flops() / (time.monotonic() - began))


def _pass(block: nn.Module, image: torch.Tensor) -> None:
    with torch.autocast(image.device.type, torch.float16, enabled=image.device.type == "cuda"):
        loss = block(image).float().mean()
    loss.backward()
    float(loss.detach())  # waits for the device
