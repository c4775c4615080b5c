"""`pantherseg select`: choose an ensemble by the challenge's metrics, and write its recipe."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from pantherseg import selection
from pantherseg.cli.options import PATH, TASK, check_outputs, chosen_recipe
from pantherseg.errors import first_few
from pantherseg.files import write_text
from pantherseg.recipe import load_recipe

logger = logging.getLogger(__name__)


def _members(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return the model and the folder of each MEMBER=FOLDER. Raises BadParameter."""
    members = []
    for text in texts:
        model, _equals, folder = text.partition("=")
        if not model or not folder or "/" in model or model in (".", "..") or not model.isprintable():
            raise click.BadParameter(f"expected the name of a model and a folder, found '{text}'", param=param)
        members.append((model, Path(folder)))
    return members


@click.command()
@click.argument("members", metavar="MEMBER=FOLDER...", nargs=-1, required=True, callback=_members)
@click.option("--references", metavar="FOLDER", type=PATH, required=True, help="Reference masks (1 = tumour).")
@click.option("--output", metavar="FILE", type=PATH, required=True, help="Write the recipe to this file.")
@click.option("--task", type=TASK, help="Take all else from the recipe of this task.")
@click.option("--recipe", type=PATH, help="Take all else from this recipe.")
@click.option("--json", "json_file", type=PATH, help="Write all figures to this file.")
@click.option(
    "--folds", type=click.IntRange(min=2), default=selection.FOLDS, show_default=True, help="Number of outer folds."
)
@click.option("--seed", type=int, default=selection.SEED, show_default=True, help="Divides the patients into folds.")
def select(
    members: list[tuple[str, Path]],
    references: Path,
    output: Path,
    task: str | None,
    recipe: Path | None,
    json_file: Path | None,
    folds: int,
    seed: int,
) -> None:
    """Choose an ensemble by the challenge's metrics.

    MEMBER is the name of a model's folder, as recipes have it, FOLDER its probabilities of the tumour (<case>.npz): a
    training's probabilities/<stage>, or what `pantherseg predict --save-probabilities` wrote. The same model may be
    named several times, with other settings. Chooses members, weights, fusion, threshold and components by the best
    mean rank over the five metrics, and says how good the choice is on cases that it did not see.
    """
    path = chosen_recipe(task, recipe)
    if seed < 0:
        raise click.UsageError("--seed: expected a number of at least 0")
    check_outputs(output, json_file, inputs=(path, references, *(folder for _, folder in members)))
    outcome = selection.select_members(members, references, load_recipe(path), name=output.stem, folds=folds, seed=seed)
    click.echo(selection.outcome_table(outcome))
    selection.write_recipe(outcome.recipe, output, selection.recipe_remarks(outcome))
    if json_file is not None:
        write_text(json_file, json.dumps(selection.outcome_dict(outcome), indent=2) + "\n")
    if outcome.failed:
        every = len(outcome.cases) + len(outcome.failed)
        names = first_few(outcome.failed)
        logger.error("error: %d of %d cases could not be read and were left out: %s", len(outcome.failed), every, names)
        raise SystemExit(1)
