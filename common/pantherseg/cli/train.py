"""`pantherseg train`: train a model with a training recipe."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path

import click

from pantherseg.cli.options import DEVICE, PATH

logger = logging.getLogger(__name__)


@click.command()
@click.argument("recipe", type=PATH)
@click.argument("data", type=PATH)
@click.argument("output", type=PATH)
@click.option("--start", type=PATH, help="Model folder to fine-tune: each fold starts from its counterpart.")
@click.option("--work", type=PATH, help="Folder for nnU-Net's working files  [default: a temporary folder].")
@DEVICE
def train(recipe: Path, data: Path, output: Path, start: Path | None, work: Path | None, device: str) -> None:
    """Train a model with a training recipe.

    RECIPE is the training recipe, and OUTPUT the new model folder. DATA is a data set laid out as PANTHER's:
    imagesTr/<case>_0000.mha and labelsTr/<case>.mha.
    """
    # These import torch and nnU-Net, which the help can do without.
    from pantherseg.inference.backends import choose_backend
    from pantherseg.training.run import train as train_model
    from pantherseg.training.training_recipe import load_training_recipe

    settings = load_training_recipe(recipe)
    with contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-train-")))
        record = train_model(settings, data, output, work=folder, start=start, device=choose_backend(device).device)
    dice = ", ".join(f"{name} {value:.3f}" for name, value in record["dice"]["mean"].items())
    logger.info("%s: cross-validated Dice %s, %d s", output, dice, record["seconds"])
