"""The built images: what the platform asks of them, and how they end when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pantherseg.house import DEMO_WEIGHTS, ROOT

pytestmark = pytest.mark.docker
TASKS = ["task1", "task2"]


def docker(*arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout)


@pytest.fixture(params=TASKS)
def image(request: pytest.FixtureRequest) -> str:
    return built(request.param)


def built(task: str) -> str:
    name = f"pantherseg-{task}"
    if shutil.which("docker") is None or docker("image", "inspect", name).returncode:
        pytest.skip(f"no Docker engine answers, or ./do_build.sh has not built {name}")
    return name


def described(image: str) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(docker("image", "inspect", image).stdout)[0]
    return description


def test_the_image_is_what_the_platform_takes(image: str) -> None:
    description = described(image)
    config = description["Config"]
    assert description["Architecture"] == "amd64"
    assert config["User"] not in ("", "0", "root")
    assert not config.get("Volumes")
    assert config["Entrypoint"] == ["/opt/venv/bin/python", f"/opt/pantherseg/Task{image[-1]}/inference.py"]
    command = f'getent passwd {config["User"]} && test "$(id -u)" -ne 0 && touch "$HOME/x" && test ! -w /opt/venv'
    result = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", command)
    assert result.returncode == 0, result.stderr


def test_both_tasks_share_the_layers_below_the_code() -> None:
    layers = [described(built(task))["RootFS"]["Layers"] for task in TASKS]
    shared = [one for one, other in zip(*layers, strict=True) if one == other]
    assert len(layers[0]) - len(shared) == 1, "only the layer with the task's recipe differs"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A copy of Task 1's sample job with folders for the output and the model, open to any user."""
    shutil.copytree(ROOT / "test" / "input" / "task1", tmp_path / "input")
    for name in ("output", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    return tmp_path


def volume_of(job: Path) -> Path:
    return next((job / "input" / "images" / "abdominal-t1-mri").glob("*.mha"))


def truncate(job: Path) -> None:
    volume_of(job).write_bytes(volume_of(job).read_bytes()[:2000])


def second_volume(job: Path) -> None:
    (job / "input" / "inputs.json").unlink()
    shutil.copy(volume_of(job), volume_of(job).with_name("second.mha"))


def no_model(job: Path) -> None:
    (job / "model" / "readme.txt").write_text("not a model")


def corrupt_model(job: Path) -> None:
    shutil.copytree(DEMO_WEIGHTS / "task1", job / "model" / "task1")
    path = job / "model" / "task1" / "fold_3" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-5000])


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "bytes of compressed voxels, found 1422"),
    (second_volume, "expected exactly one volume"),
    (no_model, "expected one nnU-Net model folder"),
    (corrupt_model, "fold_3/checkpoint_final.pth: expected an nnU-Net checkpoint"),
]


def run_job(job: Path, *, output_mode: str = "rw") -> subprocess.CompletedProcess[str]:
    mounts = (f"{job}/input:/input:ro", f"{job}/output:/output:{output_mode}", f"{job}/model:/opt/ml/model:ro")
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    return docker("run", "--rm", "--network", "none", *volumes, built("task1"))


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "reason"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_ends_with_its_reason_and_without_a_result(
    job: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(job)
    result = run_job(job)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("error: ")
    assert reason in last
    assert list((job / "output").rglob("*")) == []


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_named(job: Path) -> None:
    result = run_job(job, output_mode="ro")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: /output")
