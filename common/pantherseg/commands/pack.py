"""`pantherseg pack`: model folders into bundles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pantherseg.errors import ModelError
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import open_model
from pantherseg.packing.pack import pack, pack_models
from pantherseg.paths import task_recipe
from pantherseg.recipe import load_recipe

logger = logging.getLogger(__name__)


def pack_source(
    source: Path, target: Path, *, checkpoint: str | None, task: str | None, recipe: Path | None
) -> Iterator[str]:
    """Pack one model, or all models of a recipe, and yield a line for each bundle. Raises PantherSegError."""
    if task or recipe:
        settings = load_recipe(recipe or task_recipe(int(task or 0)))
        bundles = pack_models(source, target, settings)
        yield from map(describe, bundles)
        wanted = settings.localizer
        if wanted is not None and all(bundle.path.name != wanted.model for bundle in bundles):
            logger.warning("no model '%s' in %s: the members will search the whole volume", wanted.model, source)
        return
    model = open_model(source, checkpoint=checkpoint)
    if isinstance(model, Bundle):
        raise ModelError(source, expected="a model folder", found="a bundle, which is packed already")
    yield describe(pack(model, target))


def describe(bundle: Bundle) -> str:
    """Return a line with the path, folds, labels and size of a bundle."""
    size = sum(path.stat().st_size for path in bundle.path.iterdir())
    folds = f"folds {' '.join(bundle.folds)} of {bundle.manifest.checkpoint}"
    return f"{bundle.path}: {folds}, {bundle.describe_labels()}, {size / 1e6:.1f} MB"
