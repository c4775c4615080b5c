"""The curves of a training for TensorBoard, where that is installed. nnU-Net draws the same in progress.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class EpochCurves:
    """Writes the values of each epoch to <folder>/tensorboard, or nothing if TensorBoard is not installed.

    first_epoch: the first epoch that is added; a resumed training replaces what the one before wrote from there on.
    """

    def __init__(self, folder: Path, *, first_epoch: int = 0) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=first_epoch)

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch, counted from 0, by their names."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
