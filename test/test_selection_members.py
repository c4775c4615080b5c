"""`pantherseg select`: members that saw a case, differing cases, damaged files and other inputs that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from conftest import one_line_about
from pantherseg import __version__
from pantherseg.cli import main
from pantherseg.errors import InputError, PantherSegError, RecipeError
from pantherseg.io import write_volume
from pantherseg.io.probabilities import write_probability
from pantherseg.paths import task_recipe
from pantherseg.recipe import Member, load_recipe
from pantherseg.results import SCHEMA
from pantherseg.selection import Outcome, select_members
from pantherseg.selection.members import MemberFolder, common_cases, find_references, open_members
from pantherseg.volume import Grid, Volume
from selections import GRID, MEMBERS, SHAPE, name_of, write_members, write_references

CASES = 6
TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))
PAIR = {name: MEMBERS[name] for name in ("a", "b")}
Folders = list[tuple[str, Path]]


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return write_references(tmp_path / "references", CASES)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return write_members(tmp_path, PAIR, CASES)


def opened(folders: Folders, references: Path, base: Any = TASK1) -> list[MemberFolder]:
    return open_members(folders, find_references(references), base)


def chosen(folders: Folders, references: Path) -> Outcome:
    return select_members(folders, references, TASK1, name="mine", folds=2)


def refusal(folders: Folders, references: Path, where: object, base: Any = TASK1) -> str:
    with pytest.raises(PantherSegError) as caught:
        common_cases(opened(folders, references, base), find_references(references))
    return one_line_about(where, caught.value)


def run(folders: Folders, references: Path, output: Path, *more: object) -> Result:
    members = [f"{model}={folder}" for model, folder in folders]
    words = ["select", *members, "--references", references, "--output", output, "--task", "1", "--folds", "2", *more]
    return CliRunner().invoke(main, [*map(str, words)])


def report(folder: Path, case: int, **changes: Any) -> None:
    """Write the report of a case beside its probabilities, as `pantherseg predict` does."""
    model = {
        "role": "member",
        "path": str(folder.parent / "models" / "a"),
        "folds": ["0", "2"],
        "checkpoint": "checkpoint_best.pth",
        "orientation": "LPS",
        "step": 0.25,
        "mirroring": True,
        "sha256": {},
    }
    content = {
        "schema": SCHEMA,
        "input": f"{name_of(case)}.mha",
        "mask": f"{name_of(case)}.mha",
        "pantherseg": __version__,
        "not_for_clinical_use": True,
        "recipe": "task1",
        "device": "cpu",
        "precision": "float32",
        "tumour_ml": 1.0,
        "confidence": {"pairwise_dice": 0.5, "mean_entropy": 0.5, "fold_volumes_ml": [1, 2], "expected_dice": None},
        "peak_memory_mb": 300,
        "probability": f"{name_of(case)}.npz",
        "models": [model | changes.pop("model", {})],
        "box": {"start_zyx": [0, 0, 0], "stop_zyx": list(SHAPE)},
        "pancreas": None,
        "seconds": {"members": 1.0 + case, "mask": 0.5},
        "events": [],
    }
    (folder / f"{name_of(case)}.json").write_text(json.dumps(content | changes))


def training(bundle: Path, validation: list[list[int]], **changes: Any) -> None:
    """Write the record of a training with folds that were validated on these cases."""
    names = [[name_of(case) for case in fold] for fold in validation]
    record = {
        "dice": {"cases": {name: {} for fold in names for name in fold}},
        "splits": {"validation": names},
        "data": {"pseudo_labelled": 0},
        "settings": {"data": ["t1"], "checkpoint": "checkpoint_best.pth", "crop": None},
        "optimistic_because": [],
    }
    bundle.mkdir(parents=True)
    (bundle / "training.json").write_text(json.dumps(record | changes))


# What is read of a good set of members.


def test_the_command_writes_a_recipe_and_all_figures(
    folders: Folders, references: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, figures = tmp_path / "out" / "mine.toml", tmp_path / "out" / "figures.json"
    result = run(folders, references, output, "--json", figures)
    assert result.exit_code == 0, result.output
    recipe = load_recipe(output)
    assert (recipe.name, recipe.sockets, recipe.allow_bfloat16) == ("mine", TASK1.sockets, TASK1.allow_bfloat16)
    assert [(member.model, member.weight) for member in recipe.members] == [("a", 1.0), ("b", 1.0)]
    assert "Not for clinical use" in output.read_text()
    found = json.loads(figures.read_text())
    assert found["unseen"]["procedures"]["select"]["dice"] == 1.0
    assert found["unseen"]["select_minus"]["best single member"]["dice"]["low"] > 0
    assert found["members"]["a"]["seconds"] is None
    assert found["failed"] == {}
    assert found["not_for_clinical_use"] is True
    for text in ("Chosen on all cases: a + b", "best by Dice alone", "mean rank", "Official convention"):
        assert text in result.stdout
    assert (
        "a: nothing is recorded about the model: it may have been trained on these cases" in result.stderr + caplog.text
    )


def test_the_same_members_give_the_same_recipe(folders: Folders, references: Path, tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        output = tmp_path / str(number) / "mine.toml"
        assert run(folders, references, output).exit_code == 0
        texts.append(output.read_text())
    assert texts[0] == texts[1]


def test_settings_and_time_are_those_of_the_reports(folders: Folders, references: Path) -> None:
    for case in range(CASES):
        report(folders[0][1], case)
    first, second = opened(folders, references)
    expected = Member(
        model="a", folds=[0, 2], checkpoint="checkpoint_best.pth", step=0.25, mirroring=True, orientation="LPS"
    )
    assert first.settings == expected
    assert first.seconds_of([name_of(0), name_of(1)]) == 1.5
    assert second.settings == Member(model="b")
    assert second.seconds_of([name_of(0)]) is None


def test_settings_that_are_not_recorded_are_those_of_the_base(folders: Folders, references: Path) -> None:
    base = load_recipe(task_recipe(1))
    base.members[:] = [Member(model="b", step=0.3)]
    assert [member.settings for member in opened(folders, references, base)] == [Member(model="a"), base.members[0]]


def test_one_model_may_be_several_members(folders: Folders, references: Path) -> None:
    same = [("a", folder) for _, folder in folders]
    for fold, (_, folder) in enumerate(same):
        for case in range(CASES):
            report(folder, case, model={"folds": [str(fold)]})
    assert [member.label for member in opened(same, references)] == ["a (a)", "a (b)"]
    recipe = chosen(same, references).recipe
    assert [(member.model, member.folds) for member in recipe.members] == [("a", [0]), ("a", [1])]


def test_the_time_of_an_ensemble_stands_beside_its_gain(folders: Folders, references: Path, tmp_path: Path) -> None:
    for _, folder in folders:
        for case in range(CASES):
            report(folder, case)
    assert run(folders, references, tmp_path / "mine.toml", "--json", tmp_path / "f.json").exit_code == 0
    sizes = json.loads((tmp_path / "f.json").read_text())["sizes"]
    assert [size["seconds"] for size in sizes[:2]] == [3.5, 7.0], "1 to 6 s for the cases, 3.5 s in the mean"
    assert sizes[0]["unseen"]["dice"] < sizes[1]["unseen"]["dice"] == 1.0
    assert "Its networks take 7.0 s a case" in (tmp_path / "mine.toml").read_text()


def test_predictions_named_after_their_images_are_found(tmp_path: Path, references: Path, folders: Folders) -> None:
    for path in list(folders[0][1].iterdir()):
        path.rename(path.with_name(f"{path.stem}_0000.npz"))
    assert len(common_cases(opened(folders, references), find_references(references))) == CASES


# Members that saw a case.


def test_a_training_s_own_probabilities_are_taken(tmp_path: Path, references: Path) -> None:
    folders = [("a", folder) for _, folder in write_members(tmp_path / "probabilities", PAIR, CASES)]
    training(tmp_path / "bundles" / "a", [[0, 1, 2], [3, 4, 5]], optimistic_because=["pseudo-labels"])
    first, _ = opened(folders, references)
    assert first.settings == Member(model="a", checkpoint="checkpoint_best.pth")
    assert "the figures are optimistic: pseudo-labels" in first.record.remarks


@pytest.mark.fault(
    "selection",
    "a training's folder has probabilities of cases that none of its folds was validated on",
    "an error that names the folder and the cases",
)
def test_refuses_cases_that_no_fold_was_validated_on(tmp_path: Path, references: Path) -> None:
    folders = write_members(tmp_path / "probabilities", PAIR, CASES)
    training(tmp_path / "bundles" / "a", [[0, 1, 2]])
    assert "others, too: 20003, 20004, 20005" in refusal(folders, references, folders[0][1])


@pytest.mark.fault(
    "selection", "a member was trained on some of the cases", "an error that names the folder, the folds and the cases"
)
def test_refuses_a_member_that_was_trained_on_a_case(folders: Folders, references: Path) -> None:
    folder = folders[0][1]
    training(folder.parent / "models" / "a", [[0, 90], [91], [1, 2]])
    for case in range(CASES):
        report(folder, case)
    # Folds 0 and 2 predicted; each was trained on what only the other one was validated on.
    text = refusal(folders, references, folder)
    assert "3 that folds 0 2 of" in text
    assert "were trained on: 20000, 20001, 20002" in text
    assert "probabilities/<stage>" in text


@pytest.mark.fault(
    "selection",
    "predictions of a training's own cases, by all folds, lie where its out-of-fold probabilities would",
    "an error: the reports beside them say which folds made them",
)
def test_predictions_in_a_training_s_folder_are_not_taken_for_its_own(tmp_path: Path, references: Path) -> None:
    folders = write_members(tmp_path / "probabilities", PAIR, CASES)
    training(tmp_path / "bundles" / "a", [[0, 1, 2], [3, 4, 5]])
    for case in range(CASES):
        report(folders[0][1], case, model={"path": str(tmp_path / "bundles" / "a"), "folds": ["0", "1"]})
    assert "6 that folds 0 1 of" in refusal(folders, references, folders[0][1])


def test_another_scan_of_a_patient_in_the_training_was_seen(tmp_path: Path) -> None:
    from pantherseg.selection.records import recorded

    folder = tmp_path / "a"
    write_members(tmp_path, {"a": MEMBERS["a"]}, 1)
    report(folder, 0)
    bundle = tmp_path / "models" / "a"
    training(bundle, [[90], [91], [92]])
    record = json.loads((bundle / "training.json").read_text())
    record["splits"]["validation"][1].append("20000_0001")
    (bundle / "training.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"1 that folds 0 2 of .* were trained on: 20000_0002"):
        recorded("a", folder, {"20000_0002": folder / f"{name_of(0)}.npz"})


def test_cases_that_a_fold_was_not_trained_on_are_taken(folders: Folders, references: Path) -> None:
    folder = folders[0][1]
    training(folder.parent / "models" / "a", [[0, 1, 2, 3, 4, 5], [90], [91]], data={"pseudo_labelled": 4})
    for case in range(CASES):
        report(folder, case, model={"folds": ["0"]})
    first, _ = opened(folders, references)
    assert first.record.remarks == (
        "the model was also trained on 4 cases with labels by a model, whose names are not recorded",
    )


def test_says_where_nothing_is_recorded_about_a_training(folders: Folders, references: Path) -> None:
    report(folders[0][1], 0)
    first, second = opened(folders, references)
    assert any(
        "has no training.json: the model may have been trained on these cases" in r for r in first.record.remarks
    )
    assert any("nothing is recorded about 5 cases, which have no report" in r for r in first.record.remarks)
    assert second.record.remarks == ("nothing is recorded about the model: it may have been trained on these cases",)


def test_says_where_less_was_computed_than_the_recipe_says(folders: Folders, references: Path) -> None:
    for case in range(CASES):
        report(folders[0][1], case, events=[{"code": "mirroring_left_out", "message": "too little time"}] * (case == 2))
    remark = "in 1 cases less was computed than the recipe says: 20002"
    assert remark in opened(folders, references)[0].record.remarks


@pytest.mark.parametrize("whole", [0, 2])
def test_the_mode_fast_does_not_leave_out_folds_of_the_recipe(folders: Folders, references: Path, whole: int) -> None:
    """It may have stopped after the first fold in most cases. whole: how many ran all tiles."""
    for case in range(CASES):
        share = 1.0 if case < whole else 0.6 if case == CASES - 1 else 0.3
        folds = ["0"] if share == 0.3 else ["0", "1", "2"]
        report(folders[0][1], case, model={"folds": folds, "tile_share": share})
    record = opened(folders, references)[0].record
    assert record.settings is not None
    assert record.settings.folds == [0, 1, 2]
    assert any(f"in {CASES - whole} cases less was computed" in remark for remark in record.remarks)


def test_a_report_of_another_prediction_says_nothing(folders: Folders, references: Path) -> None:
    report(folders[0][1], 0, probability="other.npz")
    assert opened(folders, references)[0].record.settings is None


@pytest.mark.fault(
    "selection",
    "the report beside a prediction {what}",
    "an error that names the report: nobody knows which model made the prediction",
)
@pytest.mark.parametrize(
    ("content", "what"), [("not a report", "is damaged"), ("{}", "is older than the schema of reports")]
)
def test_refuses_a_report_that_cannot_be_read(folders: Folders, references: Path, content: str, what: str) -> None:
    damaged = folders[0][1] / f"{name_of(1)}.json"
    damaged.write_text(content)
    assert "expected the report of a case" in refusal(folders, references, damaged)


@pytest.mark.fault(
    "selection",
    "two members have the same model, and no report says by which folds",
    "an error: a recipe could not tell them apart",
)
def test_refuses_members_that_a_recipe_could_not_tell_apart(folders: Folders, references: Path) -> None:
    twice = [("a", folder) for _, folder in folders]
    assert "expected another model, other folds or other settings than those of a (a)" in refusal(
        twice, references, folders[1][1]
    )


@pytest.mark.fault(
    "selection", "the record of a member's training is damaged", "an error: nobody knows what the member was trained on"
)
def test_refuses_a_damaged_record(folders: Folders, references: Path) -> None:
    bundle = folders[0][1].parent / "models" / "a"
    training(bundle, [[0]])
    (bundle / "training.json").write_text('{"splits": {}}')
    report(folders[0][1], 0)
    assert "expected the record of a training" in refusal(folders, references, bundle / "training.json")


# Members that no recipe can contain together.


@pytest.mark.fault(
    "selection",
    "the predictions of a folder come from {what}",
    "an error that names the folder and what was found",
)
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": {"step": 0.5}}, "two settings"),
        ({"model": {"path": "/other"}}, "two models"),
        ({"models": []}, "a recipe without a member"),
    ],
)
def test_refuses_predictions_of_more_than_one_kind(
    folders: Folders, references: Path, changes: dict[str, Any], what: str
) -> None:
    for case in range(CASES):
        report(folders[0][1], case, **(changes if case == 3 else {}))
    assert "expected predictions by" in refusal(folders, references, folders[0][1])


@pytest.mark.fault(
    "selection",
    "the members looked at different boxes of a case",
    "an error that names the case and both boxes: a recipe has one localizer",
)
def test_refuses_members_that_looked_at_different_boxes(folders: Folders, references: Path) -> None:
    for _, folder in folders:
        for case in range(CASES):
            report(folder, case)
    report(folders[1][1], 4, box={"start_zyx": [1, 0, 0], "stop_zyx": list(SHAPE)})
    text = refusal(folders, references, folders[1][1])
    assert "in case 20004 at " in text
    assert "(1, 0, 0)" in text


def test_refuses_predictions_without_the_recipe_s_localizer(folders: Folders, references: Path) -> None:
    for case in range(CASES):
        report(folders[0][1], case)
    text = refusal(folders, references, folders[0][1], TASK2)
    assert "expected predictions with a localizer, as in the recipe, found predictions of whole volumes" in text
    with pytest.raises(RecipeError):
        opened(folders, references, TASK2)


# Differing and unreadable cases.


@pytest.mark.fault(
    "selection", "the members have different cases", "the common ones are used, and a warning names the others"
)
def test_uses_the_common_cases(tmp_path: Path, references: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [
        *write_members(tmp_path, {"a": MEMBERS["a"]}, range(CASES)),
        *write_members(tmp_path, {"b": MEMBERS["b"]}, range(2, CASES)),
    ]
    outcome = chosen(folders, references)
    assert outcome.cases == tuple(name_of(case) for case in range(2, CASES))
    assert "b: 2 of 6 cases are left out, because this member lacks them: 20000, 20001" in caplog.text


@pytest.mark.fault("selection", "the members have no case in common", "an error that says how many each has")
def test_refuses_members_without_a_common_case(tmp_path: Path, references: Path) -> None:
    folders = [
        *write_members(tmp_path, {"a": MEMBERS["a"]}, range(2)),
        *write_members(tmp_path, {"b": MEMBERS["b"]}, range(2, CASES)),
    ]
    assert "found none: a has 2, b has 4" in refusal(folders, references, "members")


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def on_another_grid(path: Path) -> None:
    write_probability(Volume(np.zeros((3, 4, 5), np.float32), Grid((3, 4, 5), (1.0, 1.0, 1.0))), path)


def of_floats(path: Path) -> None:
    with np.load(path) as file:
        np.savez(path, **{**file, "values": file["values"].astype(np.float32) / 255})


@pytest.mark.fault(
    "selection",
    "one file of probabilities among 60 cases is {damage}",
    "a recipe by the other 59; the file is named, and the exit code is 1",
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", [damaged, on_another_grid, of_floats])
def test_leaves_out_an_unreadable_case(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cases = 60
    references = write_references(tmp_path / "references", cases)
    folders = write_members(tmp_path, PAIR, cases)
    broken = folders[1][1] / f"{name_of(17)}.npz"
    damage(broken)
    result = run(folders, references, tmp_path / "mine.toml", "--json", tmp_path / "figures.json")
    assert result.exit_code == 1
    log = result.stderr + caplog.text
    assert f"error: {broken}: " in log
    assert log.splitlines()[-1].endswith("error: 1 of 60 cases could not be read and were left out: 20017")
    assert len(load_recipe(tmp_path / "mine.toml").members) == 2
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (len(figures["cases"]), list(figures["failed"])) == (59, ["20017"])


def test_a_reference_without_a_tumour_is_left_out(folders: Folders, references: Path) -> None:
    write_volume(Volume(np.zeros(SHAPE, np.uint8), GRID), references / f"{name_of(1)}.mha")
    assert list(chosen(folders, references).failed) == [name_of(1)]


def test_an_unreadable_reference_is_left_out(folders: Folders, references: Path) -> None:
    (references / f"{name_of(1)}.mha").write_text("no volume")
    assert list(chosen(folders, references).failed) == [name_of(1)]


def test_refuses_cases_none_of_which_can_be_read(folders: Folders, references: Path) -> None:
    for path in folders[0][1].iterdir():
        damaged(path)
    with pytest.raises(InputError, match=r"none of 6 cases could be read: .*20000\.npz"):
        chosen(folders, references)


# Folders that hold something else.


def no_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def a_file(folder: Path) -> None:
    no_folder(folder)
    folder.touch()


def no_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def masks(folder: Path) -> None:
    no_file(folder)
    write_volume(Volume(np.ones(SHAPE, np.uint8), GRID), folder / "20000.mha")


def other_cases(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"other{path.name}"))


def two_of_a_case(folder: Path) -> None:
    path = folder / f"{name_of(0)}.npz"
    path.with_name(f"{name_of(0)}_0000.npz").write_bytes(path.read_bytes())


@pytest.mark.fault(
    "selection", "in place of a folder of probabilities there is {change}", "an error that names the folder"
)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (no_folder, "expected a folder of probabilities, found no such folder; make them with"),
        (a_file, "expected a folder of probabilities, found a file"),
        (no_file, "found none; make them with `pantherseg predict --save-probabilities`"),
        (masks, "found 1 masks and no probabilities"),
        (other_cases, "e.g. 20000.npz, found other20000.npz"),
        (two_of_a_case, "expected one file for case 20000, found 20000.npz and 20000_0000.npz"),
    ],
)
def test_refuses_another_folder(folders: Folders, references: Path, change: Callable[[Path], None], found: str) -> None:
    change(folders[0][1])
    assert found in refusal(folders, references, folders[0][1])


def test_refuses_references_that_are_none(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for path, found in ((tmp_path / "none", "found none"), (tmp_path / "missing", "found no such folder")):
        with pytest.raises(InputError, match=found):
            find_references(path)
    write_volume(Volume(np.ones(SHAPE, np.uint8), GRID), tmp_path / "none" / "1.mha")
    write_volume(Volume(np.ones(SHAPE, np.uint8), GRID), tmp_path / "none" / "1.nrrd")
    with pytest.raises(InputError, match=r"expected one mask for case 1, found 1\.mha and 1\.nrrd"):
        find_references(tmp_path / "none")


def test_refuses_a_folder_that_is_named_twice(folders: Folders, references: Path) -> None:
    text = refusal([folders[0], folders[0]], references, "a (a)")
    assert "expected folders of different names" in text
    assert text.endswith("; give each model a name of its own, such as b=B/probabilities/task1 d=D/probabilities/task1")


@pytest.mark.parametrize("text", ["a", "=folder", "a=", "x/y=folder", "..=folder"])
def test_wrong_usage_names_the_member(text: str, references: Path, tmp_path: Path) -> None:
    words = ["select", text, "--references", references, "--output", tmp_path / "r.toml", "--task", "1"]
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == 2
    assert f"expected the name of a model and a folder, found '{text}'" in result.stderr


def test_does_not_overwrite_the_base_recipe(folders: Folders, references: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(task_recipe(1).read_text())
    members = [f"{model}={folder}" for model, folder in folders]
    words = ["select", *members, "--references", references, "--output", base, "--recipe", base]
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == 1
    assert "is an input of the command" in result.stderr
    assert base.read_text() == task_recipe(1).read_text()
