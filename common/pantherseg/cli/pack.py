"""`pantherseg pack`: turn model folders into bundles."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pantherseg.cli.options import PATH, TASK, chosen_recipe
from pantherseg.errors import ModelError
from pantherseg.labels import TUMOUR, tumour_label_warning
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import label_warning, open_model
from pantherseg.orientation import DEFAULT_ORIENTATION, ORIENTATIONS, Orientation
from pantherseg.packing.pack import pack as pack_model
from pantherseg.packing.pack import pack_models
from pantherseg.recipe import load_recipe

logger = logging.getLogger(__name__)


@click.command()
@click.argument("source", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", metavar="NAME", help="Checkpoint to pack  [default: the final one].")
@click.option(
    "--orientation",
    type=click.Choice(ORIENTATIONS, case_sensitive=False),
    metavar="CODE",
    help="Orientation of the training volumes, such as LPS or RAS, where the model folder does not say it.",
)
@click.option("--task", type=TASK, help="Pack every model that the recipe of this task names.")
@click.option("--recipe", type=PATH, help="Pack every model that this recipe names.")
def pack(
    source: Path,
    bundle: Path,
    checkpoint: str | None,
    orientation: Orientation | None,
    task: str | None,
    recipe: Path | None,
) -> None:
    """Pack a model folder into a bundle.

    SOURCE is a model folder, of nnU-Net or of `pantherseg train`, and BUNDLE a new folder, of half its size, which runs
    without torch. With a recipe, SOURCE is a folder of models, and each model that the recipe names is packed into
    BUNDLE/<role>.
    """
    if task is None and recipe is None:
        model = open_model(source, checkpoint=checkpoint)
        if isinstance(model, Bundle):
            raise ModelError(source, expected="a model folder", found="a bundle, which is packed already")
        packed = pack_model(model, bundle, orientation=orientation)
        click.echo(summary(packed))
        if warning := tumour_label_warning(packed.manifest.labels, TUMOUR):
            logger.warning("%s: %s", packed.path, warning)
        return
    path = chosen_recipe(task, recipe)
    if checkpoint or orientation:
        key = "checkpoint" if checkpoint else "orientation"
        raise click.UsageError(f"--{key} cannot be combined with a recipe, where the key {key} says it")
    settings = load_recipe(path)
    bundles = pack_models(source, bundle, settings)
    for packed in bundles:
        click.echo(summary(packed))
        if warning := label_warning(packed.path.name, packed.manifest.labels, settings):
            logger.warning("%s: %s", packed.path, warning)
    localizer = settings.localizer
    if localizer is not None and all(packed.path.name != localizer.model for packed in bundles):
        logger.warning("%s has no model '%s': the members will search the whole volume", source, localizer.model)


def summary(bundle: Bundle) -> str:
    """Return one line about a bundle: its folds, checkpoint, labels, orientation and size."""
    size = sum(path.stat().st_size for path in bundle.path.iterdir())
    folds = f"folds {' '.join(bundle.folds)} of {bundle.manifest.checkpoint}"
    orientation = bundle.manifest.orientation or f"unknown orientation ({DEFAULT_ORIENTATION} will be assumed)"
    return f"{bundle.path}: {folds}, {bundle.describe_labels()}, {orientation}, {size / 1e6:.1f} MB"
