"""Recipes as shipped load; every mistake in one is a line that names file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pantherseg.errors import RecipeError
from pantherseg.paths import task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.training.training_recipe import load_training_recipe

ROOT = Path(__file__).parents[1]
TRAINING_RECIPES = sorted(ROOT.glob("Task*/training/*.toml"))
MINIMAL = """
schema = 1
name = "mine"
[sockets]
input = "in"
output = "out"
[[members]]
model = "m"
"""


def reason(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected ")
    assert len(text.splitlines()) == 1
    return text


def test_task_1_searches_the_whole_volume() -> None:
    recipe = load_recipe(task_recipe(1))
    assert (recipe.name, recipe.sockets.input) == ("task1", "abdominal-t1-mri")
    assert recipe.sockets.output == "pancreatic-tumor-segmentation"
    assert recipe.localizer is None
    assert [member.model for member in recipe.members] == ["task1"]
    assert recipe.postprocess.rescue


def test_task_2_looks_around_the_pancreas() -> None:
    recipe = load_recipe(task_recipe(2))
    assert (recipe.name, recipe.sockets.input) == ("task2", "abdominal-t2-mri")
    assert recipe.sockets.output == "pancreatic-tumor-segmentation"
    assert recipe.localizer is not None
    assert (recipe.localizer.model, recipe.localizer.label, recipe.localizer.margin_mm) == ("localizer", 7, 30.0)
    assert [member.model for member in recipe.members] == ["task2"]
    assert recipe.postprocess.rescue


def test_no_recipe_for_another_task() -> None:
    with pytest.raises(RecipeError, match=r"Task3.*--recipe"):
        task_recipe(3)


def test_training_recipes_are_found() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in TRAINING_RECIPES} >= {
        "Task1/training/demo.toml",
        "Task2/training/demo.toml",
        "Task2/training/localizer_demo.toml",
    }


@pytest.mark.parametrize("path", TRAINING_RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_training_recipes_load(path: Path) -> None:
    recipe = load_training_recipe(path)
    assert recipe.schema == 1
    assert min(recipe.plan.spacing) > 0
    assert 1 <= recipe.dataset_id <= 999


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path)
    member = recipe.members[0]
    assert (member.checkpoint, member.folds, member.step, member.mirroring) == (
        None,
        "all",
        0.5,
        False,
    )
    assert (recipe.fusion, recipe.postprocess.min_component_mm3) == ("mean_logits", 0.0)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "mine"', 'name = "mine"\ncolour = 1', "colour"),
        ('model = "m"', 'model = "m"\nfold = 1', r"fold.*\$\.members\[0\]"),
        ('name = "mine"', "", "name"),
        ('output = "out"', "", r"output.*\$\.sockets"),
        ('name = "mine"', "name = 3", r"\$\.name"),
        ('model = "m"', 'model = "m"\nfolds = "some"', r"\$\.members\[0\]\.folds"),
        ('model = "m"', 'model = "m"\nfolds = [1, 2, 1]', r"folds \[1, 2, 1\] must be named once each"),
        ('model = "m"', 'model = "m"\nfolds = [0.5]', r"\$\.members\[0\]\.folds"),
        ('model = "m"', 'model = "m"\nstep = "half"', r"\$\.members\[0\]\.step"),
        ("schema = 1", "schema = 2", r"\$\.schema"),
        ('name = "mine"', 'name = "mine"\nfusion = "vote"', r"\$\.fusion"),
        ('[[members]]\nmodel = "m"', "[postprocess]\nrescue = true", "members"),
        ('[[members]]\nmodel = "m"', '[members]\nmodel = "m"', r"\$\.members"),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "r.toml"
    assert old in MINIMAL
    path.write_text(MINIMAL.replace(old, new))
    assert re.search(rf"a valid Recipe, found .*{named}", reason(path))


def test_no_members(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("members = []" + MINIMAL.replace('[[members]]\nmodel = "m"', ""))
    assert "at least one entry in members, found none" in reason(path)


@pytest.mark.parametrize("content", [b"schema = ", b"\xff\xfe", b"a = 1\na = 2", b"{}"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    assert "expected valid TOML" in reason(path)


def test_no_file_or_a_folder(tmp_path: Path) -> None:
    assert "found No such file or directory" in reason(tmp_path / "missing.toml")
    assert "found Is a directory" in reason(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        ("step = 0.5", "step = 0"),
        ("step = 0.5", "step = 2.0"),
        ("margin_mm = 30.0", "margin_mm = -1.0"),
        ("margin_mm = 30.0", "margin_mm = inf"),
        ("spacing = [6.0, 3.0, 3.0]", "spacing = [0, 3.0, 3.0]"),
        ('folds = "all"', "folds = []"),
        ('folds = "all"', 'folds = "all"\ncheckpoint = "../fold_1/checkpoint_final.pth"'),
        ("rescue = true", "max_components = 0"),
        ("rescue = true", "rescue_max_mm3 = nan"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    text = task_recipe(2).read_text()
    assert change[0] in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(RecipeError, match=str(path)):
        load_recipe(path)
