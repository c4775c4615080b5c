"""Submits the steps of a training to Slurm through submitit: one job a step, after the jobs that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pantherseg.errors import PantherSegError
from pantherseg.training.run import ON_DEVICE, Training, command

LOGS = "slurm"
# Settings that only steps with networks need.
GPU_SETTINGS = ("gpus", "gres")


def submit(training: Training, settings: Mapping[str, str]) -> dict[str, str]:
    """Submit every unfinished step, and return the numbers of the jobs by step.

    settings: Slurm's, such as partition, time or gpus_per_node; those about GPUs only hold for steps with networks. A
    job starts when those that it needs have ended without an error. Raises PantherSegError if submitit is not installed
    or a job is refused.
    """
    try:
        import submitit
    except ImportError as error:
        hint = "pip install submitit"
        raise PantherSegError("slurm", expected="the package submitit", found=str(error), hint=hint) from error
    folder = training.work.output / "state" / LOGS
    jobs: dict[str, str] = {}
    for step in training.unfinished:
        wanted = {key: _number(value) for key, value in settings.items() if _applies(key, step.kind)}
        device = "cuda" if any(key.startswith(GPU_SETTINGS) for key in wanted) else "cpu"
        if after := [jobs[need] for need in step.needs if need in jobs]:
            wanted["additional_parameters"] = {"dependency": "afterok:" + ":".join(after)}
        try:
            executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm")
            named = {f"slurm_{key}": value for key, value in wanted.items()}
            executor.update_parameters(name=step.name, **named)
            function = submitit.helpers.CommandFunction(command(training, step.name, device))
            jobs[step.name] = str(executor.submit(function).job_id)
        except (RuntimeError, OSError, NameError, ValueError) as error:
            raise PantherSegError(f"slurm, {step.name}", f"this job could not be submitted: {error}") from error
    return jobs


def _applies(setting: str, kind: str) -> bool:
    return kind in ON_DEVICE or not setting.startswith(GPU_SETTINGS)


def _number(value: str) -> Any:
    return int(value) if value.isdigit() else value
