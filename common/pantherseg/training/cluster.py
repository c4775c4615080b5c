"""Submits the steps of a training to Slurm through submitit: one job a step, after the jobs that it needs."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Mapping
from typing import Any

import msgspec

from pantherseg.errors import OutputError, PantherSegError
from pantherseg.files import write_text
from pantherseg.training.run import ON_DEVICE, Training, command, keep_splits

FOLDER, JOBS = "slurm", "jobs.json"
# What submitit calls by names of its own; every other setting goes to sbatch as it is.
OF_SUBMITIT = (
    *("partition", "time", "timeout_min", "nodes", "ntasks_per_node", "tasks_per_node", "cpus_per_task"),
    *("cpus_per_gpu", "gpus_per_node", "gpus_per_task", "qos", "mem", "mem_gb", "mem_per_gpu", "mem_per_cpu"),
    *("signal_delay_s", "comment", "constraint", "exclude", "account", "gres", "exclusive", "wckey"),
)
DEPENDENCY = "dependency"


class Job(msgspec.Struct, frozen=True):
    """A job that was submitted for a step, and the fingerprint that the step had."""

    number: str
    fingerprint: str


def submit(training: Training, settings: Mapping[str, str]) -> dict[str, str]:
    """Submit every unfinished step, and return the numbers of the jobs by step.

    settings: Slurm's, such as partition, timeout_min or gpus_per_node; those about GPUs only hold for steps with
    networks. A job starts when those that it needs have ended without an error, and is cancelled if one fails. A step
    whose job is still waiting or running is not submitted again. Raises PantherSegError if submitit is not installed or
    a job is refused, and OutputError if a job for other settings or data is still there.
    """
    try:
        import submitit
    except ImportError as error:
        hint = "pip install submitit"
        raise PantherSegError("slurm", expected="the package submitit", found=str(error), hint=hint) from error
    keep_splits(training)
    folder = training.work.output / "state" / FOLDER
    known = _earlier_jobs(training)
    for step in training.unfinished:
        if step.name in known:
            continue
        wanted = {key: _number(value) for key, value in settings.items() if step.kind in ON_DEVICE or not _is_gpu(key)}
        device = "cuda" if any(map(_is_gpu, wanted)) else "cpu"
        after = [known[need].number for need in step.needs if need in known]
        try:
            executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm")
            executor.update_parameters(name=step.name, **_parameters(wanted, after))
            job = executor.submit(submitit.helpers.CommandFunction(command(training, step.name, device)))
        except (RuntimeError, OSError, NameError, ValueError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise PantherSegError(f"slurm, {step.name}", f"this job could not be submitted: {reason}") from error
        known[step.name] = Job(str(job.job_id), training.fingerprints[step.name])
        write_text(folder / JOBS, msgspec.json.encode(known).decode() + "\n")
    return {step.name: known[step.name].number for step in training.unfinished}


def _parameters(settings: Mapping[str, Any], after: list[str]) -> dict[str, Any]:
    """Return the parameters of submitit for a job. after: the numbers of the jobs that it needs."""
    more = {key: value for key, value in settings.items() if key not in OF_SUBMITIT}
    if after:
        needed = "afterok:" + ":".join(after)
        more[DEPENDENCY] = f"{more[DEPENDENCY]},{needed}" if DEPENDENCY in more else needed
        more["kill-on-invalid-dep"] = "yes"
    named = {f"slurm_{key}": value for key, value in settings.items() if key in OF_SUBMITIT}
    return named | ({"slurm_additional_parameters": more} if more else {})


def _earlier_jobs(training: Training) -> dict[str, Job]:
    """Return the jobs of earlier submissions that are still waiting or running. Raises OutputError."""
    path = training.work.output / "state" / FOLDER / JOBS
    try:
        jobs = msgspec.json.decode(path.read_bytes(), type=dict[str, Job])
    except (OSError, msgspec.DecodeError):
        return {}
    command = ["squeue", "--noheader", "--format=%A", "--user", getpass.getuser()]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise PantherSegError("slurm", f"failed to list the jobs that are still there: {error}") from error
    running = {name: job for name, job in jobs.items() if job.number in listed}
    for name, job in running.items():
        if job.fingerprint != training.fingerprints.get(name):
            hint = f"end it with `scancel {job.number}`"
            raise OutputError(path, f"job {job.number} still runs {name} with other settings or data", hint=hint)
    return running


def _is_gpu(setting: str) -> bool:
    return "gpu" in setting or setting == "gres"


def _number(value: str) -> Any:
    return int(value) if value.isdigit() else value
