"""The published systems from end to end: their recipes, on small models in the layouts in which they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.published_layouts import BEST, FIVE, SYSTEMS, TASK1, TASK2, System
from click.testing import CliRunner

from conftest import dice, one_line_about, valid_report
from pantherseg.cli import main as pantherseg
from pantherseg.errors import ModelError, RecipeError
from pantherseg.io import read_labels, read_volume, write_volume
from pantherseg.labels import tumour_of
from pantherseg.localize import localize
from pantherseg.model_sources.nnunet import CHECKPOINT
from pantherseg.models.find import by_role, find_models
from pantherseg.paths import ROOT, find_recipe, shipped_recipes
from pantherseg.phantom import make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Grid, Volume

SEED = 9700
# Around the pancreas of a phantom: enough for the localizer and for its margin, and less time than the whole phantom.
AROUND_MM = 60.0
PUBLISHED = sorted(ROOT.glob("Task[12]/recipes/*.toml"))
Written = Callable[[System], Path]
by_system = pytest.mark.parametrize("system", SYSTEMS, ids=str)
with_localizer = pytest.mark.parametrize(
    "system", [system for system in SYSTEMS if system.recipe[-1] == "2" and "_a_" not in system.recipe], ids=str
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the folder of a system's models, written once for all systems that share it."""
    made: dict[Any, Path] = {}

    def write(system: System) -> Path:
        if system.write not in made:
            made[system.write] = tmp_path_factory.mktemp(system.recipe)
            system.write(made[system.write])
        return made[system.write]

    return write


@pytest.fixture
def models(written: Written, system: System, tmp_path: Path) -> Path:
    """A copy of a system's models that a test may damage, with links in place of unchanged files."""
    shutil.copytree(written(system), tmp_path / "models", copy_function=lambda a, b: Path(b).hardlink_to(a))
    return tmp_path / "models"


def predict(volume: Volume, system: System, models: Path, folder: Path) -> tuple[Volume, dict[str, Any]]:
    """Return the mask and the report of a volume. Whatever the case, there must be a mask on its grid."""
    scan = folder / "scan.mha"
    write_volume(volume, scan)
    arguments = ["predict", scan, folder / "masks", "--recipe", system.recipe, "--model", models, "--device", "cpu"]
    result = CliRunner().invoke(pantherseg, [*map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    mask = read_labels(folder / "masks" / "scan.mha")
    assert read_volume(scan).grid.difference(mask.grid) == ""
    assert mask.array.any()
    assert set(np.unique(mask.array)) <= {0, 1}
    return mask, valid_report(folder / "masks" / "scan.json")


def scan_of(task: int) -> tuple[Volume, Volume]:
    """Return a part of a phantom (float32), and its labels."""
    phantom = make_phantom(SEED, task=task, size="small")
    box = Box.around(phantom.labels.array > 0)
    assert box is not None
    box = box.expanded(AROUND_MM, phantom.image.grid)
    return Volume(phantom.image.array.astype(np.float32), phantom.image.grid).crop(box), phantom.labels.crop(box)


def codes(report: dict[str, Any]) -> set[str]:
    return {event["code"] for event in report["events"]}


def test_every_shipped_recipe_has_its_file_and_name() -> None:
    assert {system.recipe for system in SYSTEMS} == {path.stem for path in PUBLISHED}
    assert shipped_recipes().keys() == {"task1", "task2", *(path.stem for path in PUBLISHED)}
    for name, path in shipped_recipes().items():
        recipe = load_recipe(path)
        assert recipe.name == name
        assert f"abdominal-t{path.relative_to(ROOT).parts[0][-1]}-mri" == recipe.sockets.input


def test_a_recipe_is_found_by_its_path_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "Task2" / "recipes" / "system_c_task2.toml"
    assert find_recipe(Path("system_c_task2")) == shipped
    assert find_recipe(shipped) == shipped
    Path("task1").mkdir()  # a folder of models
    assert find_recipe(Path("task1")) == ROOT / "Task1" / "recipe.toml"
    Path("system_c_task2").write_text("a file of this name comes first")
    assert find_recipe(Path("system_c_task2")) == Path("system_c_task2")


@pytest.mark.parametrize(("name", "nearest"), [("sytem_a_task1", "system_a_task1"), ("x", "")])
def test_an_unknown_recipe_is_an_error_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(Path(name))
    text = one_line_about(name, caught.value)
    assert "expected a file or one of task1, task2, " in text
    assert text.endswith(f"the nearest name is {nearest}") == bool(nearest)


def empty_checkpoints(folder: Path, **folds: str) -> None:
    """Write a model folder with empty checkpoints, which are not read where models are only found."""
    folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text("{}")
    for fold, names in folds.items():
        (folder / fold).mkdir()
        for name in names.split():
            (folder / fold / name).touch()


@pytest.mark.parametrize(
    ("folds", "checkpoint"),
    [
        ({f"fold_{k}": CHECKPOINT for k in range(5)}, CHECKPOINT),  # as the container has them
        ({f"fold_{k}": BEST for k in range(6)}, BEST),  # as the README has them
        ({f"fold_{k}": f"{BEST} {CHECKPOINT}" for k in range(6)}, CHECKPOINT),
        ({**{f"fold_{k}": f"{BEST} {CHECKPOINT}" for k in range(5)}, "fold_5": BEST}, BEST),
    ],
)
def test_system_a_takes_every_fold_of_either_checkpoint(tmp_path: Path, folds: dict[str, str], checkpoint: str) -> None:
    empty_checkpoints(tmp_path / TASK1, **folds)
    empty_checkpoints(tmp_path / TASK2, fold_0=BEST, fold_1=f"{BEST} {CHECKPOINT}")
    (first,) = find_models(tmp_path, load_recipe(find_recipe(Path("system_a_task1")))).members
    assert first.path == tmp_path / TASK1
    assert first.folds == tuple(str(k) for k in range(len(folds)))
    assert first.checkpoint == checkpoint  # type: ignore[union-attr]
    (second,) = find_models(tmp_path, load_recipe(find_recipe(Path("system_a_task2")))).members
    assert (second.path, second.checkpoint) == (tmp_path / TASK2, BEST)  # type: ignore[union-attr]


def test_a_model_folder_itself_and_one_installed_by_role_are_found(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe(Path("system_a_task1")))
    empty_checkpoints(tmp_path / "a" / TASK1, fold_0=BEST)
    for root in (tmp_path / "a" / TASK1, tmp_path / "a" / "Dataset901_PANTHER", tmp_path / "a"):
        assert find_models(root, recipe).members[0].path == tmp_path / "a" / TASK1
    empty_checkpoints(tmp_path / "a" / "task1" / "mine", fold_0=BEST)
    assert find_models(tmp_path / "a", recipe).members[0].path == tmp_path / "a" / "task1" / "mine"


def test_a_localizer_that_is_a_member_too_is_packed_with_all_folds(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe(Path("task1_crop")))
    empty_checkpoints(tmp_path / "task1" / "mine", **{f"fold_{k}": CHECKPOINT for k in range(5)})
    models = find_models(tmp_path, recipe)
    assert models.localizer is not None
    assert models.localizer.folds == ("0",)
    assert {role: model.folds for role, model in by_role(models, recipe).items()} == {"task1": FIVE}


def test_two_folders_of_the_published_name_are_an_error(tmp_path: Path) -> None:
    for name in ("one", "other"):
        empty_checkpoints(tmp_path / name / TASK1, fold_0=BEST)
    with pytest.raises(ModelError, match="expected one bundle or nnU-Net model folder") as caught:
        find_models(tmp_path, load_recipe(find_recipe(Path("system_a_task1"))))
    assert all(f"{name}/{TASK1}" in one_line_about(tmp_path, caught.value) for name in ("one", "other"))


@pytest.mark.slow
@by_system
def test_a_system_runs_on_the_layout_of_its_weights(system: System, written: Written, tmp_path: Path) -> None:
    scan, labels = scan_of(system.task)
    mask, report = predict(scan, system, written(system), tmp_path)
    members = [model for model in report["models"] if model["role"] == "member"]
    assert tuple(fold for model in members for fold in model["folds"]) == system.folds
    assert {model["checkpoint"] for model in members} == {system.checkpoint}
    # The networks of B and D mark bright tissue, see bench.small_networks.
    is_demo = system.checkpoint.endswith(".pth")
    allowed = {"components_dropped", "orientation_assumed"}
    assert codes(report) <= (allowed if is_demo else allowed | {"empty_mask_rescued", "step_skipped"})
    recipe = load_recipe(find_recipe(Path(system.recipe)))
    assert (report["pancreas"] is not None) == (recipe.localizer is not None)
    searched = Box(tuple(report["box"]["start_zyx"]), tuple(report["box"]["stop_zyx"]))
    is_cropped = recipe.localizer is not None and recipe.localizer.crop
    assert (searched != Box.whole(scan.grid.shape)) == is_cropped
    # The demo models were trained without mirroring, and Task 1's on whole volumes.
    if is_demo and not members[0]["mirroring"] and system.recipe != "task1_crop":
        assert dice(mask.array == 1, tumour_of(labels.array)) > 0.5


@pytest.mark.slow
@pytest.mark.fault("localizer", "the recipe {system}, and a volume without a pancreas", "a mask of the whole volume")
@with_localizer
def test_a_volume_without_a_pancreas_gets_a_mask(system: System, written: Written, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(100, 20, (9, 21, 25)).astype(np.float32)
    volume = Volume(noise, Grid(noise.shape, (5.0, 3.0, 3.0)))
    _, report = predict(volume, system, written(system), tmp_path)
    assert {"no_pancreas_found", "empty_mask_rescued"} <= codes(report) or "implausible_box" in codes(report)


@pytest.mark.slow
@pytest.mark.fault("models", "the recipe {system}, and a fold is missing", "the mask of the other folds, and an event")
@pytest.mark.parametrize(
    "system", [one for one in SYSTEMS if one.recipe in ("system_a_task1", "system_c_task2", "rank2_task2")], ids=str
)
def test_a_missing_fold_leaves_the_others(system: System, models: Path, tmp_path: Path) -> None:
    for checkpoint in models.glob("**/fold_1/*.pth"):
        checkpoint.unlink()
    scan, _ = scan_of(system.task)
    _, report = predict(scan, system, models, tmp_path)
    used = [fold for model in report["models"] if model["role"] == "member" for fold in model["folds"]]
    assert used == [fold for fold in system.folds if fold != "1"]
    assert codes(report) & {"fold_left_out", "member_left_out"}


@pytest.mark.slow
@pytest.mark.fault(
    "localizer",
    "the recipe {system}, and a pancreas that ends with the volume, of odd sizes",
    "a box to the last voxel",
)
@pytest.mark.parametrize("system", [one for one in SYSTEMS if one.recipe == "system_c_task2"], ids=str)
def test_the_box_goes_to_the_last_voxel_of_the_pancreas(system: System, written: Written, tmp_path: Path) -> None:
    phantom = make_phantom(SEED, task=2, size="small")
    box = Box.around(phantom.labels.array > 0)
    assert box is not None
    _, height, width = phantom.image.grid.shape
    cut = Box((0, 0, 0), ((box.start[0] + 2 * box.stop[0]) // 3 | 1, height - 1, width - 1))
    volume = Volume(phantom.image.array.astype(np.float32), phantom.image.grid).crop(cut)
    _, report = predict(volume, system, written(system), tmp_path)
    session = Session(load_recipe(find_recipe(Path(system.recipe))), written(system), device="cpu")
    ensemble = session.load()
    assert ensemble.localizer is not None
    assert session.recipe.localizer is not None
    located = localize(volume, ensemble.localizer, session.recipe.localizer)
    assert located.pancreas is not None
    inner = Box.around(located.pancreas_on(volume.grid))
    assert inner is not None
    found = located.pancreas.box
    assert found.stop[0] == volume.grid.shape[0]
    assert all(low <= start for low, start in zip(found.start, inner.start, strict=True))
    assert all(high >= stop for high, stop in zip(found.stop, inner.stop, strict=True))
    assert report["box"]["stop_zyx"][0] == volume.grid.shape[0]


@pytest.mark.slow
@pytest.mark.parametrize("system", [one for one in SYSTEMS if one.recipe == "system_e_task1"], ids=str)
def test_the_baseline_keeps_only_what_lies_in_the_pancreas(system: System, written: Written, tmp_path: Path) -> None:
    scan, _ = scan_of(1)
    filtered, report = predict(scan, system, written(system), tmp_path)
    unfiltered = tmp_path / "unfiltered.toml"
    text = find_recipe(Path(system.recipe)).read_text()
    # Without the step `overlap` nothing uses the localizer.
    for table in ("[localizer]", '[[postprocess]]\nkind = "components"', '[[postprocess]]\nkind = "overlap"'):
        start = text.index(table)
        text = text[:start] + text[text.index("\n\n", start) + 2 :]
    unfiltered.write_text(text)
    other = tmp_path / "other"
    other.mkdir()
    plain, _ = predict(scan, System(str(unfiltered), 1, (), "", system.write), written(system), other)
    assert not (filtered.array & ~plain.array).any()
    assert report["box"] == {"start_zyx": [0, 0, 0], "stop_zyx": list(scan.grid.shape)}
    assert "step_skipped" not in codes(report)
