"""`pantherseg check`: what goes to the platform, and what comes from it."""

from __future__ import annotations

from pathlib import Path

from pantherseg.grand_challenge.check import check_job, check_output
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.grand_challenge.verdict import Verdict
from pantherseg.paths import task_recipe
from pantherseg.recipe import Sockets, load_recipe


def job(folder: Path, task: str) -> list[Verdict]:
    """Check a job folder of a task. Raises PantherSegError."""
    return check_job(folder, _sockets(task))


def output(folder: Path, task: str, *, job: Path | None) -> list[Verdict]:
    """Check an output folder of a task. Raises PantherSegError."""
    return check_output(folder, _sockets(task), job=job)


def model(path: Path, *, task: str | None, recipe: Path | None) -> list[Verdict]:
    """Check a model archive or folder for a task's recipe, or another. Raises PantherSegError."""
    return check_model(path, load_recipe(recipe or task_recipe(int(task or 0))))


def _sockets(task: str) -> Sockets:
    return load_recipe(task_recipe(int(task))).sockets
