"""The wheel and the source distribution contain all that a prediction needs outside a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from pantherseg import PantherSegError, paths
from pantherseg.io import read_labels, write_volume
from pantherseg.phantom import make_phantom
from pantherseg.weights import load_zoo

pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]
Build = Callable[[str, Path], Path]


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a `sdist`, `wheel` or `editable` of a source tree; skip the test if there is no build backend."""
    backend = tmp_path_factory.mktemp("backend")
    requires = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    if find_spec("hatchling") is None:
        done = run(*PIP, "--target", backend, *requires, cwd=backend)
        if done.returncode != 0:
            pytest.skip(f"the build backend cannot be installed: {(done.stderr.splitlines() or [''])[-1]}")

    def make(kind: str, source: Path) -> Path:
        target = tmp_path_factory.mktemp(kind)
        script = f"from hatchling.build import build_{kind}; build_{kind}({str(target)!r})"
        done = run(sys.executable, "-c", script, cwd=source, PYTHONPATH=str(backend))
        assert done.returncode == 0, done.stderr
        (made,) = target.iterdir()
        return made

    return make


@pytest.fixture(scope="module")
def wheel(build: Build) -> Path:
    return build("wheel", paths.ROOT)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an otherwise empty folder where the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    done = run(*PIP, "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_of_the_source_distribution_is_the_same(build: Build, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", paths.ROOT)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert contents(build("wheel", source)) == contents(wheel)


def test_the_wheel_contains_every_shipped_recipe_and_those_that_the_list_of_weights_names(wheel: Path) -> None:
    names = contents(wheel).keys()
    recipes = {entry.recipe for entry in load_zoo(paths.ZOO) if entry.recipe}
    assert recipes
    recipes |= {path.relative_to(paths.ROOT).as_posix() for path in paths.shipped_recipes().values()}
    assert {f"pantherseg/data/{recipe}" for recipe in recipes} <= names
    assert "pantherseg/py.typed" in names


def test_the_wheel_contains_the_files_of_a_page_and_the_licences_of_the_viewer(wheel: Path) -> None:
    page = paths.PACKAGE / "report" / "page"
    files = {path.relative_to(page).as_posix(): path.read_bytes() for path in page.rglob("*") if path.is_file()}
    assert {"report.html.jinja", "page.css", "niivue/niivue.umd.js.gz", "niivue/LICENSES.txt"} <= files.keys()
    packed = contents(wheel)
    assert {name: packed[f"pantherseg/report/page/{name}"] for name in files} == files


def test_an_editable_wheel_contains_no_copy_of_the_package(build: Build) -> None:
    assert not [name for name in contents(build("editable", paths.ROOT)) if name.startswith("pantherseg/")]


def test_the_installed_package_finds_the_training_files_of_the_published_systems(
    installed: Path, tmp_path: Path
) -> None:
    command = ["-m", "pantherseg", "train", "Task2/training/system_c.toml", "--output", "out", "--stage", "none"]
    done = run(sys.executable, *command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "--stage: expected one of student, task1, task2, teacher, found none" in done.stderr


@pytest.mark.parametrize("task", [1, 2])
def test_the_installed_package_segments_a_volume(installed: Path, tmp_path: Path, task: int) -> None:
    image = make_phantom(5000 + task, task=task, size="small").image
    write_volume(image, tmp_path / "scan.mha")
    command = ["-m", "pantherseg", "predict", "scan.mha", "out", "--task", task, "--device", "cpu"]
    done = run(sys.executable, *command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert str(installed / "pantherseg" / "data" / "weights" / "demo" / f"task{task}") in done.stderr
    mask = read_labels(tmp_path / "out" / "scan.mha")
    assert mask.grid == image.grid
    assert mask.array.any()


def test_the_installed_package_keeps_fetched_weights_in_the_users_data_folder(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pantherseg", "weights"]
    variables = {"PYTHONPATH": str(installed), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert run(*command, "list", cwd=tmp_path, **variables).returncode == 0
    done = run(*command, "verify", cwd=tmp_path, **variables)
    assert done.stdout.startswith("ok       data/pantherseg/weights: no weights are installed")
    assert not (tmp_path / "data").exists()


def test_the_users_data_folder_is_in_the_home_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.own_weights() == paths.ROOT / "weights" / "own", "in a checkout"
    monkeypatch.setattr(paths, "ROOT", paths.PACKAGE / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert paths.own_weights() == tmp_path / ".local" / "share" / "pantherseg" / "weights"


def test_a_user_without_a_home_folder_is_asked_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(paths, "ROOT", paths.PACKAGE / "data")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(PantherSegError, match=r"this user has no home folder .* name a folder with --to"):
        paths.own_weights()
