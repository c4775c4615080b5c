"""Real steps that are killed in the middle: the next run ends in what an uninterrupted one makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from conftest import run_python
from pantherseg.datasets.raw import RawDataset
from pantherseg.io import read_labels
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.phantom import write_dataset

TRAINING = """
schema = 2
name = "killed"
[data.t1]
layout = "panther"
dataset_id = 1
[data.more]
layout = "panther-unlabelled"
dataset_id = 2
[stage.teacher]
data = ["t1"]
dataset_id = 3
folds = 2
[stage.teacher.plan]
network = "PlainConvUNet"
spacing = [5.0, 6.0, 6.0]
patch_size = [32, 32, 32]
memory_gb = 0.1
[stage.teacher.schedule]
epochs = 1
[pseudo.round1]
data = "more"
by = "teacher"
dataset_id = 4
drop_empty = false
"""
# Runs each step in a process that is killed in the middle, and then in one that is not. The demo model stands for the
# stage's. Prints the masks that were there before the second run.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import pantherseg.training.actions as actions
import pantherseg.training.planning as planning
from pantherseg.datasets.raw import NewDataset
from pantherseg.training.graph import load_training_file
from pantherseg.training.run import prepare, run_step
from pantherseg.training.state import State
from pantherseg.training.workspace import Inputs, Workspace

folder, model, killed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "killed"
graph = load_training_file(folder / "killed.toml")
inputs = Inputs(data={"t1": folder / "t1", "more": folder / "more"})
training = prepare(folder / "killed.toml", Workspace(graph, folder / sys.argv[3], inputs))
state, steps = State(training.work.output), training.steps.by_name

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def second(function):
    calls = []
    def inner(*arguments, **options):
        calls.append(1)
        return die() if len(calls) == 2 else function(*arguments, **options)
    return inner

def run_and_kill(step):
    NewDataset.add = second(NewDataset.add)
    planning.preprocess_dataset = die
    run_step(training, step, "cpu")
    os._exit(0)

(training.work.output / "bundles").mkdir(parents=True)
(training.work.output / "bundles" / "teacher").symlink_to(model)
for name in ("import.t1", "import.more", "data.teacher", "plan.teacher", "pseudo.round1"):
    if name == "pseudo.round1":
        state.start(steps["bundle.teacher"], training.fingerprints["bundle.teacher"])
    if killed:
        child = os.fork()
        if not child:
            run_and_kill(steps[name])
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
        assert state.started(steps[name]) is not None and state.finished(steps[name]) is None, name
    masks = {path: path.stat().st_mtime_ns for path in training.work.output.glob("pseudo/*/*/*")}
    run_step(training, steps[name], "cpu")
    assert all(path.stat().st_mtime_ns == time for path, time in masks.items()), "masks that were made are kept"
    assert state.started(steps[name]) is None, name
print(len(masks))
"""


@dataclass(frozen=True)
class Runs:
    """The outputs of a run whose steps were killed once, and of one without interruption."""

    killed: Path
    whole: Path
    kept: int


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.toml").write_text(TRAINING)
    write_dataset(folder / "t1", task=1, cases=2, seed=70, size="small")
    write_dataset(folder / "more", task=1, cases=2, seed=80, size="small")
    for path in (folder / "more" / "labelsTr").iterdir():
        path.unlink()
    printed = []
    for name in ("killed", "whole"):
        done = run_python("-c", SCRIPT, folder, DEMO_WEIGHTS / "task1", name)
        assert done.returncode == 0, done.stderr
        printed.append(int(done.stdout.split()[-1]))
    return Runs(folder / "killed", folder / "whole", printed[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Dataset001_t1", "Dataset002_more", "Dataset003_teacher", "Dataset004_round1"])
@pytest.mark.fault("training", "a step that makes a data set is killed: {id}", "the same data set after the next run")
def test_data_sets_are_those_of_a_run_without_interruption(runs: Runs, name: str) -> None:
    found, expected = (RawDataset.open(folder / "raw" / name) for folder in (runs.killed, runs.whole))
    assert found.cases.keys() == expected.cases.keys()
    assert len(found.cases) == 2
    for case in found.cases:
        np.testing.assert_array_equal(found.image(case).array, expected.image(case).array)
        if expected.has_labels:
            labels = [read_labels(dataset.label_path(case)).array for dataset in (found, expected)]
            np.testing.assert_array_equal(*labels)
    assert not list((runs.killed / "raw").glob(".*"))


@pytest.mark.slow
@pytest.mark.fault("training", "the preprocessing is killed", "the same plans and cases after the next run")
def test_plans_and_cases_are_those_of_a_run_without_interruption(runs: Runs) -> None:
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (runs.killed / "preprocessed", runs.whole / "preprocessed")
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 5
    plans = [
        json.loads((folder / "preprocessed/Dataset003_teacher/pantherseg.json").read_text())
        for folder in (runs.killed, runs.whole)
    ]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_masks_that_were_made_before_the_kill_are_kept(runs: Runs) -> None:
    assert runs.kept >= 1
    assert len(list(runs.killed.glob("pseudo/round1/*/*"))) == 2
