"""Unusual volumes through a whole job: each gets a mask that the platform accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pantherseg.grand_challenge import main as entry_point
from pantherseg.grand_challenge.check import check_output
from pantherseg.io import write_volume
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.volume import Grid, Volume

SHAPE = (16, 40, 48)
SPACING = (5.0, 3.0, 3.0)
# Two rotations in turn, and below with a reflection.
OBLIQUE = ((0.6, -0.64, 0.48), (0.8, 0.48, -0.36), (0.0, 0.6, 0.8))
MIRRORED = tuple(tuple(-value if column == 1 else value for column, value in enumerate(row)) for row in OBLIQUE)


def noise(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(100, 20, shape)


def one_bright_voxel(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    array = np.zeros(shape, np.float32)
    array[tuple(side // 2 for side in shape)] = 1000
    return array


def orders_of_magnitude() -> NDArray[np.float64]:
    return np.float64(10) ** np.random.default_rng(0).uniform(0, 13, SHAPE)


def volume(array: NDArray[Any], spacing: tuple[float, float, float] = SPACING, **grid: Any) -> Volume:
    return Volume(array.astype(np.float32), Grid(array.shape, spacing, **grid))


VOLUMES: dict[str, Callable[[], Volume]] = {
    "a single voxel": lambda: volume(noise((1, 1, 1))),
    "a volume one voxel wide along z": lambda: volume(noise((1, 40, 48))),
    "a volume one voxel wide along y": lambda: volume(noise((16, 1, 48))),
    "a volume one voxel wide along x": lambda: volume(noise((16, 40, 1))),
    "one bright voxel in an empty volume": lambda: volume(one_bright_voxel()),
    "values over 13 orders of magnitude": lambda: volume(orders_of_magnitude()),
    "denormal values": lambda: volume(noise() * 1e-42),
    "values up to 1e14": lambda: volume(noise() * 1e12),
    "negative values": lambda: volume(-noise()),
    "oblique axes": lambda: volume(noise(), direction=OBLIQUE),
    "oblique and mirrored axes": lambda: volume(noise(), direction=MIRRORED),
    "voxels of 0.001 mm": lambda: volume(noise(), (0.001, 0.001, 0.001)),
    "voxels of 0.01x0.01x100 mm": lambda: volume(noise((4, 40, 48)), (100.0, 0.01, 0.01)),
    "10,000x10,000x1 voxels": lambda: volume(one_bright_voxel((1, 10_000, 10_000)), (5.0, 0.03, 0.03)),
}
TAKES_LONG = [name for name in VOLUMES if name.startswith("10,000")]


@pytest.mark.slow
@pytest.mark.fault("inputs", "{name}, a whole job of Task {task}", "a mask that the platform accepts")
@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in TAKES_LONG else name for name in VOLUMES]
)
def test_segments_a_volume_that_no_scanner_makes(
    tmp_path: Path, name: str, task: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(task_recipe(task))
    job, output = tmp_path / "input", tmp_path / "output"
    given = VOLUMES[name]()
    write_volume(given, job / "images" / recipe.sockets.input / "uuid.mha")
    options = ["--input", str(job), "--output", str(output), "--model", str(DEMO_WEIGHTS)]
    code = entry_point(task_recipe(task), options)
    assert code == 0, capsys.readouterr().err
    assert [verdict.as_line() for verdict in check_output(output, recipe.sockets, job=job) if not verdict.kept] == []
    assert len(list(output.rglob("*.mha"))) == 1
