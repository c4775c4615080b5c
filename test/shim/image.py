"""A built image: its configuration, and its file system as folders."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Image:
    """An image as the platform knows it.

    api: the contract, exec or invoke. folder: the working directory. layers: folders with its file system, the topmost
    first.
    """

    name: str
    api: str
    user: str
    folder: str
    environment: dict[str, str]
    entrypoint: list[str] | None
    command: list[str] | None
    layers: tuple[Path, ...]


def built(name: str) -> dict[str, Any]:
    """Return the Docker engine's description of an image of this project, such as task1-cpu; skip a test without it."""
    image = f"pantherseg-{name}"
    command = ["docker", "image", "inspect", image]
    if shutil.which("docker") is not None:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            description: list[dict[str, Any]] = json.loads(result.stdout)
            return description[0]
    pytest.skip(f"no Docker engine answers, or ./do_build.sh has not built {image}")


def open_image(description: dict[str, Any], layers: tuple[Path, ...]) -> Image:
    """Return an image from its description and the folders with its file system."""
    config = description["Config"]
    return Image(
        name=description["RepoTags"][0],
        api=config["Labels"].get("org.grand-challenge.api-method", "exec"),
        user=config["User"],
        folder=config["WorkingDir"] or "/",
        environment=dict(entry.split("=", maxsplit=1) for entry in config["Env"]),
        entrypoint=config.get("Entrypoint"),
        command=config.get("Cmd"),
        layers=layers,
    )


def stored_layers(description: dict[str, Any]) -> tuple[Path, ...]:
    """Return the folders in which the engine stores the image; none if it stores images in another way or elsewhere."""
    data = (description.get("GraphDriver") or {}).get("Data") or {}
    paths = [data.get("UpperDir", ""), *data.get("LowerDir", "").split(":")]
    layers = tuple(Path(path) for path in paths if path)
    return layers if all(layer.is_dir() for layer in layers) else ()


@contextmanager
def exported(description: dict[str, Any], folder: Path) -> Iterator[tuple[Path, ...]]:
    """Write an image's file system to a folder, which needs as much space as the image, and remove it afterwards."""
    create = ["docker", "create", "--network", "none", description["Id"]]
    container = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
    folder.mkdir()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            subprocess.run(["tar", "--extract", "--directory", str(folder)], stdin=export.stdout, check=True)
        yield (folder,)
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=False)
        shutil.rmtree(folder)
