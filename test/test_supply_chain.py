"""The origin of the images' content: packages locked with checksums, and the labels of the images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from locks import locked
from pantherseg import __version__
from pantherseg.paths import ROOT
from pantherseg.sbom import normalised

LOCKS = ["requirements.lock", "requirements-cuda.lock", "requirements-cpu.lock"]
IMAGE_LABEL = "org.opencontainers.image."


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_with_checksums(name: str) -> None:
    requirements = locked(ROOT / name)
    assert len(requirements) > 10
    for requirement in requirements:
        assert requirement.hashes, requirement.name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in requirement.hashes), requirement.name


@pytest.mark.parametrize("name", LOCKS[1:])
def test_images_get_the_tested_packages(name: str) -> None:
    """Their versions and checksums are those of the development environment."""
    tested = {(package.name, package.version): set(package.hashes) for package in locked(ROOT / LOCKS[0])}
    for requirement in locked(ROOT / name):
        assert set(requirement.hashes) <= tested[requirement.name, requirement.version]


def test_every_dependency_is_in_its_lock_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed_extras = {
        LOCKS[0]: list(extras),
        LOCKS[1]: ["cuda", "report", "serve"],
        LOCKS[2]: ["report", "serve"],
    }
    for name, chosen in installed_extras.items():
        pinned = {package.name for package in locked(ROOT / name)}
        dependencies = [*project["dependencies"], *(text for extra in chosen for text in extras[extra])]
        names = {normalised(re.split(r"[^A-Za-z0-9._-]", text)[0]) for text in dependencies}
        assert names <= pinned, name


@pytest.mark.parametrize("file", ["Dockerfile.task1", "Dockerfile.task2", "scripts/native.sh"])
def test_pip_installs_only_packages_with_checksums(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "pip install" in line]
    assert commands
    for command in commands:
        # The checkout itself has no checksum, and is installed without dependencies.
        assert ("--require-hashes" in command and "requirements.lock" in command) or "--no-deps" in command, command


def git(folder: Path, *arguments: str, date: str = "2026-01-02T03:04:05+00:00") -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the files that do_build.sh needs, without git, and make a `docker` that records its arguments."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "do_build.sh", folder)
    (folder / "common" / "pantherseg").mkdir(parents=True)
    shutil.copy(ROOT / "common" / "pantherseg" / "__init__.py", folder / "common" / "pantherseg")
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{tmp_path}/arguments"\n')
    docker.chmod(0o755)
    return folder


def build(checkout: Path, *, ceiling: str = "") -> list[str]:
    """Build one image and return the arguments of `docker build`. ceiling: a folder in which git does not search."""
    arguments = checkout.parent / "arguments"
    arguments.unlink(missing_ok=True)
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GIT_CEILING_DIRECTORIES": ceiling or str(checkout.parent)}
    command = [str(checkout / "do_build.sh"), "task1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return arguments.read_text().splitlines()


def test_the_revision_is_unknown_without_git(checkout: Path) -> None:
    arguments = build(checkout)
    assert {"REVISION=unknown", "SOURCE=unknown", f"VERSION={__version__}"} <= set(arguments)
    assert not [argument for argument in arguments if "created" in argument]


def test_the_revision_is_the_commit_if_nothing_has_changed(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    assert "REVISION=unknown" in build(checkout), "there is no commit yet"
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    arguments = build(checkout)
    assert f"REVISION={commit}" in arguments
    assert [argument for argument in arguments if "created" in argument] in (
        [[f"{IMAGE_LABEL}created=2026-01-02T03:04:05{zone}"] for zone in ("+00:00", "Z")]
    )
    (checkout / "new").write_text("a file that is not in git")
    arguments = build(checkout)
    assert f"REVISION={commit}-dirty" in arguments
    assert not [argument for argument in arguments if "created" in argument]


def test_the_revision_is_unknown_in_another_projects_checkout(checkout: Path) -> None:
    project = checkout.parent
    git(project, "init", "--quiet")
    git(project, "add", "checkout")
    git(project, "commit", "--quiet", "--message", "another project")
    assert "REVISION=unknown" in build(checkout, ceiling="/")


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://example.org/group/project.git", "https://example.org/group/project"),
        ("https://name:secret@example.org/group/project", "https://example.org/group/project"),
        ("git@example.org:group/project.git", "https://example.org/group/project"),
        ("ssh://git@example.org/group/project.git", "https://example.org/group/project"),
        ("/home/somebody/project", "unknown"),
        ("../project", "unknown"),
        ("file:///home/somebody/project", "unknown"),
    ],
)
def test_the_source_is_a_web_address_without_a_password(checkout: Path, remote: str, source: str) -> None:
    git(checkout, "init", "--quiet")
    git(checkout, "remote", "add", "origin", remote)
    assert f"SOURCE={source}" in build(checkout)


@pytest.mark.parametrize("task", ["task1", "task2"])
def test_what_changes_with_every_commit_comes_after_the_last_layer(task: str) -> None:
    lines = (ROOT / f"Dockerfile.{task}").read_text().splitlines()
    steps = ("COPY", "ADD", "RUN", "ENV", "WORKDIR", "USER", "ENTRYPOINT")
    last = max(number for number, line in enumerate(lines) if line.startswith(steps))
    changing = ("LABEL", "ARG REVISION", "ARG VERSION")
    first = min(number for number, line in enumerate(lines) if line.startswith(changing))
    assert first > last, "steps after an argument that changes would not be cached"
