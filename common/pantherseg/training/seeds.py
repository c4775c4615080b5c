"""Random numbers of a training, which follow from its seed, the fold and the epoch alone."""

from __future__ import annotations

import random

import numpy as np
import torch


def reseed(seed: int, fold: int | str, *epoch: int) -> None:
    """Seed all random numbers for the initial weights of a fold, or for one of its epochs, counted from 0."""
    number = 1 + fold if isinstance(fold, int) else 0  # nnU-Net has a fold `all`, too
    for function in (random.seed, np.random.seed, torch.manual_seed):
        function(int(np.random.SeedSequence((seed, number, *epoch)).generate_state(1)[0]))
