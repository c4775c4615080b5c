"""Where the recipes and weights are: in the installed package, or in the checkout or image that it runs from."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from pantherseg.errors import PantherSegError, RecipeError

PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """Return the folder that holds Task1, Task2 and weights: the data of an installed wheel, else the checkout."""
    data = PACKAGE / "data"
    return data if (data / "weights").is_dir() else PACKAGE.parents[1]


ROOT = data_root()
DEMO_WEIGHTS = ROOT / "weights" / "demo"
ZOO = ROOT / "weights" / "zoo.toml"


def own_weights() -> Path:
    """Return the folder for fetched weights: weights/own in a checkout, else below the user's data folder.

    The latter is $XDG_DATA_HOME/pantherseg/weights, by default ~/.local/share/pantherseg/weights. Raises
    PantherSegError if the user has no home folder.
    """
    if not ROOT.is_relative_to(PACKAGE):
        return ROOT / "weights" / "own"
    data_home = os.environ.get("XDG_DATA_HOME", "")
    if Path(data_home).is_absolute():  # the specification ignores relative paths
        return Path(data_home, "pantherseg", "weights")
    try:
        return Path.home() / ".local" / "share" / "pantherseg" / "weights"
    except RuntimeError as error:
        raise PantherSegError(
            "weights", "this user has no home folder to install weights in", hint="name a folder with --to"
        ) from error


def task_recipe(task: int) -> Path:
    """Return the recipe of Task 1 or 2. Raises RecipeError for another task."""
    path = ROOT / f"Task{task}" / "recipe.toml"
    if not path.is_file():
        raise RecipeError(path, "there is no recipe for this task", hint="name one with --recipe")
    return path


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the project by name: those of the tasks, and of published systems."""
    found = {path.parent.name.lower(): path for path in sorted(ROOT.glob("Task[12]/recipe.toml"))}
    return found | {path.stem: path for path in sorted(ROOT.glob("Task[12]/recipes/*.toml"))}


def find_recipe(recipe: Path) -> Path:
    """Return the file of a recipe, given as a path or as the name of a shipped one. Raises RecipeError."""
    if recipe.is_file():
        return recipe
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    if recipe.suffix or len(recipe.parts) > 1:
        return recipe  # a path: reading it says what is wrong
    nearest = get_close_matches(str(recipe), shipped, n=1)
    hint = f"the nearest name is {nearest[0]}" if nearest else ""
    raise RecipeError(recipe, expected=f"a file or one of {', '.join(shipped)}", found="neither", hint=hint)


def training_file(file: Path) -> Path:
    """Return a training file; where there is none, the project's own, such as Task1/training/system_c.toml."""
    own = ROOT / file
    return own if own.is_file() and not file.exists() else file
