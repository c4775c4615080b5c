"""Real steps that are killed in the middle: the next run ends in what an uninterrupted one makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from conftest import run_python
from pantherseg.datasets.raw import RawDataset
from pantherseg.io import read_labels, read_volume
from pantherseg.phantom import write_dataset
from pantherseg.training.folders import TrainingFolders

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
[stage.cropped]
data = ["t1"]
dataset_id = 5
start = "teacher"
folds = 2
crop = { task = 2 }
plan = {}
schedule = { epochs = 1 }
"""
# Runs each step in a process that is killed in the middle, and then in one that is not. A threshold stands for the
# model that labels, and a fixed box for the localizer's. Prints the number of masks that were there before the last
# run.
SCRIPT = """
import os, signal, sys
from types import SimpleNamespace
from pathlib import Path
import pantherseg.datasets.crops as crops
import pantherseg.training.actions as actions
import pantherseg.training.planning as planning
from pantherseg.datasets.raw import NewDataset
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.training.graph import load_training_file
from pantherseg.training.run import prepare, run_step
from pantherseg.training.state import State
from pantherseg.training.workspace import Inputs, Workspace
from pantherseg.localize import Located
from pantherseg.volume import Box

folder = Path(sys.argv[1])
graph = load_training_file(folder / "killed.toml")
inputs = Inputs(data={"t1": folder / "t1", "more": folder / "more"}, models=DEMO_WEIGHTS)
training = prepare(folder / "killed.toml", Workspace(graph, folder / "out", inputs))
state, steps = State(training.work.output), training.steps.by_name

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_at(number, function):
    calls = []
    def inner(*arguments, **options):
        calls.append(1)
        return die() if len(calls) == number else function(*arguments, **options)
    return inner

def run_and_kill(step):
    # Two cases are imported before the first is cropped.
    NewDataset.add = dying_at(4 if step.subject == "cropped" else 2, NewDataset.add)
    planning.preprocess_dataset = die
    run_step(training, step, "cpu")
    os._exit(0)

def threshold(*arguments):
    return SimpleNamespace(predict=lambda image: SimpleNamespace(labels=lambda: (image.array > 500).astype("uint8")))

labels = {"background": 0, "tumour": 1, "pancreas": 2}
actions.open_bundle = lambda path: SimpleNamespace(manifest=SimpleNamespace(labels=labels))
actions.Predictor = threshold
actions.load_localizer = lambda *arguments, **options: (None, None)
crops.localize = lambda image, *_: Located(Box((1, 2, 3), tuple(size - 1 for size in image.array.shape)), ())
for name in ("import.t1", "import.more", "data.teacher", "plan.teacher", "data.cropped", "pseudo.round1"):
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
class Killed:
    """The folder of phantoms and of the output. kept: the number of masks that were made before the process ended."""

    folder: Path
    kept: int

    @property
    def output(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.toml").write_text(TRAINING)
    write_dataset(folder / "t1", task=1, cases=2, seed=70, size="small")
    write_dataset(folder / "more", task=1, cases=2, seed=80, size="small")
    for path in (folder / "more" / "labelsTr").iterdir():
        path.unlink()
    done = run_python("-c", SCRIPT, folder)
    assert done.returncode == 0, done.stderr
    return Killed(folder, int(done.stdout.split()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Dataset001_t1", "Dataset002_more", "Dataset003_teacher", "Dataset004_round1"])
@pytest.mark.fault("training", "a step that makes a data set is killed: {id}", "the whole data set after the next run")
def test_a_data_set_is_complete_after_its_step_was_killed(killed: Killed, name: str) -> None:
    dataset = RawDataset.open(killed.output / "raw" / name)
    source = killed.folder / ("t1" if name in ("Dataset001_t1", "Dataset003_teacher") else "more")
    assert len(dataset.cases) == 2
    for case in dataset.cases:
        image = read_volume(source / "imagesTr" / f"{case}_0000.mha").array
        np.testing.assert_array_equal(dataset.image(case).array, image)
        label = dataset.label(case)
        if source.name == "t1":
            assert label is not None
            np.testing.assert_array_equal(label.array, read_labels(source / "labelsTr" / f"{case}.mha").array)
        elif label is not None:
            np.testing.assert_array_equal(label.array, image > 500)
    assert not list((killed.output / "raw").glob(".*"))


@pytest.mark.slow
@pytest.mark.fault(
    "training", "a step is killed while it crops the cases", "all whole and cropped cases in the next run"
)
def test_every_case_is_cropped_after_the_step_was_killed(killed: Killed) -> None:
    whole, cropped = (RawDataset.open(killed.output / part / "Dataset005_cropped") for part in ("uncropped", "raw"))
    assert whole.cases.keys() == cropped.cases.keys() == {"10070_0001", "10071_0001"}
    for name, case in cropped.cases.items():
        assert case.crop is not None
        assert case.crop.start == (1, 2, 3)
        np.testing.assert_array_equal(cropped.image(name).array, whole.image(name).array[case.crop.box.slices])
        label, around = cropped.label(name), whole.label(name)
        assert label is not None
        assert around is not None
        np.testing.assert_array_equal(label.array, around.array[case.crop.box.slices])
    assert not list((killed.output / "uncropped").glob(".*"))


@pytest.mark.slow
@pytest.mark.fault("training", "the preprocessing is killed", "all plans and cases after the next run")
def test_every_case_is_preprocessed_after_the_step_was_killed(killed: Killed) -> None:
    folders = TrainingFolders(killed.output / "raw" / "Dataset003_teacher", killed.output)
    assert folders.is_preprocessed
    assert json.loads(folders.plans.read_text())["plans_name"] == "pantherseg"
    cases = {path.name.partition(".")[0] for path in (folders.preprocessed / "pantherseg_3d_fullres").glob("*.pkl")}
    assert cases == RawDataset.open(folders.dataset).cases.keys()


@pytest.mark.slow
def test_masks_that_were_made_before_the_kill_are_kept(killed: Killed) -> None:
    assert killed.kept >= 1
    assert len(list(killed.output.glob("pseudo/round1/*/*"))) == 2
