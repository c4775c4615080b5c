"""Validation on patients of a start, and given splits that do not suit, are found before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pantherseg.datasets.raw import RawCase, RawDataset, new_dataset
from pantherseg.errors import InputError
from pantherseg.labels import LABEL_MAPS
from pantherseg.training.actions import ACTIONS
from pantherseg.training.check import check_inputs
from pantherseg.training.graph import load_training_file
from pantherseg.training.run import Training, prepare, run
from pantherseg.training.steps import Step
from pantherseg.training.workspace import Inputs, Workspace
from pantherseg.volume import Grid, Volume
from test_training_graph import PLAN

CHAIN = f"""
schema = 2
name = "chain"
[data.t1]
layout = "panther"
dataset_id = 1
[data.t2]
layout = "panther"
dataset_id = 2
[stage.first]
data = ["t1"]
dataset_id = 3
folds = 3
{PLAN}
schedule = {{ epochs = 3 }}
[stage.second]
data = ["t2"]
dataset_id = 4
folds = 3
start = "first"
plan = {{}}
schedule = {{ epochs = 3 }}
[stage.third]
data = ["t1"]
dataset_id = 5
folds = 3
start = "second"
plan = {{}}
schedule = {{ epochs = 3 }}
"""
LEAK = "expected no validation on patients on whom fold {} of stage '{}' was trained, from which it starts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data sets of six patients each. No voxel of them is read."""
    for name, first in (("t1", 10), ("t2", 20)):
        for number in range(first, first + 6):
            for part, file in (("imagesTr", f"{number}_1_0000.mha"), ("labelsTr", f"{number}_1.mha")):
                (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
                (tmp_path / name / part / file).write_text(file)
    return tmp_path


def prepared(folder: Path, text: str = CHAIN, **splits: Path) -> Training:
    (folder / "chain.toml").write_text(text)
    data = {name: folder / name for name in ("t1", "t2", "more") if (folder / name).is_dir()}
    inputs = Inputs(data=data, splits=splits)
    return prepare(folder / "chain.toml", Workspace(load_training_file(folder / "chain.toml"), folder / "out", inputs))


def write_splits(path: Path, held_out: list[list[int]]) -> Path:
    every = {number for numbers in held_out for number in numbers}
    splits = [
        {"train": [f"{one}_1" for one in sorted(every - set(numbers))], "val": [f"{one}_1" for one in numbers]}
        for numbers in held_out
    ]
    path.write_text(json.dumps(splits))
    return path


def test_accepts_stages_with_the_same_splits_and_with_other_patients(folder: Path) -> None:
    check_inputs(prepared(folder))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'data = ["t1"]\ndataset_id = 5',
            'data = ["t1", "t2"]\ndataset_id = 5',
            "stage 'third': " + LEAK.format(0, "second"),
        ),
        ("dataset_id = 5\nfolds = 3", "dataset_id = 5\nfolds = 2", "stage 'third': " + LEAK.format(0, "first")),
        (
            "dataset_id = 3\nfolds = 3",
            "dataset_id = 3\nfolds = 3\ntrained_folds = 1",
            "fold 1 of stage 'third': " + LEAK.format(0, "first"),
        ),
    ],
    ids=["the start has fewer patients", "another number of folds", "the start has one trained fold"],
)
@pytest.mark.fault("training", "a start was trained on validation patients: {id}", "an error before the first step")
def test_refuses_validation_on_patients_of_a_start(folder: Path, old: str, new: str, message: str) -> None:
    text = CHAIN.replace(old, new)
    assert text != CHAIN
    with pytest.raises(InputError, match=rf"{message}, found \d of them, \d\d"):
        check_inputs(prepared(folder, text))


@pytest.mark.fault("training", "splits are given for one stage of a chain only", "an error before the first step")
def test_refuses_splits_that_disagree_with_those_of_a_start(folder: Path) -> None:
    given = write_splits(folder / "given.json", [[10, 11], [12, 13], [14, 15]])
    with pytest.raises(InputError, match="of stage 'third'"):
        check_inputs(prepared(folder, third=given))
    check_inputs(prepared(folder, first=given, third=given))


def test_a_stage_is_not_planned_where_its_start_saw_its_validation_patients(folder: Path) -> None:
    """What was imported decides: cases may be refused, or folders changed by hand."""
    work = prepared(folder).work
    image = Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), (1.0, 1.0, 1.0)))
    splits = {"first": [[10], [11], [12]], "second": [[20], [21], [22]], "third": [[12], [11], [10]]}
    for stage, held_out in splits.items():
        number = work.graph.stage[stage].dataset_id
        with new_dataset(
            work.raw, number, stage, labels={"background": 0}, orientation="LPS", file_ending=".mha"
        ) as new:
            for patient in (one for numbers in held_out for one in numbers):
                new.add(f"{patient}_1", RawCase(patient=str(patient)), image)
        write_splits(work.dataset(stage) / "splits_final.json", held_out)
    step = prepared(folder).steps.by_name["plan.third"]
    with pytest.raises(InputError, match=r"fold 0 of stage 'third': .* of stage 'first' .* found 1 of them, 12"):
        ACTIONS["plan"](work, step, "cpu")


@pytest.mark.fault("training", "given splits have another number of folds", "an error before the first step")
def test_refuses_given_splits_with_another_number_of_folds(folder: Path) -> None:
    given = write_splits(folder / "given.json", [[10, 11, 12], [13, 14, 15]])
    training = prepared(folder, first=given)
    with pytest.raises(InputError, match=r"given.json: expected 3 folds, as stage 'first' has, found 2"):
        check_inputs(training)
    with pytest.raises(InputError, match=r"given.json: expected 3 folds, as stage 'first' has, found 2"):
        ACTIONS["data"](training.work, training.steps.by_name["data.first"], "cpu")


@pytest.mark.fault("training", "given splits name cases that there are not", "an error before the first step")
def test_refuses_given_splits_of_other_cases(folder: Path) -> None:
    given = write_splits(folder / "given.json", [[10, 11], [12, 13], [14, 99]])
    with pytest.raises(
        InputError, match=r"given.json: expected only cases of the data set in fold 0, found others: 99_1"
    ):
        check_inputs(prepared(folder, first=given))


def test_splits_that_were_given_once_hold_in_later_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in tuple(ACTIONS):
        monkeypatch.setitem(ACTIONS, kind, lambda work, step, device: {})
    given = write_splits(folder / "given.json", [[10, 11], [12, 13], [14, 15]])
    run(prepared(folder, first=given, third=given), ("cpu",))
    content = given.read_bytes()
    given.unlink()
    later = prepared(folder, CHAIN.replace("folds = 3", 'labels = "tumour"\nfolds = 3'))
    kept = later.work.given("splits/first")
    assert kept is not None
    assert kept.read_bytes() == content
    assert later.outside["splits/first"] == prepared(folder).outside["splits/third"]
    check_inputs(prepared(folder))
    kept.unlink()
    assert "splits/first" not in prepared(folder).outside
    assert prepared(folder).verdicts["data.first"].reason == "again: what it reads has changed"


def test_given_splits_hold_where_pseudo_labelled_cases_have_the_same_names(folder: Path) -> None:
    more = '[data.more]\nlayout = "panther-unlabelled"\ndataset_id = 7\n'
    text = CHAIN + more + '[pseudo.round1]\ndata = "more"\nby = "first"\ndataset_id = 6\n'
    text = text.replace('data = ["t2"]', 'data = ["round1", "t1"]')
    shutil.copytree(folder / "t1" / "imagesTr", folder / "more")
    given = write_splits(folder / "given.json", [[10, 11], [12, 13], [14, 15]])
    training = prepared(folder, text, first=given, second=given, third=given)
    check_inputs(training)
    work = training.work
    for name, number in (("t1", 1), ("round1", 6)):
        rng = np.random.default_rng(number)
        with new_dataset(
            work.raw, number, name, labels=LABEL_MAPS["tumour+pancreas"], orientation="LPS", file_ending=".mha"
        ) as new:
            for patient in range(10, 16):
                image = Volume(rng.random((2, 2, 2), np.float32), Grid((2, 2, 2), (1.0, 1.0, 1.0)))
                label = Volume(np.ones((2, 2, 2), np.uint8), image.grid)
                new.add(f"{patient}_1", RawCase(patient=str(patient), pseudo=name == "round1"), image, label)
    ACTIONS["data"](work, training.steps.by_name["data.second"], "cpu")
    cases = RawDataset.open(work.dataset("second")).cases
    assert {name: case.pseudo for name, case in cases.items()} == {
        f"{prefix}{patient}_1": bool(prefix) for prefix in ("", "round1_") for patient in range(10, 16)
    }


@pytest.mark.fault("training", "more folds than patients of a finished import", "an error before the first step")
def test_refuses_more_folds_than_an_imported_data_set_has_patients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(work: Workspace, step: Step, device: str) -> dict[str, object]:
        image = Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), (1.0, 1.0, 1.0)))
        with new_dataset(work.raw, 1, "t1", labels={"background": 0}, orientation="LPS", file_ending=".mha") as new:
            for patient in range(10, 16):
                new.add(f"{patient}_1", RawCase(patient=str(patient)), image, Volume(image.array, image.grid))
        return {}

    monkeypatch.setitem(ACTIONS, "import", act)
    training = prepared(folder)
    run(prepare(training.file, training.work, step="import.t1"), ("cpu",))
    text = CHAIN.replace("folds = 3", "folds = 7")
    message = r"Dataset001_t1: expected at least one patient for each of the 7 folds of stage 'first', found 6"
    with pytest.raises(InputError, match=message):
        check_inputs(prepared(folder, text))
