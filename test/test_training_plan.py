"""The plan of a training before it runs: sizes, memory and hours; and the command line and the cluster."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench.training_steps import measure
from click.testing import CliRunner
from torch import nn

from pantherseg.cli.train import train
from pantherseg.errors import DeviceError, OutputError, PantherSegError
from pantherseg.labels import LABEL_MAPS
from pantherseg.paths import ROOT
from pantherseg.training.actions import ACTIONS
from pantherseg.training.check import check_memory
from pantherseg.training.cluster import submit
from pantherseg.training.estimate import Cost, cost_of, measured_speed, speed_in_table
from pantherseg.training.graph import load_training_file
from pantherseg.training.plan_table import plan_table
from pantherseg.training.run import Training, prepare
from pantherseg.training.trainers import TRAINERS, NnunetTrainer
from pantherseg.training.training_recipe import ScheduleSettings
from pantherseg.training.workspace import Inputs, Workspace
from test_lightning_recipe import STAGE as LIGHTNING
from test_training_graph import NOISY_STUDENT


def planned(folder: Path, text: str = NOISY_STUDENT) -> Training:
    (folder / "training.toml").write_text(text)
    for name in ("t1_0000.mha", "t1.mha"):
        path = folder / "t1" / ("imagesTr" if "_" in name else "labelsTr") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    graph = load_training_file(folder / "training.toml")
    return prepare(folder / "training.toml", Workspace(graph, folder / "out", Inputs(data={"t1": folder / "t1"})))


@pytest.mark.parametrize("text", [NOISY_STUDENT, LIGHTNING], ids=["nnunet", "lightning"])
def test_says_where_the_patches_are_those_for_assumed_data(tmp_path: Path, text: str) -> None:
    printed = plan_table(planned(tmp_path, text), ["cpu"], measure=False)
    assert ("Patches of stages that are not planned yet" in printed) == (text == NOISY_STUDENT)


@pytest.mark.fault("training", "patches that no memory holds", "an error before the first step")
def test_refuses_patches_that_are_much_too_large(tmp_path: Path) -> None:
    check_memory(planned(tmp_path, LIGHTNING), ["cpu"])
    check_memory(planned(tmp_path, NOISY_STUDENT), ["cpu"])  # for the data that the file assumes
    large = planned(tmp_path, LIGHTNING.replace("[8, 16, 16]", "[4096, 2048, 2048]"))
    found = r"which trains on 2 patches of 4096x2048x2048 voxels \(z, y, x\), found .* GB; choose smaller patches"
    with pytest.raises(DeviceError, match=rf"^cpu: expected about .* GB of memory for stage first, {found}"):
        check_memory(large, ["cpu"])


def test_counts_the_features_and_operations_of_a_training_step() -> None:
    network = nn.Conv3d(1, 4, 3, padding=1, bias=False)
    cost = cost_of(network, (8, 8, 8), 2)
    voxels, weights = 2 * 8**3, 4 * 27
    assert cost.weights == weights
    forward = 2 * voxels * weights
    assert cost.operations == 2 * forward, "the forward pass, and the gradients of the weights"
    assert cost.activations >= 4 * voxels * 4, "the features of the forward pass, in bytes"
    schedule = ScheduleSettings(epochs=10, iterations=100, validation_iterations=30)
    assert cost.seconds(schedule, 1e6) == pytest.approx(10 * 110 * cost.operations / 1e6)
    assert cost.memory(schedule, "cuda") < cost.memory(schedule, "cpu")


def test_a_second_convolution_also_needs_the_gradients_of_its_input() -> None:
    two = cost_of(nn.Sequential(nn.Conv3d(1, 4, 1, bias=False), nn.Conv3d(4, 4, 1, bias=False)), (8, 8, 8), 1)
    first, second = 2 * 8**3 * 4, 2 * 8**3 * 16
    assert two.operations == 2 * first + 3 * second


@pytest.mark.slow
def test_measures_the_speed_of_this_machine() -> None:
    assert 1e8 < measured_speed("cpu") < 1e14
    assert speed_in_table("cuda") > speed_in_table("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "system", "expected"),
    [
        (1, "system_c", {"fold.teacher.0": ("48x160x224", "2", "1000"), "fold.task1.4": ("48x160x224", "2", "1600")}),
        (2, "system_a", {"fold.ct.0": ("192x192x192", "2", "1000"), "fold.task2.4": ("192x192x192", "2", "1000")}),
    ],
)
def test_a_dry_run_of_a_published_system_prints_memory_and_hours_without_data(
    tmp_path: Path, task: int, system: str, expected: dict[str, tuple[str, ...]]
) -> None:
    path = ROOT / f"Task{task}" / "training" / f"{system}.toml"
    options = [str(path), "--output", str(tmp_path), "--dry-run", "--devices", "cuda"]
    result = CliRunner().invoke(train, options, catch_exceptions=False)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line.startswith("fold")}
    for name, sizes in expected.items():
        *_, patch, batch, epochs, memory, hours = rows[name]
        assert (patch, batch, epochs) == sizes
        assert 6 < float(memory) < 30, "nnU-Net plans its sizes M and L for 8 to 24 GB"
        assert 5 < float(hours) < 100
    assert "(from a table)" in result.output
    assert ("its network is assumed to be nnU-Net's ResEncL" in result.output) == (system == "system_a")
    assert not list(tmp_path.iterdir()), "a dry run makes nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "t1"], "expected NAME=FOLDER once for each name, found 't1'"),
        (["--data", "t1=a", "--data", "t1=b"], "expected NAME=FOLDER once for each name, found 't1=b'"),
        (["--devices", "gpu"], "expected auto, cpu, cuda, or GPUs such as cuda:0,cuda:1, found 'gpu'"),
        (["--devices", "cuda:0,auto"], "expected auto, cpu, cuda"),
        (["--slurm", "partition"], "expected KEY=VALUE, found 'partition'"),
        (["--fold", "1"], "--fold needs --stage"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(train, ["training.toml", "--output", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


class Executor:
    """Stands for submitit's executor, and notes what is submitted."""

    submitted: list[tuple[dict[str, Any], list[str]]]

    def __init__(self, folder: Path, cluster: str) -> None:
        assert cluster == "slurm"
        assert folder.name == "%j"

    def update_parameters(self, **settings: Any) -> None:
        self._settings = settings

    def submit(self, command: list[str]) -> SimpleNamespace:
        self.submitted.append((self._settings, command))
        return SimpleNamespace(job_id=f"{100 + len(self.submitted)}")


def test_submits_every_step_after_the_jobs_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Executor.submitted = []
    module = SimpleNamespace(AutoExecutor=Executor, helpers=SimpleNamespace(CommandFunction=list))
    monkeypatch.setitem(sys.modules, "submitit", module)
    training = planned(tmp_path)
    jobs = submit(training, {"partition": "long", "gpus_per_node": "1", "timeout_min": "60"})
    assert list(jobs) == list(training.steps.by_name)
    by_name = {settings["name"]: (settings, command) for settings, command in Executor.submitted}
    settings, command = by_name["fold.student.0"]
    assert settings["slurm_gpus_per_node"] == 1
    assert settings["slurm_partition"] == "long"
    after = f"afterok:{jobs['plan.student']}:{jobs['fold.teacher.0']}"
    assert settings["slurm_additional_parameters"] == {"dependency": after, "kill-on-invalid-dep": "yes"}
    assert command[-4:] == ["--step", "fold.student.0", "--devices", "cuda"]
    assert f"t1={tmp_path / 't1'}" in command
    settings, command = by_name["plan.teacher"]
    assert "slurm_gpus_per_node" not in settings
    assert command[-1] == "cpu"
    assert "slurm_additional_parameters" not in by_name["import.t1"][0]


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """A training whose steps are submitted to a cluster that is not there, and stay in its queue."""
    Executor.submitted = []
    module = SimpleNamespace(AutoExecutor=Executor, helpers=SimpleNamespace(CommandFunction=list))
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    training = planned(tmp_path)
    jobs = submit(training, {"mail-user": "me", "dependency": "singleton", "gpus": "1", "mem_gb": "8"})
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\necho {' '.join(jobs.values())}\n")
    squeue.chmod(0o755)
    return training


def test_settings_that_submitit_does_not_know_go_to_sbatch(submitted: Training) -> None:
    by_name = {settings["name"]: settings for settings, _ in Executor.submitted}
    more = by_name["fold.teacher.0"]["slurm_additional_parameters"]
    after = more.pop("dependency")
    assert after.startswith("singleton,afterok:")
    assert more == {"mail-user": "me", "gpus": 1, "kill-on-invalid-dep": "yes"}
    assert by_name["import.t1"]["slurm_additional_parameters"] == {"mail-user": "me", "dependency": "singleton"}
    assert by_name["import.t1"]["slurm_mem_gb"] == 8


def test_steps_whose_jobs_are_there_are_not_submitted_again(submitted: Training, tmp_path: Path) -> None:
    before = len(Executor.submitted)
    jobs = submit(submitted, {})
    assert len(Executor.submitted) == before
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
    again = submit(submitted, {})
    assert len(Executor.submitted) == 2 * before
    assert set(jobs.values()).isdisjoint(again.values())


@pytest.mark.fault("training", "jobs for other settings are still in the queue", "an error that says how to end them")
def test_refuses_to_submit_beside_jobs_with_other_settings(submitted: Training, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"job \d+ still runs .* with other settings or data; end it with `scancel"):
        submit(planned(tmp_path, NOISY_STUDENT.replace("epochs = 3", "epochs = 4")), {})


def test_several_devices_share_the_folds_of_one_stage_alone(tmp_path: Path) -> None:
    longer = NOISY_STUDENT.replace("epochs = 3", "epochs = 30000").replace("epochs = 2", "epochs = 20000")
    text = plan_table(planned(tmp_path, longer), ("cuda:0", "cuda:1", "cuda:2"), measure=False)
    rows = {line.split()[0]: float(line.split()[-1]) for line in text.splitlines() if line.startswith("fold")}
    total, beside = map(float, re.findall(r"([\d.]+) (?:hours on one GPU|on 3,)", text))
    assert total == pytest.approx(sum(rows.values()), abs=0.03)
    assert beside == pytest.approx(rows["fold.teacher.0"] + rows["fold.student.0"], abs=0.02)


def test_hours_have_no_more_digits_than_an_estimate_knows(tmp_path: Path) -> None:
    longer = NOISY_STUDENT.replace("epochs = 3", "epochs = 30000000").replace("epochs = 2", "epochs = 500000")
    text = plan_table(planned(tmp_path, longer), ("cuda",), measure=False)
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.startswith("fold")}
    assert re.fullmatch(r"\d{4}", rows["fold.teacher.0"])
    assert re.fullmatch(r"\d\d\.\d", rows["fold.student.0"])
    assert re.search(r"Expected training: \d{4} hours", text)


def test_folds_that_share_a_device_do_not_make_it_faster(tmp_path: Path) -> None:
    text = plan_table(planned(tmp_path), ("cuda:0", "cuda:0"), measure=False)
    assert "run together" not in text


def test_checkpoints_need_room_on_the_disk() -> None:
    cost = Cost(activations=0, weights=1000, operations=0)
    assert cost.disk(ScheduleSettings()) == 3 * 4 * 2 * 1000, "three files with the weights and the momentum"


@pytest.mark.fault("training", "submitit is not installed", "an error that says how to install it")
def test_says_what_a_cluster_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(PantherSegError, match=r"slurm: expected the package submitit"):
        submit(planned(tmp_path), {})


def test_a_stage_chooses_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    class Recorder(NnunetTrainer):
        def plan(self, folders: Any, stage: Any, *, kept: Any) -> dict[str, Any]:
            called.append(("plan", folders.name, kept))
            return {"spacing": [1.0, 1.0, 1.0]}

        def train(self, folders: Any, stage: Any, *, fold: int, start: Any, device: str) -> None:
            called.append(("train", stage.schedule.epochs, fold, device))

    monkeypatch.setitem(TRAINERS, "recorder", Recorder())
    training = planned(tmp_path, re.sub(r"(epochs = \d })", r'\1\ntrainer = "recorder"', NOISY_STUDENT))
    dataset = training.work.dataset("teacher")
    dataset.mkdir(parents=True)
    for name in ("dataset.json", "splits_final.json"):
        (dataset / name).touch()
    for name in ("plan.teacher", "fold.teacher.1"):
        step = training.steps.by_name[name]
        ACTIONS[step.kind](training.work, step, "cpu")
    assert called == [("plan", "Dataset003_teacher", None), ("train", 3, 1, "cpu")]


@pytest.mark.parametrize(
    ("system", "stage"),
    [
        pytest.param("system_a", "ct", marks=pytest.mark.full, id="ResEncL"),
        pytest.param("system_c", "task2", marks=pytest.mark.slow, id="ResEncM"),
    ],
)
def test_steps_of_a_published_training_run_with_the_smallest_patch(tmp_path: Path, system: str, stage: str) -> None:
    (row,) = measure("cpu", 2, smallest=True, only=f"{system} {stage}", root=tmp_path)
    assert np.isfinite(row["losses"]).tolist() == [True, True]
    learned = load_training_file(ROOT / "Task2" / "training" / f"{system}.toml").stage[stage].labels
    assert row["output"] == (row["batch"], len(LABEL_MAPS[learned]), *row["patch"])
    assert row["changed_weights"] > 0.9
