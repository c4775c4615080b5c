"""The scripts at the root: usage, and model archives that depend on nothing but the files."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pantherseg.house import ROOT

SCRIPTS = ["do_build.sh", "do_test_run.sh", "do_save.sh"]


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / script, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_from_any_folder(script: str, tmp_path: Path) -> None:
    result = run(script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: ./{script} ")
    assert "task1|task2|all" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["task3"], "task3: expected an option above"),
        (["--tag"], "--tag: expected a value, found nothing"),
        (["--tag", "x"], "--tag: expected one task beside it, found all"),
        (["--tag", "Big", "task1"], "--tag: expected lower case, as Docker asks for, found Big"),
        (["--model", "/nowhere", "task1"], "--model: expected a folder, found /nowhere"),
    ],
)
def test_wrong_usage_ends_with_2_and_its_reason(script: str, arguments: list[str], reason: str, tmp_path: Path) -> None:
    result = run(script, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: {reason}"


@pytest.mark.parametrize("script", [*SCRIPTS, "test/docker_engine.sh", ".ci/run", "weights/demo/make.sh"])
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        ["shellcheck", "--external-sources", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout + result.stderr == ""


def pack(task: str, weights: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = f'source scripts/containers.sh; weights="{weights}"; pack_model {task} "{target}"'
    return subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_model_archive_has_the_same_bytes_for_the_same_models(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, umask in ((first, 0o022), (second, 0o077)):
        before = os.umask(umask)
        shutil.copytree(ROOT / "weights" / "demo", folder, copy_function=shutil.copyfile)
        os.umask(before)
    os.utime(second / "task2" / "plans.json", (0, 1))
    (second / "task2" / "training.json").write_bytes(b"not a model's file")
    digests = set()
    for folder in (first, second):
        target = tmp_path / f"{folder.name}.tar.gz"
        assert pack("task2", folder, target).returncode == 0
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1
    with tarfile.open(tmp_path / "first.tar.gz") as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert {name.split("/")[0] for name in names} == {"task2", "localizer"}
    assert sum(name.endswith(".safetensors") for name in names) == 6
    assert all(member.isfile() and member.mode == 0o644 and member.uid == 0 for member in members)


def test_a_folder_without_the_tasks_models_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    result = pack("task1", tmp_path / "weights", tmp_path / "model.tar.gz")
    assert result.returncode == 1
    assert "expected one bundle or nnU-Net model folder" in result.stderr
    assert not (tmp_path / "model.tar.gz").exists()
