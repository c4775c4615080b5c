"""Small cohorts for tests, and what runs of them left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from pantherseg.cohort.table import CASES, read_rows
from pantherseg.cohort.worker import Job
from pantherseg.io import write_volume
from pantherseg.paths import task_recipe
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.volume import Grid, Volume

GRID = Grid((12, 24, 24), (4.0, 3.0, 3.0))
PATIENCE_S = 120.0
# More than a case takes, on a machine that does other things too.
SECONDS_OF_A_CASE = 5


def small_volume(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).normal(100, 20, GRID.shape).astype(np.float32), GRID)


def write_volumes(folder: Path, count: int) -> Path:
    for seed in range(count):
        write_volume(small_volume(seed), folder / f"case{seed:02d}.mha")
    return folder


def fast_recipe(task: int) -> Recipe:
    """Return a task's recipe with one fold."""
    recipe = load_recipe(task_recipe(task))
    return msgspec.structs.replace(recipe, members=[msgspec.structs.replace(recipe.members[0], folds=[0])])


def job_of(output: Path | str, task: int = 1) -> Job:
    return Job(recipe=fast_recipe(task), output=str(output), device="cpu")


def masks_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.mha")}


def reports(output: Path) -> dict[str, int]:
    """Return when each case's report was written."""
    found = {}
    # Files that are still being written have names that begin with a dot, and a killed run leaves some.
    for path in (output / CASES).glob("[!.]*.json"):
        with suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_mtime_ns
    return found


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_and_start_again(volumes: Path, folder: Path, *options: str) -> None:
    """Kill a run after a few cases and start it again: no case may be lost, and none be done twice.

    folder: for the run. options: of `cohort run`.
    """
    output, recipe, cases = folder / "out", folder / "recipe.toml", len(list(volumes.iterdir()))
    recipe.write_text(task_recipe(1).read_text().replace('folds = "all"', "folds = [0]"))
    command = [sys.executable, "-m", "pantherseg", "cohort", "run", str(volumes), str(output), "--recipe", str(recipe)]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE) as process:
        wait_for(lambda: len(reports(output)) > 2)
        process.kill()
    before: dict[str, int] = {}
    while (found := reports(output)) != before:  # workers of other processes may still end their cases
        before = found
        time.sleep(SECONDS_OF_A_CASE)
    # A case that was ending is not finished where its worker was ended with it, and is then removed.
    assert 0 < len(before) < cases
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    after = reports(output)
    assert {name: after[name] for name in before} == before
    rows = read_rows(str(output))
    assert {row.status for row in rows.values()} == {"done"}
    assert len(after) == len(rows) == cases
    assert f"{len(before)} of {cases} cases were finished before" in result.stderr
