"""The scripts in the project's root: usage, and model archives whose bytes depend only on the models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pantherseg.paths import DEMO_WEIGHTS, ROOT

SCRIPTS = ["do_build.sh", "do_test_run.sh", "do_save.sh"]


def run_script(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_works_from_any_folder(script: str, tmp_path: Path) -> None:
    result = run_script(ROOT / script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: ./{script} ")
    assert "task1|task2|all" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["task3"], "task3: expected an option above"),
        (["--tag"], "--tag: expected a value, found nothing"),
        (["--tag", "x"], "--tag: expected a single task, found all"),
        (["--tag", "Big", "task1"], "--tag: expected lower case, which Docker requires, found Big"),
        (["--model", "/nowhere", "task1"], "--model: expected a folder, found /nowhere"),
        (["--runtime", "gpu"], "--runtime: expected cuda or cpu, found gpu"),
        (["--api", "serve"], "--api: expected exec or invoke, found serve"),
        (["--recipe", "system_a_task1"], "--recipe: expected a single task, found all"),
        (["--recipe", "x", "task1"], "--recipe: expected a file or the name of a shipped recipe, found x"),
        (
            ["--recipe", "system_a_task2", "task1"],
            "--recipe: expected a recipe with the input socket of task1, found Task2/recipes/system_a_task2.toml",
        ),
    ],
)
def test_wrong_usage_exits_with_2_and_the_reason(
    script: str, arguments: list[str], reason: str, tmp_path: Path
) -> None:
    result = run_script(ROOT / script, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: {reason}"


def test_a_native_run_refuses_the_contract_for_which_it_needs_an_image() -> None:
    result = run_script(ROOT / "do_test_run.sh", "--native", "--api", "invoke", cwd=ROOT)
    assert result.returncode == 2
    reason = "error: --api invoke: expected a Docker engine, because only an image is run in this way"
    assert result.stderr.splitlines()[-1] == reason


@pytest.mark.parametrize("script", [*SCRIPTS, "test/docker_engine.sh", ".ci/run", "weights/demo/make.sh"])
def test_shellcheck_finds_no_problem(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    result = run_script("shellcheck", "--external-sources", script, cwd=ROOT)
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ("", "pantherseg-task1"),
        ("runtime=cpu", "pantherseg-task1-cpu"),
        ("api=invoke", "pantherseg-task1-invoke"),
        ("runtime=cpu api=invoke", "pantherseg-task1-cpu-invoke"),
        ("api=invoke tag=mine:1", "mine:1"),
        ("recipe_name=system_a_task1", "pantherseg-system_a_task1"),
        ("runtime=cpu api=invoke recipe_name=system_a_task1", "pantherseg-system_a_task1-cpu-invoke"),
    ],
)
def test_names_images_by_runtime_and_contract(settings: str, image: str) -> None:
    command = f"source scripts/containers.sh; {settings or ':'}; image_of task1"
    assert run_script("bash", "-euc", command, cwd=ROOT).stdout == f"{image}\n"


def pack(task: str, weights: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = f'source scripts/containers.sh; weights="{weights}"; pack_model {task} "{target}"'
    return run_script("bash", "-euc", command, cwd=ROOT)


@pytest.mark.slow
def test_model_archives_of_the_same_models_have_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, umask in ((first, 0o022), (second, 0o077)):
        before = os.umask(umask)
        shutil.copytree(ROOT / "weights" / "demo", folder, copy_function=shutil.copyfile)
        os.umask(before)
    os.utime(second / "task2" / "plans.json", (0, 1))
    (second / "task2" / "notes.txt").write_bytes(b"not part of the model")
    digests = set()
    for folder in (first, second):
        target = tmp_path / f"{folder.name}.tar.gz"
        assert pack("task2", folder, target).returncode == 0
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1
    with tarfile.open(tmp_path / "first.tar.gz") as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert {name.split("/")[0] for name in names} == {"calibration.json", "task2", "localizer"}
    assert sum(name.endswith(".safetensors") for name in names) == 6
    assert all(member.isfile() and member.mode == 0o644 and member.uid == 0 for member in members)


def test_refuses_a_folder_without_the_models_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    result = pack("task1", tmp_path / "weights", tmp_path / "model.tar.gz")
    assert result.returncode == 1
    assert "expected one bundle or nnU-Net model folder" in result.stderr
    assert not (tmp_path / "model.tar.gz").exists()


ENGINE = """#!/bin/sh
# Acts as a Docker engine that has every image, all of them for exec, and logs its arguments.
echo "$*" >>"{log}"
case "$*" in
  save*) echo image ;;
  image*Labels*) echo exec ;;
  image*) echo sha256:0123 ;;
esac
case $1 in
  run) while [ "$1" != -m ]; do shift; done && exec "{python}" "$@" ;;
esac
"""
COMMAND = """#!/bin/sh
exec "{python}" -m pantherseg "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the scripts and some models, with a .venv and a fake Docker engine."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "do_save.sh", folder)
    ignored = shutil.ignore_patterns("make.sh", "*.md", "*.toml")
    shutil.copytree(DEMO_WEIGHTS, folder / "weights" / "own", ignore=ignored)
    for path, text in (
        (tmp_path / "bin" / "docker", ENGINE.format(log=tmp_path / "received", python=sys.executable)),
        (folder / ".venv" / "bin" / "pantherseg", COMMAND.format(python=sys.executable)),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    return folder


RECIPE_BUILD = """
docker() {{
  printf 'docker %s\\n' "$*" >>"{log}"
  [[ ${{!#}} == . ]] || cat "${{!#}}"/* >>"{log}"
}}
source scripts/containers.sh
parse_shared_arguments --runtime cpu --recipe {recipe} task1
build_image task1
"""


@pytest.mark.parametrize("recipe", ["system_c_task1", "Task1/recipes/system_c_task1.toml"])
def test_a_recipe_is_one_more_layer_on_the_image_of_its_task(recipe: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = RECIPE_BUILD.format(log=log, recipe=recipe)
    result = run_script("bash", "-euc", script, cwd=ROOT, TMPDIR=str(tmp_path), DOCKER_BUILD_OPTIONS="")
    assert result.returncode == 0, result.stderr
    first, second, base, copy, *content = log.read_text().splitlines()
    assert first.endswith("--file Dockerfile.task1 --tag pantherseg-task1-cpu .")
    assert second.startswith("docker build --tag pantherseg-system_c_task1-cpu ")
    assert (base, copy) == ("FROM pantherseg-task1-cpu", "COPY recipe.toml /opt/pantherseg/Task1/recipe.toml")
    assert content == (ROOT / "Task1" / "recipes" / "system_c_task1.toml").read_text().splitlines()
    assert list(tmp_path.iterdir()) == [log]


def save(checkout: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run do_save.sh. Return its result and the commands that the Docker engine received."""
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    result = run_script(checkout / "do_save.sh", *arguments, cwd=checkout, PATH=path)
    return result, (checkout.parent / "received").read_text()


@pytest.mark.slow
def test_saves_the_models_of_the_user(checkout: Path) -> None:
    result, received = save(checkout)
    assert result.returncode == 0, result.stderr
    names = ("pantherseg-task1", "pantherseg-task2")
    assert sorted(path.name for path in (checkout / "build").iterdir()) == sorted(
        f"{name}{suffix}" for name in names for suffix in (".tar.gz", "-model.tar.gz", ".cdx.json")
    )
    for name in names:
        contents = json.loads((checkout / "build" / f"{name}.cdx.json").read_text())
        assert contents["metadata"]["component"]["name"] == name
        assert contents["metadata"]["component"]["properties"][0]["value"] == "sha256:0123"
    with tarfile.open(checkout / "build" / "pantherseg-task2-model.tar.gz") as archive:
        assert {name.split("/")[0] for name in archive.getnames()} == {"calibration.json", "task2", "localizer"}
    assert [line for line in received.splitlines() if line.startswith("save")] == [f"save {name}" for name in names]


@pytest.mark.slow
def test_refuses_to_save_an_image_for_the_other_contract(checkout: Path) -> None:
    result, received = save(checkout, "--tag", "mine", "--api", "invoke", "task1")
    assert result.returncode == 1
    reason = "error: mine: expected an image for invoke, found one for exec; give another --tag or --api"
    assert result.stderr.splitlines()[-1] == reason
    assert "\nsave" not in received
    assert list((checkout / "build").iterdir()) == []


def with_a_damaged_fold(models: Path) -> None:
    path = models / "task2" / "fold_3.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def with_another_model_as_localizer(models: Path) -> None:
    shutil.rmtree(models / "localizer")
    shutil.copytree(models / "task1", models / "localizer")


def without_models(models: Path) -> None:
    shutil.rmtree(models / "task2")
    (models / "task2").mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (with_a_damaged_fold, "task2/fold_3.safetensors: expected SHA-256"),
        (with_another_model_as_localizer, "localizer: expected label between 1 and 2, found 7"),
        (without_models, "weights/own: expected one bundle or nnU-Net model folder"),
    ],
)
@pytest.mark.slow
def test_refuses_faulty_models_before_it_saves_an_image(
    checkout: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(checkout / "weights" / "own")
    result, received = save(checkout)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: weights/own")
    assert reason in line
    assert "save" not in received
    assert list((checkout / "build").iterdir()) == []
