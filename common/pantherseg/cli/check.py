"""`pantherseg check`: check files that are exchanged with the platform, and recipes."""

from __future__ import annotations

from pathlib import Path

import click

from pantherseg.cli.options import AS_JSON, MEMBERS, PATH, RECIPE, TASK, chosen_recipe, names_in, print_verdicts
from pantherseg.grand_challenge.check import check_job, check_output
from pantherseg.grand_challenge.check_image import check_image
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.paths import find_recipe, task_recipe
from pantherseg.recipe import Sockets, load_recipe, recipe_verdicts

REQUIRED_TASK = click.option("--task", type=TASK, required=True, help="Use the recipe of this task.")


@click.group()
def check() -> None:
    """Check files for the platform, and recipes.

    Prints one line for each rule; the exit code is 1 if any is broken.
    """


@check.command()
@click.argument("folder", type=PATH)
@REQUIRED_TASK
@AS_JSON
def job(folder: Path, task: str, as_json: bool) -> None:
    """Check a job folder.

    FOLDER is laid out as the platform's /input and must contain the volume of the task.
    """
    print_verdicts(check_job(folder, _sockets(task)), as_json)


@check.command()
@click.argument("folder", type=PATH)
@REQUIRED_TASK
@click.option("--job", type=PATH, help="Job folder to compare with: the mask must have the grid of its volume.")
@AS_JSON
def output(folder: Path, task: str, job: Path | None, as_json: bool) -> None:
    """Check an output folder.

    FOLDER is laid out as the platform's /output.
    """
    print_verdicts(check_output(folder, _sockets(task), job=job), as_json)


@check.command()
@click.argument("image", metavar="PATH_OR_TAG")
@AS_JSON
def image(image: str, as_json: bool) -> None:
    """Check a container image.

    PATH_OR_TAG is an archive written by `docker save`, or the tag of a local image.
    """
    print_verdicts(check_image(image), as_json)


@check.command()
@click.argument("path", type=PATH)
@click.option("--task", type=TASK, help="Use the recipe of this task.")
@RECIPE
@AS_JSON
def model(path: Path, task: str | None, recipe: Path | None, as_json: bool) -> None:
    """Check a model archive or a folder of models.

    PATH is a .tar.gz file, or the folder before it is packed.
    """
    print_verdicts(check_model(path, load_recipe(chosen_recipe(task, recipe))), as_json)


@check.command()
@click.argument("file", type=PATH)
@MEMBERS
@AS_JSON
def recipe(file: Path, members: str | None, as_json: bool) -> None:
    """Check a recipe, as far as this works without its models.

    FILE is a .toml file, or the name of a shipped recipe. What depends on the models is checked by `pantherseg check
    model`, and when they are loaded.
    """
    print_verdicts(recipe_verdicts(find_recipe(file), names_in(members)), as_json)


def _sockets(task: str) -> Sockets:
    return load_recipe(task_recipe(int(task))).sockets
