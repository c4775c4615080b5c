"""`pantherseg train`: one training recipe, one model folder."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path

from pantherseg.inference.backends import choose_backend
from pantherseg.training.run import train
from pantherseg.training.training_recipe import load_training_recipe

logger = logging.getLogger(__name__)


def train_model(recipe: Path, data: Path, output: Path, *, start: Path | None, work: Path | None, device: str) -> None:
    """Train and log the mean cross-validated Dice of each label. Raises PantherSegError."""
    settings = load_training_recipe(recipe)
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-train-")))
        record = train(settings, data, output, work=folder, start=start, device=choose_backend(device).device)
    figures = ", ".join(f"{name} {dice:.3f}" for name, dice in record["dice"]["mean"].items())
    logger.info("%s: cross-validated Dice %s, %d s", output, figures, record["seconds"])
