"""Runs the steps of a training that are not finished yet, in order, and the folds of a stage beside each other."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pantherseg.errors import InputError, OutputError, PantherSegError, os_reason
from pantherseg.files import written_beside
from pantherseg.training.content import Contents
from pantherseg.training.earlier import UNKNOWN, set_aside
from pantherseg.training.processes import Processes, ended_together, environment_for
from pantherseg.training.state import Record, State, Verdict
from pantherseg.training.steps import RESUMABLE, Step, Steps, choose, steps_of
from pantherseg.training.workspace import Workspace

if TYPE_CHECKING:
    from pantherseg.training.graph import TrainingFile

logger = logging.getLogger(__name__)

# Steps that run networks. Where GPUs are named by number, each runs in a process of its own that sees one GPU.
ON_DEVICE = ("data", "fold", "validate", "pseudo")


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

    @property
    def planned(self) -> set[str]:
        """The stages whose plans are made and still valid."""
        return {stage for stage in self.graph.stage if self.verdicts[f"plan.{stage}"].status == "finished"}


def prepare(
    file: Path,
    work: Workspace,
    *,
    stage: str | None = None,
    fold: int | None = None,
    step: str | None = None,
    remember: bool = True,
) -> Training:
    """Return what a training will do. Nothing is run, and only hashes of the inputs are written.

    stage, fold, step: as in `choose`; remember: False to write nothing at all. Raises RecipeError, and InputError for
    data that are not there or cannot be read.
    """
    steps = steps_of(work.graph)
    chosen = choose(steps, stage=stage, fold=fold, step=step)
    state = State(work.output)
    outside = _outside(work, steps, chosen, state, remember=remember)
    fingerprints = steps.fingerprints(outside)
    verdicts = state.verdicts(steps, fingerprints, missing=work.missing)
    return Training(file, work, steps, chosen, outside, fingerprints, verdicts)


def run(training: Training, devices: Sequence[str]) -> None:
    """Run the chosen steps that are not finished.

    devices: `cpu`, `cuda`, or GPUs such as `cuda:0` and `cuda:1`; with more than one, the folds of a stage run beside
    each other, each in a process of its own. Raises what the steps raise; finished steps stay finished. On Ctrl-C and
    SIGTERM, the processes are ended too, and KeyboardInterrupt is raised.
    """
    keep_splits(training)
    with ended_together() as processes:
        waiting = training.unfinished
        while waiting:
            together = [waiting[0]]
            if waiting[0].kind in ("fold", "validate") and len(devices) > 1:
                subject = waiting[0].subject
                together = [one for one in waiting if one.kind in ("fold", "validate") and one.subject == subject]
                _run_folds(training, together, devices, processes)
            elif waiting[0].kind in ON_DEVICE and ":" in devices[0]:
                _run_in_process(training, waiting[0].name, devices[0], processes)
            else:
                run_step(training, waiting[0], "cuda" if devices[0].startswith("cuda") else "cpu")
            waiting = [one for one in waiting if one not in together]


def keep_splits(training: Training) -> None:
    """Copy the splits that were given to the output folder, where later runs find them. Raises OutputError."""
    work = training.work
    for stage, path in work.inputs.splits.items():
        kept = work.kept_splits(stage)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
        if not kept.is_file() or kept.read_bytes() != content:
            with written_beside(kept) as beside:
                beside.write_bytes(content)


def run_step(training: Training, step: Step, device: str) -> None:
    """Run one step, unless another process has finished it meanwhile, and record that it is finished."""
    from pantherseg.training.actions import ACTIONS  # imports torch

    state, fingerprint = State(training.work.output), training.fingerprints[step.name]
    with state.locked(step):
        finished, started = state.finished(step), state.started(step)
        if finished is not None and finished.fingerprint == fingerprint and training.work.missing(step) is None:
            return
        _check_needs(training, step, state)
        resumed = started is not None and started.fingerprint == fingerprint and not started.replaces
        _make_room(training.work, step, state, fingerprint)
        goes_on = resumed and step.kind in RESUMABLE
        logger.info("%s: %s", step.name, "goes on" if goes_on else "begins")
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


def _check_needs(training: Training, step: Step, state: State) -> None:
    """Raise OutputError where another process has made what a step needs of other settings or data meanwhile."""
    for need in step.needs:
        record = state.finished(training.steps.by_name[need])
        if record is not None and record.fingerprint != training.fingerprints[need]:
            problem = f"another process has run {need} with other settings or data"
            raise OutputError(training.work.output, problem, hint="run the command again")


def _outside(work: Workspace, steps: Steps, chosen: Sequence[str], state: State, *, remember: bool) -> dict[str, str]:
    """Return the fingerprints of what comes from outside."""
    contents = Contents(state.folder)
    found: dict[str, str] = {}
    for name in chosen:
        step = steps.by_name[name]
        record = state.finished(step) or state.started(step)
        for what in step.outside:
            if what in found:
                continue
            if (files := work.files_of(what)) is not None:
                found[what] = contents.fingerprint(files, what)
                if remember:
                    contents.save()
            # Splits that are no longer there are not used either.
            elif record is not None and record.outside.get(what) and not what.startswith("splits/"):
                found[what] = record.outside[what]
    return found


def _make_room(work: Workspace, step: Step, state: State, fingerprint: str) -> None:
    """Note that a step begins, and make room for what it writes.

    Folds and bundles of other settings or data, which took long, are moved to earlier/; the rest is removed. A process
    that is killed in between leaves a record of what is still to be moved.
    """
    finished, started = state.finished(step), state.started(step)
    if started is None or started.fingerprint != fingerprint:
        before = (started and (started.replaces or started.fingerprint)) or (finished and finished.fingerprint)
        started = state.start(step, fingerprint, replaces=before or UNKNOWN)
    if started.replaces:
        for path in filter(Path.exists, work.outputs(step)):
            if step.kind in ("fold", "bundle"):
                set_aside(work.output, path, step.name, started.replaces)
            else:
                _remove(path)
        state.start(step, fingerprint)
    elif step.kind not in RESUMABLE:
        for path in filter(Path.exists, work.outputs(step)):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a folder. Raises OutputError."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise OutputError(path, f"failed to remove this: {os_reason(error)}") from error


def _run_folds(training: Training, steps: Sequence[Step], devices: Sequence[str], processes: Processes) -> None:
    """Run folds beside each other, one for each of `devices`. The first error is raised after all have ended."""
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def run_fold(name: str) -> None:
        device = free.get()
        try:
            _run_in_process(training, name, device, processes)
        finally:
            free.put(device)

    subject = steps[0].subject
    names = [f"validate.{subject}.{fold}" for fold in dict.fromkeys(step.fold for step in steps)]
    with ThreadPoolExecutor(len(devices)) as pool:
        try:  # from the first fold on: leaving the pool by an exception would wait for those that run
            folds = [pool.submit(run_fold, name) for name in names]
            wait(folds)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    for fold in folds:
        fold.result()


def _run_in_process(training: Training, name: str, device: str, processes: Processes) -> None:
    """Run a step, and what it needs, by the same command in a process of its own that sees one device.

    Raises PantherSegError if it fails; its own error is on stderr.
    """
    logger.info("%s: in a process of its own on %s", name, device)
    code = processes.run(command(training, name, device.partition(":")[0]), environment_for(device))
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
