"""What a training runs, skips, resumes and runs again. The steps themselves are replaced by ones that take no time."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import ChangedModel
from data_sets import image_of, write_panther
from pantherseg.datasets.raw import RawCase, RawDataset, new_dataset
from pantherseg.errors import InputError, ModelError, OutputError, PantherSegError, RecipeError
from pantherseg.model_sources.checkpoint import read_checkpoint
from pantherseg.models.find import ModelFolder
from pantherseg.phantom import write_dataset
from pantherseg.training.actions import ACTIONS, bundle_step, fold_step, pseudo_step
from pantherseg.training.check import check_inputs, check_names
from pantherseg.training.content import files_of_data
from pantherseg.training.graph import load_training_file
from pantherseg.training.run import Training, prepare, run, run_step
from pantherseg.training.state import Record, State, write_record
from pantherseg.training.steps import Step
from pantherseg.training.trainers import TRAINERS, NnunetTrainer
from pantherseg.training.workspace import Inputs, Workspace
from pantherseg.volume import Grid, Volume
from test_training_graph import NOISY_STUDENT, PLAN

TEACHER = ["import.t1", "data.teacher", "plan.teacher", "fold.teacher.0", "validate.teacher.0", "fold.teacher.1"]
TEACHER += ["validate.teacher.1", "bundle.teacher"]


@dataclass
class Site:
    """A training file, its data, and an output folder. ran: the steps that were run, in order."""

    folder: Path
    text: str = NOISY_STUDENT
    fails: str = ""
    ran: list[str] = field(default_factory=list)

    def prepare(self, **options: Any) -> Training:
        path = self.folder / "training.toml"
        path.write_text(self.text)
        data = {name: self.folder / name for name in ("t1", "more") if (self.folder / name).is_dir()}
        inputs = options.pop("inputs", Inputs(data=data))
        return prepare(path, Workspace(load_training_file(path), self.folder / "out", inputs), **options)

    def run(self, **options: Any) -> list[str]:
        """Run what is not finished, and return the steps that ran."""
        self.ran.clear()
        run(self.prepare(**options), ("cpu",))
        return list(self.ran)

    def act(self, work: Workspace, step: Step, device: str) -> dict[str, Any]:
        self.ran.append(step.name)
        if step.name != self.fails:
            for path in work.results(step):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        if step.kind == "fold":
            work.outputs(step)[0].mkdir(parents=True, exist_ok=True)
            (work.outputs(step)[0] / "checkpoint_latest.pth").touch()
        if step.name == self.fails:
            raise OSError(28, "No space left on device", str(work.outputs(step)[0]))
        return {"device": device}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, task=2, cases=2, seed=5, size="small")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in ("t1", "more"):
        for part, file in (("imagesTr", f"{name}_0000.mha"), ("labelsTr", f"{name}.mha")):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / file).write_text(name)
    shutil.rmtree(tmp_path / "more" / "labelsTr")
    site = Site(tmp_path)
    for kind in tuple(ACTIONS):
        monkeypatch.setitem(ACTIONS, kind, site.act)
    return site


def test_runs_every_step_once(site: Site) -> None:
    everything = list(site.prepare().steps.by_name)
    assert site.run() == everything
    assert site.run() == []
    assert {verdict.status for verdict in site.prepare().verdicts.values()} == {"finished"}


def test_runs_a_stage_and_then_the_rest(site: Site) -> None:
    assert sorted(site.run(stage="teacher")) == sorted(TEACHER)
    rest = site.run()
    assert not set(rest) & set(TEACHER)
    assert rest[-1] == "bundle.student"


def test_changed_settings_run_again_with_all_that_depends_on_them_and_say_why(site: Site) -> None:
    site.run()
    site.text = site.text.replace("epochs = 2", "epochs = 4")
    verdicts = site.prepare().verdicts
    assert verdicts["fold.student.0"].reason == "again: schedule.epochs 2 -> 4"
    assert verdicts["validate.student.0"].reason == "again: fold.student.0 runs again"
    assert set(site.run()) == {name for name in verdicts if verdicts[name].status == "to run"}
    assert "plan.student" not in site.ran
    assert "fold.teacher.0" not in site.ran


def test_folds_that_were_trained_with_other_settings_are_kept(site: Site) -> None:
    site.run()
    site.text = site.text.replace("epochs = 2", "epochs = 4")
    site.run()
    kept = sorted(path.name.rpartition("-")[0] for path in (site.folder / "out" / "earlier").iterdir())
    assert kept == ["bundle.student", "fold.student.0", "fold.student.1"]


def test_other_data_run_again_but_not_another_folder_with_the_same_content(site: Site) -> None:
    site.run()
    moved = site.folder / "moved"
    (site.folder / "t1").rename(moved)
    assert site.run(inputs=Inputs(data={"t1": moved})) == [], "the other folder need not be named again"
    (moved / "imagesTr" / "t1_0000.mha").write_text("another image")
    found = site.prepare(inputs=Inputs(data={"t1": moved})).verdicts
    assert found["import.t1"].reason == "again: what it reads has changed"
    assert found["import.more"].status == "finished"


@pytest.mark.fault("training", "the disk is full in the middle of a step", "an error that names the step and the file")
def test_a_step_that_fails_is_resumed_and_what_was_finished_stays_finished(site: Site) -> None:
    site.fails = "fold.teacher.1"
    with pytest.raises(OutputError, match=r"fold_1: failed in step fold.teacher.1: No space left on device"):
        site.run()
    verdicts = site.prepare().verdicts
    assert [name for name in TEACHER if verdicts[name].status == "finished"] == TEACHER[:5]
    assert verdicts["fold.teacher.1"].status == "resumed"
    site.fails = ""
    begun = site.folder / "out/results/Dataset003_teacher/PantherTrainer__pantherseg__3d_fullres/fold_1/mark"
    begun.touch()
    assert site.run()[0] == "fold.teacher.1"
    assert begun.exists(), "the training goes on in the same folder"


def test_an_interrupted_training_with_other_settings_begins_again(site: Site) -> None:
    site.fails = "fold.teacher.1"
    with pytest.raises(OutputError):
        site.run()
    site.fails, site.text = "", site.text.replace("epochs = 3", "epochs = 4")
    assert site.prepare().verdicts["fold.teacher.1"].reason == "again: schedule.epochs 3 -> 4"
    site.run(stage="teacher")
    earlier = sorted(path.name.rpartition("-")[0] for path in (site.folder / "out" / "earlier").iterdir())
    assert earlier == ["fold.teacher.0", "fold.teacher.1"]


@pytest.mark.fault("training", "the record of a finished step is damaged", "the step runs again")
def test_a_damaged_record_runs_again(site: Site) -> None:
    site.run()
    (site.folder / "out" / "state" / "plan.student.json").write_text("{")
    assert site.run() == ["plan.student"]


@pytest.mark.fault("training", "the record of a trained fold was removed", "it is trained again, and the old one kept")
def test_a_fold_without_a_record_is_kept_aside(site: Site) -> None:
    site.run(stage="teacher")
    for _ in range(2):
        (site.folder / "out" / "state" / "fold.teacher.0.json").unlink()
        assert site.run(stage="teacher") == ["fold.teacher.0"]
    earlier = sorted(path.name for path in (site.folder / "out" / "earlier").iterdir())
    assert earlier == ["fold.teacher.0-unknown", "fold.teacher.0-unknown.2"]


@pytest.mark.fault("training", "a result of a finished step was removed", "it is made again if it is needed")
def test_a_result_that_was_removed_is_made_again_only_where_it_is_needed(site: Site) -> None:
    site.run()
    out = site.folder / "out"
    (out / "preprocessed/Dataset003_teacher/pantherseg.json").unlink()
    assert site.run() == [], "its folds are trained"
    shutil.rmtree(out / "bundles/teacher")
    assert site.run() == [], "its pseudo-labels are made"
    shutil.rmtree(out / "bundles/student")
    missing = out / "bundles/student/manifest.json"
    assert site.prepare().verdicts["bundle.student"].reason == f"again: {missing} is missing"
    assert site.run() == ["bundle.student"]


@pytest.mark.fault("training", "the process is killed while an earlier fold is moved away", "the fold is not lost")
def test_a_fold_is_kept_if_the_process_ends_before_it_is_moved(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run(stage="teacher")
    before = site.prepare().fingerprints["fold.teacher.0"]
    site.text = site.text.replace("epochs = 3", "epochs = 4")
    with monkeypatch.context() as patched:
        patched.setattr("pantherseg.training.run.set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            site.run(stage="teacher")
    assert "fold.teacher.0" in site.run(stage="teacher")
    assert (site.folder / "out" / "earlier" / f"fold.teacher.0-{before[:8]}").is_dir()


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_says_that_a_step_goes_on_only_where_it_does(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    longer = site.text.replace("epochs = 3", "epochs = 4")
    for name, status, said in (("plan.teacher", "to run", "begins"), ("fold.teacher.0", "resumed", "goes on")):
        site.fails, site.text = name, site.text if said == "begins" else longer
        with pytest.raises(OutputError):
            site.run(stage="teacher")
        site.fails = ""
        verdict = site.prepare().verdicts[name]
        assert (verdict.status, verdict.again) == (status, False)
        caplog.clear()
        site.run(stage="teacher")
        assert f"{name}: {said}" in caplog.messages


@pytest.mark.fault("training", "the final checkpoint of a finished fold was removed", "the fold is trained again")
def test_a_fold_without_its_checkpoint_is_trained_again_where_it_is_needed(site: Site) -> None:
    site.run(stage="teacher")
    for path in (site.folder / "out/results").rglob("fold_0/checkpoint_final.pth"):
        path.unlink()
    assert site.prepare().verdicts["fold.student.0"].status == "to run"
    assert "fold.teacher.0" in site.run(), "the student starts from it"


def test_checkpoints_at_other_epochs_train_nothing_again(site: Site) -> None:
    site.run()
    site.text = site.text.replace("epochs = 3", "epochs = 3, checkpoint_every = 2")
    assert site.run() == []


def test_goes_on_where_the_output_folder_was_moved(tmp_path: Path) -> None:
    """Real steps: the images are stored in another voxel order, so that they are written and then linked."""
    write_panther(tmp_path / "t1", "1_1", "2_1", order="RAS")
    write_panther(tmp_path / "more", "3_1", labels=None)
    (tmp_path / "training.toml").write_text(NOISY_STUDENT)
    graph = load_training_file(tmp_path / "training.toml")

    def prepared(output: Path) -> Training:
        inputs = Inputs(data={name: tmp_path / name for name in ("t1", "more")})
        return prepare(tmp_path / "training.toml", Workspace(graph, output, inputs), step="data.teacher")

    run(prepared(tmp_path / "out"), ("cpu",))
    (tmp_path / "mounted").mkdir()
    shutil.move(tmp_path / "out", tmp_path / "mounted")
    moved = prepared(tmp_path / "mounted" / "out")
    assert moved.unfinished == []
    assert [moved.work.missing(moved.steps.by_name[name]) for name in moved.chosen] == [None, None]
    image = RawDataset.open(moved.work.dataset("teacher")).image("1_1")
    np.testing.assert_array_equal(image.array, image_of("1_1"))


def test_other_files_in_the_folder_of_a_data_set_change_nothing(site: Site) -> None:
    site.run()
    (site.folder / "t1" / "README.md").write_text("about the data")
    (site.folder / "t1" / "imagesTr" / "notes.txt").write_text("more")
    assert site.run() == []
    (site.folder / "t1" / "labelsTr" / "t1.mha").write_text("another label map")
    assert "import.t1" in site.run()


def test_the_voxels_of_a_header_count_too(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    for name in ("a_0000.mhd", "a_0000.raw", "b.raw"):
        (tmp_path / "imagesTr" / name).write_text(name)
    found = files_of_data("panther-unlabelled", tmp_path)
    assert sorted(found) == ["imagesTr/a_0000.mhd", "imagesTr/a_0000.raw"]


@pytest.mark.fault("training", "the output folder is in a data set", "an error before anything is read")
def test_refuses_an_output_folder_in_a_data_set(site: Site) -> None:
    inputs = Inputs(data={"t1": site.folder / "t1"})
    with pytest.raises(OutputError, match=r"out: expected a folder outside the data, found one in .*t1"):
        check_names(site.prepare().graph, inputs, site.folder / "t1" / "out")


def test_a_dry_run_writes_nothing(site: Site) -> None:
    site.prepare(remember=False)
    assert not (site.folder / "out").exists()
    site.prepare()
    assert (site.folder / "out" / "state" / "content.json").is_file()


def test_says_which_files_are_read_for_their_checksums(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    site.prepare()
    assert caplog.messages == [f"data/{n}: reading {k} files for their checksums" for n, k in (("t1", 2), ("more", 1))]
    caplog.clear()
    site.prepare()
    assert not caplog.messages


def test_a_fold_starts_from_the_fold_that_the_file_says_whatever_lies_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    class Recorder(NnunetTrainer):
        def train(self, folders: Any, stage: Any, *, fold: int, start: Any, device: str) -> None:
            started.append((fold, start.relative_to(site.folder / "out/results").parts[-2:]))

    monkeypatch.setitem(TRAINERS, "nnunet", Recorder())
    one = site.text.replace("folds = 2\nplan = { network", "folds = 2\ntrained_folds = 1\nplan = { network")
    for text in (site.text, one):
        site.text = text
        training = site.prepare()
        for fold in (0, 1):
            training.work.folders("teacher").fold(fold).mkdir(parents=True, exist_ok=True)
            fold_step(training.work, training.steps.by_name[f"fold.student.{fold}"], "cpu")
    final = "checkpoint_final.pth"
    assert started == [
        (0, ("fold_0", final)),
        (1, ("fold_1", final)),
        (0, ("fold_0", final)),
        (1, ("fold_0", final)),
    ]


def test_folds_that_a_stage_no_longer_has_are_moved_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.training.actions.write_bundle", lambda work, step, state: {})
    site.text = site.text.replace("folds = 2\nplan = { network", "folds = 2\ntrained_folds = 1\nplan = { network")
    training = site.prepare()
    folders = training.work.folders("teacher")
    for fold in (0, 1):
        folders.fold(fold).mkdir(parents=True)
    bundle_step(training.work, training.steps.by_name["bundle.teacher"], "cpu")
    assert folders.fold(0).is_dir()
    assert not folders.fold(1).exists()
    assert (site.folder / "out" / "earlier" / "fold.teacher.1-unknown").is_dir()


def hold(output: Path, step: Step, ready: Any) -> None:
    with State(output).locked(step):
        ready.set()
        time.sleep(30)


@pytest.mark.fault("training", "a bundle is replaced while it labels cases", "an error; the next run labels them again")
def test_masks_of_a_bundle_that_was_replaced_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    training = site.prepare()
    state, steps, work = State(training.work.output), training.steps.by_name, training.work
    labels = {"background": 0, "tumour": 1, "pancreas": 2}
    image = Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), (1.0, 1.0, 1.0)))
    with new_dataset(work.raw, 2, "more", labels=labels, orientation="LPS", file_ending=".mha") as new:
        new.add("1_1", RawCase(patient="1"), image)

    def retrained(number: int) -> Any:
        def predict(_: Volume) -> Any:
            write_record(state.folder / "bundle.teacher.json", Record("retrained", {}))
            return SimpleNamespace(labels=lambda: np.full((2, 2, 2), number, np.uint8))

        return lambda *_: SimpleNamespace(predict=predict)

    write_record(state.folder / "bundle.teacher.json", Record(training.fingerprints["bundle.teacher"], {}))
    manifest = SimpleNamespace(labels=labels)
    monkeypatch.setattr("pantherseg.training.actions.open_bundle", lambda path: SimpleNamespace(manifest=manifest))
    monkeypatch.setattr("pantherseg.training.actions.Predictor", retrained(1))
    with pytest.raises(OutputError, match=r"bundles/teacher: another process replaced this bundle while it labelled"):
        pseudo_step(work, steps["pseudo.round1"], "cpu")
    assert not work.dataset("round1").exists()
    monkeypatch.setattr("pantherseg.training.actions.Predictor", retrained(2))
    pseudo_step(work, steps["pseudo.round1"], "cpu")
    label = RawDataset.open(work.dataset("round1")).label("1_1")
    assert label is not None
    assert label.array.min() == 2


def test_a_step_does_not_begin_with_what_another_process_made_of_other_settings(site: Site) -> None:
    site.run(stage="teacher")
    training = site.prepare()
    write_record(training.work.output / "state" / "bundle.teacher.json", Record("retrained", {}))
    with pytest.raises(OutputError, match=r"out: another process has run bundle.teacher with other settings or data;"):
        run_step(training, training.steps.by_name["pseudo.round1"], "cpu")
    assert "pseudo.round1" not in site.ran


@pytest.mark.slow
@pytest.mark.fault("training", "another process that runs a step is killed", "the step goes on here")
def test_waits_for_another_process_that_runs_the_step(site: Site) -> None:
    step = site.prepare().steps.by_name["import.t1"]
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(site.folder / "out", step, ready))
    other.start()
    assert ready.wait(60)
    os.kill(other.pid or 0, signal.SIGKILL)
    assert site.run(step="import.t1") == ["import.t1"]
    other.join()


@pytest.fixture
def phantoms(site: Site, made: Path) -> Site:
    """Phantoms as the data of the training file."""
    for name in ("t1", "more"):
        shutil.rmtree(site.folder / name)
        shutil.copytree(made, site.folder / name)
    shutil.rmtree(site.folder / "more" / "labelsTr")
    return site


def test_accepts_complete_inputs(phantoms: Site) -> None:
    check_inputs(phantoms.prepare())


@pytest.mark.parametrize("fault", ["not given", "not there", "empty", "without labels", "too few patients"])
@pytest.mark.fault("training", "a data set is {fault}", "an error before the first step")
def test_refuses_data_that_cannot_be_trained_on(phantoms: Site, fault: str) -> None:
    site = phantoms
    t1, more = site.folder / "t1", site.folder / "more"
    message = {
        "not given": r"data set 't1': expected a folder, found none; name it with --data t1=FOLDER \(layout panther\)",
        "not there": r"t9: expected a folder, found no such folder",
        "empty": r"t1: expected cases in the layout panther, found none",
        "without labels": r"t1: expected images with labels for the data set 't1', found images alone",
        "too few patients": r"t1: expected at least one patient for each of the 2 folds of stage 'teacher', found 1",
    }[fault]
    data = {"t1": t1, "more": more}
    if fault == "not given":
        del data["t1"]
    elif fault == "not there":
        data["t1"] = site.folder / "t9"
    elif fault == "too few patients":
        for path in t1.rglob("10006*"):
            path.unlink()
    elif fault == "empty":
        for path in t1.rglob("*.mha"):
            path.unlink()
    elif fault == "without labels":
        site.text = site.text.replace('layout = "panther"', 'layout = "panther-unlabelled"\nlabelled = true')
        for path in (t1 / "labelsTr").iterdir():
            path.unlink()
    with pytest.raises(InputError, match=message):
        check_inputs(site.prepare(inputs=Inputs(data=data)))
    assert not site.ran


def test_names_the_labelled_data_where_a_stage_names_pseudo_labels_first(phantoms: Site) -> None:
    site = phantoms
    old = 'data = ["t1", "round1"]\ndataset_id = 5\nstart = "teacher"\nfolds = 2\nplan = {}'
    new = 'data = ["round1", "t1"]\ndataset_id = 5\nfolds = 3\n' + PLAN
    assert old in site.text
    site.text = site.text.replace(old, new)
    # Both data sets have the same cases here; those with labels by experts count.
    with pytest.raises(InputError, match=r"t1: expected at least one patient .* of stage 'student', found 2"):
        check_inputs(site.prepare())


@pytest.mark.fault("training", "the weights that a stage starts from are not there", "an error before the first step")
def test_refuses_a_start_that_is_not_there(phantoms: Site) -> None:
    site = phantoms
    site.text = site.text.replace(PLAN, 'start = "weights/none-such"\nplan = {}')
    with pytest.raises(ModelError, match=r"name a model folder or bundle with --start teacher=DIR$"):
        check_inputs(site.prepare())
    site.text = site.text.replace("none-such", "panc-ct-multitalent-v2")
    with pytest.raises(ModelError, match=r"DIR, or run `pantherseg weights fetch panc-ct-multitalent-v2`"):
        check_inputs(site.prepare())
    data = {"t1": site.folder / "t1", "more": site.folder / "more"}
    starts = {"teacher": site.folder / "t1"}
    with pytest.raises(
        ModelError, match=r"t1: expected one nnU-Net model folder or bundle with plans.json to start from, found none"
    ):
        check_inputs(site.prepare(inputs=Inputs(data=data, starts=starts)))


@pytest.mark.fault("training", "the weights to start from do not fit", "an error with tensors, before the first step")
def test_refuses_a_start_whose_weights_do_not_fit(
    phantoms: Site, demo_folder: ModelFolder, changed_model: ChangedModel
) -> None:
    site = phantoms
    site.text = site.text.replace(PLAN, 'start = "weights/other"\nplan = {}')
    weights = read_checkpoint(demo_folder.checkpoint_path("0")).weights
    name = next(name for name, value in weights.items() if value.ndim == 5)
    start = changed_model(network_weights=weights | {name: weights[name][:, :, :1]})
    data = {"t1": site.folder / "t1", "more": site.folder / "more"}
    with pytest.raises(ModelError, match=rf"expected weights of the network to train \({name} .*found 1 that differ"):
        check_inputs(site.prepare(inputs=Inputs(data=data, starts={"teacher": start})))
    check_inputs(site.prepare(inputs=Inputs(data=data, starts={"teacher": demo_folder.path})))


@pytest.mark.fault("training", "a stage crops, and no folder with a localizer is given", "an error before any step")
def test_refuses_crops_without_a_localizer(phantoms: Site) -> None:
    site = phantoms
    site.text = site.text.replace('start = "teacher"', 'start = "teacher"\ncrop = { task = 2 }')
    with pytest.raises(ModelError, match=r"localizer: expected a folder of models to crop the cases by, found none"):
        check_inputs(site.prepare())


@pytest.mark.fault("training", "the disk is too small for the data", "an error before the first step")
def test_refuses_a_disk_that_is_too_small(phantoms: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site = phantoms
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        OutputError, match=r"out: expected about .* GB for imported and preprocessed cases and for checkpoints, found 0"
    ):
        check_inputs(site.prepare())


@pytest.mark.fault("training", "an option names a data set or stage that there is not", "an error that lists them")
def test_refuses_an_option_for_a_name_that_there_is_not(site: Site) -> None:
    graph, out = site.prepare().graph, site.folder / "out"
    with pytest.raises(RecipeError, match="--data: expected one of t1, more, found t2"):
        check_names(graph, Inputs(data={"t2": site.folder}), out)
    for stage in ("t1", "student"):  # a stage that starts from another stage takes no weights from outside
        with pytest.raises(RecipeError, match="--start: no stage of the training file starts from published"):
            check_names(graph, Inputs(starts={stage: site.folder}), out)


def test_several_devices_run_the_folds_of_a_stage_beside_each_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are replaced by a script that writes down what it was given."""
    log = site.folder / "log"
    script = f'printf "%s %s\\n" "$CUDA_VISIBLE_DEVICES" "$*" >> {log}; sleep 0.3'
    monkeypatch.setattr(
        "pantherseg.training.run.command", lambda training, name, device: ["sh", "-c", script, "sh", name, device]
    )
    run(site.prepare(stage="teacher"), ("cuda:0", "cuda:1"))
    lines = [line.split() for line in log.read_text().splitlines()]
    folds = [line for line in lines if line[1].startswith("validate")]
    # Which fold gets which device follows from the order of the threads.
    assert sorted(line[0] for line in folds) == ["0", "1"]
    assert sorted(line[1:] for line in folds) == [["validate.teacher.0", "cuda"], ["validate.teacher.1", "cuda"]]
    assert ["0", "data.teacher", "cuda"] in lines
    assert "bundle.teacher" in site.ran


@pytest.mark.fault("training", "one of two folds that run beside each other fails", "an error that names the step")
def test_a_fold_that_fails_in_its_process_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'test "$1" != validate.teacher.1'
    monkeypatch.setattr(
        "pantherseg.training.run.command", lambda training, name, device: ["sh", "-c", script, "sh", name]
    )
    with pytest.raises(PantherSegError, match=r"validate.teacher.1: this step failed with exit code 1"):
        run(site.prepare(stage="teacher"), ("cuda:0", "cuda:1"))
    assert "bundle.teacher" not in site.ran


def test_records_say_what_was_read_and_how_long_it_took(site: Site) -> None:
    site.run()
    record = json.loads((site.folder / "out/state/import.t1.json").read_text())
    assert record["outside"].keys() == {"data/t1"}
    assert record["settings"]["layout"] == "panther"
    assert record["seconds"] >= 0
    assert not list((site.folder / "out/state").glob("*.started.json"))
