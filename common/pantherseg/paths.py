"""Where recipes and demo weights lie: in the checkout (or image) that this package was installed from."""

from __future__ import annotations

from pathlib import Path

from pantherseg.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]
DEMO_WEIGHTS = ROOT / "weights" / "demo"
OWN_WEIGHTS = ROOT / "weights" / "own"
ZOO = ROOT / "weights" / "zoo.toml"


def task_recipe(task: int) -> Path:
    """Return the recipe of Task 1 or 2. Raises RecipeError where the package was installed without its checkout."""
    path = ROOT / f"Task{task}" / "recipe.toml"
    if not path.is_file():
        raise RecipeError(
            path, expected="the recipe in the checkout", found="no such file", hint="name one with --recipe"
        )
    return path
