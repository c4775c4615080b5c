"""What was finished for a training, as files in its output folder: state/<step>.json.

A step that is begun leaves state/<step>.started.json, and a finished one state/<step>.json instead. Both hold the
fingerprint and the settings, so that a later run knows whether to skip, to resume or to begin again, and can say why.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from pantherseg.errors import OutputError, os_reason
from pantherseg.files import prepare_folder, remove_file, write_text
from pantherseg.training.steps import RESUMABLE, Step, Steps

logger = logging.getLogger(__name__)

Status = Literal["finished", "resumed", "to run"]


class Record(msgspec.Struct, frozen=True):
    """What is stored of a step.

    outside: fingerprints of what it read from outside; result: figures and counts, for later steps and for provenance;
    replaces: of a step that was begun, the fingerprint of the files of an earlier run that are not moved away yet.
    """

    fingerprint: str
    settings: dict[str, Any]
    outside: dict[str, str] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    result: dict[str, Any] = msgspec.field(default_factory=dict)
    replaces: str = ""


@dataclass(frozen=True)
class Verdict:
    """What will be done with a step, and why. again: it runs although it was run before."""

    status: Status
    reason: str = ""
    again: bool = False


class State:
    """The records of an output folder."""

    def __init__(self, output: Path) -> None:
        self.folder = output / "state"

    def finished(self, step: Step) -> Record | None:
        """Return the record of a finished step, whatever its fingerprint; None if it never finished."""
        return _read(self._path(step))

    def started(self, step: Step) -> Record | None:
        """Return the record of a step that was begun and not finished."""
        return _read(self._path(step, ".started"))

    def start(self, step: Step, fingerprint: str, *, replaces: str = "") -> Record:
        """Note that a step begins, and return the record; what was finished for it before is void.

        replaces: the fingerprint of the files of an earlier run, which are to be moved away. Raises OutputError.
        """
        record = Record(fingerprint, dict(step.settings), replaces=replaces)
        write_record(self._path(step, ".started"), record)
        remove_file(self._path(step))
        return record

    def finish(self, step: Step, record: Record) -> None:
        """Note that a step is finished. Raises OutputError."""
        write_record(self._path(step), record)
        remove_file(self._path(step, ".started"))

    @contextmanager
    def locked(self, step: Step) -> Iterator[None]:
        """Hold the lock of a step, so that of two processes one runs it and the other waits, and those of its files.

        Steps that read the same files run beside each other, a step that replaces them waits for these. Raises
        OutputError if a lock cannot be had.
        """
        prepare_folder(self.folder)
        with ExitStack() as stack:
            stack.enter_context(_lock(self.folder / f"{step.name}.lock", step.name, shared=False))
            for subject, shared in step.locks.items():
                stack.enter_context(_lock(self.folder / f"files.{subject}.lock", step.name, shared=shared))
            yield

    def verdicts(
        self, steps: Steps, fingerprints: Mapping[str, str], *, missing: Callable[[Step], Path | None]
    ) -> dict[str, Verdict]:
        """Return for every step whether it is finished, is resumed, or has to run, and why.

        missing: returns a result of a step that is no longer there. Such a step only runs again if another one needs
        it, so that preprocessed cases may be removed when their folds are trained.
        """
        found: dict[str, Verdict] = {}
        for name, step in steps.by_name.items():
            found[name] = self._verdict(step, fingerprints[name], [need for need in step.needs if found[need].again])
        for name, step in reversed(list(steps.by_name.items())):
            every = [other for other, each in steps.by_name.items() if name in each.needs]
            users = [other for other in every if name not in steps.by_name[other].records]
            wanted = not every or any(found[user].status != "finished" for user in users)
            if found[name].status == "finished" and wanted and (path := missing(step)) is not None:
                found[name] = Verdict("to run", f"again: {path} is missing", again=True)
        return found

    def _verdict(self, step: Step, fingerprint: str, again: list[str]) -> Verdict:
        finished, started = self.finished(step), self.started(step)
        if finished is not None and finished.fingerprint == fingerprint:
            return Verdict("finished")
        if started is not None and started.fingerprint == fingerprint:
            if step.kind in RESUMABLE:
                return Verdict("resumed", "it was begun")
            return Verdict("to run", "it was interrupted and begins again")
        before = finished or started
        if before is None:
            return Verdict("to run")
        if changed := _changes(before.settings, dict(step.settings)):
            return Verdict("to run", f"again: {changed}", again=True)
        reason = f"{again[0]} runs again" if again else "what it reads has changed"
        return Verdict("to run", f"again: {reason}", again=True)

    def _path(self, step: Step, mark: str = "") -> Path:
        return self.folder / f"{step.name}{mark}.json"


@contextmanager
def _lock(path: Path, step: str, *, shared: bool) -> Iterator[None]:
    """Hold a lock. It belongs to this process alone: worker processes that outlive a killed one do not keep it."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    file = None
    try:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, kind | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                logger.info("%s: waiting for another process that uses %s", step, path.stem)
                fcntl.lockf(file, kind)
        except OSError as error:
            raise OutputError(path, f"failed to lock this file: {os_reason(error)}") from error
        yield
    finally:
        if file is not None:
            os.close(file)


def write_record(path: Path, record: Record) -> None:
    """Write a record. Raises OutputError."""
    write_text(path, msgspec.json.format(msgspec.json.encode(record), indent=1).decode() + "\n")


def _read(path: Path) -> Record | None:
    """Return a record; None for a file that does not exist or is damaged, whose step then runs again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("%s: this record cannot be read, so its step runs again: %s", path, error)
        return None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> str:
    """Return the first settings that differ, such as `schedule.epochs 10 -> 20`; an empty string if none does."""
    for name in sorted({*before, *now}):
        old, new, inner = before.get(name), now.get(name), f"{key}{name}"
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _changes(old, new, f"{inner}."):
                return found
        elif old != new:
            return f"{inner} {_short(old)} -> {_short(new)}"
    return ""


def _short(value: Any) -> str:
    return "none" if value is None else str(value)
