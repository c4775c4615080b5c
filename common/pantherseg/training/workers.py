"""How many processes augment the patches of a training."""

from __future__ import annotations

import os

FEW_CORES = 8
WORKERS = "nnUNet_n_proc_DA"


def workers_for_augmentation() -> str:
    """Return the number of worker processes that augment: that in nnU-Net's environment variable, or our choice."""
    # On few cores, worker processes would only compete with the network.
    return os.environ.get(WORKERS, "0" if (os.cpu_count() or 1) < FEW_CORES else "6")
