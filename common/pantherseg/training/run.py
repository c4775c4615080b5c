"""Runs the steps of a training that are not finished yet, in order, and the folds of a stage beside each other."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pantherseg.errors import OutputError, PantherSegError, os_reason
from pantherseg.training.content import Contents
from pantherseg.training.state import Record, State, Verdict
from pantherseg.training.steps import Step, Steps, choose, steps_of
from pantherseg.training.workspace import Workspace

if TYPE_CHECKING:
    from pantherseg.training.graph import TrainingFile

logger = logging.getLogger(__name__)

# Steps that run networks. Where GPUs are named by number, each runs in a process of its own that sees one GPU.
ON_DEVICE = ("data", "fold", "validate", "pseudo")
SHORT = 8


@dataclass(frozen=True)
class Training:
    """A training and what is known about it before it runs.

    chosen: the names of the steps that are asked for, and of those that they need, in order. outside: the fingerprints
    of what comes from outside; for what was not given now, those that finished steps have recorded.
    """

    file: Path
    work: Workspace
    steps: Steps
    chosen: Sequence[str]
    outside: Mapping[str, str]
    fingerprints: Mapping[str, str]
    verdicts: Mapping[str, Verdict]

    @property
    def graph(self) -> TrainingFile:
        """The training file."""
        return self.work.graph

    @property
    def unfinished(self) -> list[Step]:
        """The chosen steps that have to run."""
        return [self.steps.by_name[name] for name in self.chosen if self.verdicts[name].status != "finished"]


def prepare(
    file: Path, work: Workspace, *, stage: str | None = None, fold: int | None = None, step: str | None = None
) -> Training:
    """Return what a training will do. Nothing is run, and only hashes of the inputs are written.

    stage, fold, step: as in `choose`. Raises RecipeError, and InputError for files that cannot be read.
    """
    steps = steps_of(work.graph)
    chosen = choose(steps, stage=stage, fold=fold, step=step)
    state = State(work.output)
    outside = _outside(work, steps, chosen, state)
    fingerprints = steps.fingerprints(outside)
    verdicts = state.verdicts(steps, fingerprints, missing=work.missing)
    return Training(file, work, steps, chosen, outside, fingerprints, verdicts)


def run(training: Training, devices: Sequence[str]) -> None:
    """Run the chosen steps that are not finished.

    devices: `cpu`, `cuda`, or GPUs such as `cuda:0` and `cuda:1`; with more than one, the folds of a stage run beside
    each other, each in a process of its own. Raises what the steps raise; finished steps stay finished.
    """
    waiting = training.unfinished
    while waiting:
        step = waiting[0]
        together = [step]
        if step.kind in ("fold", "validate") and len(devices) > 1:
            together = [each for each in waiting if each.kind in ("fold", "validate") and each.subject == step.subject]
            _run_folds(training, together, devices)
        elif step.kind in ON_DEVICE and ":" in devices[0]:
            _run_in_process(training, step.name, devices[0])
        else:
            run_step(training, step, "cuda" if devices[0].startswith("cuda") else "cpu")
        waiting = [each for each in waiting if each not in together]


def run_step(training: Training, step: Step, device: str) -> None:
    """Run one step, unless another process has finished it meanwhile, and record that it is finished."""
    from pantherseg.training.actions import ACTIONS  # imports torch

    state, fingerprint = State(training.work.output), training.fingerprints[step.name]
    with state.locked(step):
        finished, started = state.finished(step), state.started(step)
        if finished is not None and finished.fingerprint == fingerprint and training.work.missing(step) is None:
            return
        if started is None or started.fingerprint != fingerprint:
            _clear(training.work, step, started or finished)
            state.start(step, fingerprint)
        elif step.kind not in ("fold", "pseudo"):  # which go on where they were interrupted
            _clear(training.work, step, started)
        logger.info("%s: %s", step.name, "goes on" if started and started.fingerprint == fingerprint else "begins")
        began = time.monotonic()
        try:
            result = ACTIONS[step.kind](training.work, step, device)
        except OSError as error:
            found = f"failed in step {step.name}: {os_reason(error)}"
            raise OutputError(error.filename or training.work.output, found) from error
        seconds = time.monotonic() - began
        outside = {what: training.outside.get(what, "") for what in step.outside}
        state.finish(step, Record(fingerprint, dict(step.settings), outside, round(seconds, 1), result))
        logger.info("%s: finished in %.0f s", step.name, seconds)


def _outside(work: Workspace, steps: Steps, chosen: Sequence[str], state: State) -> dict[str, str]:
    """Return the fingerprints of what comes from outside."""
    contents = Contents(state.folder)
    found: dict[str, str] = {}
    for name in chosen:
        step = steps.by_name[name]
        record = state.finished(step) or state.started(step)
        for what in step.outside:
            path = work.given(what)
            if path is not None and path.exists():
                found[what] = contents.fingerprint(path)
            elif record is not None and record.outside.get(what):
                found[what] = record.outside[what]
    contents.save()
    return found


def _clear(work: Workspace, step: Step, before: Record | None) -> None:
    """Make room for what a step writes. Folds and bundles that took long are moved to earlier/, the rest is removed."""
    for path in work.outputs(step):
        if not path.exists():
            continue
        if step.kind in ("fold", "bundle"):
            target = _new_name(work.output / "earlier", step.name, before)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            logger.info("%s: what was made with other settings or data is kept in %s", step.name, target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _new_name(folder: Path, step: str, before: Record | None) -> Path:
    """Return a name that is free, with the beginning of the fingerprint that is known."""
    name = f"{step}-{'unknown' if before is None else before.fingerprint[:SHORT]}"
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(folder / each for each in itertools.chain([name], numbered) if not (folder / each).exists())


def _run_folds(training: Training, steps: Sequence[Step], devices: Sequence[str]) -> None:
    """Run folds beside each other, one on each device. The first error is raised after the other folds have ended."""
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def run_fold(name: str) -> None:
        device = free.get()
        try:
            _run_in_process(training, name, device)
        finally:
            free.put(device)

    subject = steps[0].subject
    names = [f"validate.{subject}.{fold}" for fold in dict.fromkeys(step.fold for step in steps)]
    with ThreadPoolExecutor(len(devices)) as pool:
        for done in [pool.submit(run_fold, name) for name in names]:
            done.result()


def _run_in_process(training: Training, name: str, device: str) -> None:
    """Run a step, and what it needs, by the same command in a process of its own that sees one device.

    Raises PantherSegError if it fails; its own error is on stderr.
    """
    kind, _, number = device.partition(":")
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": number} if number else {})
    logger.info("%s: in a process of its own on %s", name, device)
    with subprocess.Popen(command(training, name, kind), env=environment) as process:
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    if code:
        raise PantherSegError(name, f"this step failed with exit code {code}; its error is above")


def command(training: Training, name: str, device: str) -> list[str]:
    """Return the command that runs one step and what it needs."""
    inputs = training.work.inputs
    options = {"--data": inputs.data, "--start": inputs.starts, "--splits": inputs.splits}
    given = [
        part for option, each in options.items() for key, path in each.items() for part in (option, f"{key}={path}")
    ]
    models = [] if inputs.models is None else ["--model", str(inputs.models)]
    start = [sys.executable, "-m", "pantherseg", "train", str(training.file), "--output", str(training.work.output)]
    return [*start, *given, *models, "--step", name, "--devices", device]
