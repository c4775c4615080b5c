"""The built images: the platform's rules for them, and how a run ends when something is wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bench.published_layouts import SYSTEMS, System
from bench.unpack import unpack

from conftest import valid_report
from pantherseg import __version__
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.models.bundle import open_bundle
from pantherseg.packing.pack import pack
from pantherseg.paths import DEMO_WEIGHTS, ROOT
from shim.image import built

pytestmark = pytest.mark.docker
TASKS = ["task1", "task2"]
RUNTIMES = ["", "-cpu"]
CONTRACTS = ["", "-invoke"]
EVERY_IMAGE = pytest.mark.parametrize("name", [t + r + c for c in CONTRACTS for r in RUNTIMES for t in TASKS])


def docker(*arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout)


@EVERY_IMAGE
def test_runs_the_tasks_entry_point_as_an_ordinary_user(name: str) -> None:
    image = built(name)
    config = image["Config"]
    assert image["Architecture"] == "amd64"
    assert not config.get("Volumes")
    assert config["Entrypoint"] == ["/opt/venv/bin/python", f"/opt/pantherseg/Task{name[4]}/inference.py"]
    method = config["Labels"]["org.grand-challenge.api-method"]
    assert (config["Cmd"], method) == ((["--serve"], "invoke") if name.endswith("-invoke") else (None, "exec"))
    command = f'getent passwd {config["User"]} && test "$(id -u)" -ne 0 && touch "$HOME/x" && test ! -w /opt/venv'
    result = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image["Id"], "-c", command)
    assert result.returncode == 0, result.stderr


@EVERY_IMAGE
def test_describes_itself_in_labels(name: str) -> None:
    prefixed = built(name)["Config"]["Labels"]
    labels = {label.removeprefix("org.opencontainers.image."): value for label, value in prefixed.items()}
    runtime = "cpu" if "-cpu" in name else "cuda"
    assert labels["title"] == f"pantherseg, Task {name[4]}, {runtime}"
    assert "Not for clinical use" in labels["description"]
    assert (labels["licenses"], labels["version"]) == ("Apache-2.0", __version__)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["revision"])
    assert re.fullmatch(r"https://\S+|unknown", labels["source"])
    assert ("created" in labels) == (len(labels["revision"]) == 40)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_both_tasks_share_the_layers_below_the_code(runtime: str) -> None:
    layers = [built(task + runtime)["RootFS"]["Layers"] for task in TASKS]
    shared = [one for one, other in zip(*layers, strict=True) if one == other]
    assert len(layers[0]) - len(shared) == 1, "only the layer with the task's recipe differs"


@EVERY_IMAGE
def test_both_contracts_have_the_same_layers(name: str) -> None:
    assert built(name)["RootFS"] == built(name.removesuffix("-invoke"))["RootFS"]


def test_the_small_image_has_no_torch() -> None:
    command = "from importlib.util import find_spec; print(*map(find_spec, ('torch', 'nnunetv2', 'matplotlib')))"
    result = docker(
        "run", "--rm", "--network", "none", "--entrypoint", "python", built("task1-cpu")["Id"], "-c", command
    )
    assert result.stdout == "None None None\n"


def test_a_case_may_take_the_memory_of_its_container() -> None:
    command = "from pantherseg.machine.memory import room_bytes; print(room_bytes() >> 20)"
    options = ["--rm", "--network", "none", "--memory", "700m", "--entrypoint", "python"]
    result = docker("run", *options, built("task1-cpu")["Id"], "-c", command)
    assert 600 < int(result.stdout) < 700, result.stderr


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A copy of Task 1's sample job with folders for the output and the model, writable for any user."""
    shutil.copytree(ROOT / "test" / "input" / "task1", tmp_path / "input")
    for name in ("output", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    return tmp_path


def volume_of(job: Path) -> Path:
    return next((job / "input" / "images" / "abdominal-t1-mri").glob("*.mha"))


def volume_cut_short(job: Path) -> None:
    volume_of(job).write_bytes(volume_of(job).read_bytes()[:2000])


def second_volume(job: Path) -> None:
    (job / "input" / "inputs.json").unlink()
    shutil.copy(volume_of(job), volume_of(job).with_name("second.mha"))


def file_that_is_not_a_model(job: Path) -> None:
    (job / "model" / "readme.txt").write_text("not a model")


def three_folds_damaged(job: Path) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task1", job / "model" / "task1")
    for fold in (1, 2, 3):
        truncate_fold(job, fold)


def truncate_fold(job: Path, fold: int) -> None:
    path = job / "model" / "task1" / f"fold_{fold}.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])


def raw_checkpoint_damaged(job: Path) -> None:
    folder = unpack(open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1]), job / "model" / "task1")
    path = folder.checkpoint_path("1")
    path.write_bytes(path.read_bytes()[:-5000])


# Damage to a job, and the reason in the last line of stderr; another one without torch where that differs.
FAULTS: list[tuple[Callable[[Path], None], str, str]] = [
    (volume_cut_short, "compressed bytes, found 1422 bytes", ""),
    (second_volume, "expected exactly one volume", ""),
    (file_that_is_not_a_model, "expected one bundle or nnU-Net model folder", ""),
    (three_folds_damaged, "task1/fold_1.safetensors: expected", ""),
    (raw_checkpoint_damaged, "fold_1/checkpoint_final.pth: expected an nnU-Net checkpoint", "run `pantherseg pack"),
]


def run_job(job: Path, *, runtime: str = "", output_mode: str = "rw") -> subprocess.CompletedProcess[str]:
    mounts = (f"{job}/input:/input:ro", f"{job}/output:/output:{output_mode}", f"{job}/model:/opt/ml/model:ro")
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    return docker("run", "--rm", "--network", "none", *volumes, built(f"task1{runtime}")["Id"])


@pytest.mark.fault("platform", "one fold damaged, image pantherseg-task1-cpu", "a mask, and an event")
@pytest.mark.slow
def test_leaves_a_damaged_fold_out(job: Path) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task1", job / "model" / "task1")
    truncate_fold(job, 3)
    result = run_job(job, runtime="-cpu")
    assert result.returncode == 0, result.stderr
    report = valid_report(job / "output" / "results.json")
    assert [event["code"] for event in report["events"]] == ["fold_left_out"]
    assert "fold_3.safetensors" in report["events"][0]["message"]
    assert len(list((job / "output" / "images").rglob("*.mha"))) == 1


@pytest.mark.fault(
    "platform",
    "the sample volume of Task 1 stored in the order RAS, image pantherseg-task1-cpu",
    "the mask of the sample, stored in the same order",
)
@pytest.mark.slow
def test_a_volume_in_another_voxel_order_gets_the_same_mask(job: Path) -> None:
    assert run_job(job, runtime="-cpu").returncode == 0
    mask = next((job / "output" / "images").rglob("*.mha"))
    expected = read_labels(mask)
    assert expected.array.any()
    volume, _ = read_image(volume_of(job))
    write_volume(volume.turned_to("RAS"), volume_of(job))
    result = run_job(job, runtime="-cpu")
    assert result.returncode == 0, result.stderr
    assert valid_report(job / "output" / "results.json")["events"] == []
    found = read_labels(mask)
    assert found.grid.orientation == "RAS"
    np.testing.assert_array_equal(found.turned_to("LPS").array, expected.array)


@pytest.mark.fault("platform", "{damage}, image pantherseg-task1{runtime}", "an error that names it, and no result")
@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("damage", "reason", "without_torch"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_ends_with_the_reason_and_without_a_result(
    job: Path, damage: Callable[[Path], None], reason: str, without_torch: str, runtime: str
) -> None:
    damage(job)
    result = run_job(job, runtime=runtime)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("error: ")
    assert (without_torch if runtime and without_torch else reason) in last
    assert list((job / "output").rglob("*")) == []


@pytest.mark.slow
def test_packs_a_raw_model_folder_where_torch_is_installed(job: Path) -> None:
    masks = []
    for provide in (
        lambda role: unpack(open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1]), role),
        lambda role: pack(unpack(open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1]), job / "raw"), role),
    ):
        shutil.rmtree(job / "model" / "task1", ignore_errors=True)
        provide(job / "model" / "task1")
        result = run_job(job)
        assert result.returncode == 0, result.stderr
        masks.append(next((job / "output").rglob("*.mha")).read_bytes())
    assert masks[0] == masks[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", [one for one in SYSTEMS if one.recipe in ("system_a_task1", "system_c_task2", "rank2_task2")], ids=str
)
def test_an_image_with_the_recipe_of_a_system_runs_the_published_layout(system: System, tmp_path: Path) -> None:
    built(f"task{system.task}")
    system.write(tmp_path / "models")
    command = [ROOT / "do_test_run.sh", "--recipe", system.recipe, "--model", tmp_path / "models", f"task{system.task}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "BROKEN" not in result.stdout
    report = valid_report(ROOT / "test" / "output" / f"task{system.task}" / "results.json")
    assert report["recipe"] == system.recipe
    members = [model for model in report["models"] if model["role"] == "member"]
    assert tuple(fold for model in members for fold in model["folds"]) == system.folds


def interruptible() -> None:
    """Let Ctrl-C end a command, even where a shell started these tests in the background and made them ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contract", "moment"),
    [("exec", "== packing the models"), ("exec", "models "), ("invoke", "GET /health: 200")],
    ids=["packing", "networks", "server"],
)
def test_leaves_no_container_and_no_files_behind_after_ctrl_c(tmp_path: Path, contract: str, moment: str) -> None:
    built("task1-cpu-invoke" if contract == "invoke" else "task1-cpu")
    run = subprocess.Popen(
        [ROOT / "do_test_run.sh", "--no-build", "--runtime", "cpu", "--api", contract, "task1"],
        start_new_session=True,
        preexec_fn=interruptible,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert run.stdout is not None
    seen = [""]
    while not seen[-1].startswith(moment):
        seen.append(run.stdout.readline())
        assert seen[-1], f"the script has ended: {seen}"
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode == 130
    assert docker("ps", "--all", "--quiet", "--filter", "name=pantherseg-test-").stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("platform", "the output folder is read-only, image pantherseg-task1", "an error that names it")
@pytest.mark.slow
def test_names_an_output_folder_that_cannot_be_written(job: Path) -> None:
    result = run_job(job, output_mode="ro")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: /output")
