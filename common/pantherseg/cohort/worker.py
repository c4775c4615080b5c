"""A worker holds a session and segments one case after the other; it runs in this process, or in one of Ray's."""

from __future__ import annotations

import logging
import socket
import time
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from pantherseg import __version__
from pantherseg.batch import Wanted, check_targets, is_finished, segment_case
from pantherseg.case import CaseOutput, remove_earlier
from pantherseg.cohort.manifest import CohortCase
from pantherseg.cohort.storage import join, local_results, local_source
from pantherseg.cohort.table import CASES, Row
from pantherseg.errors import InputError, PantherSegError
from pantherseg.fingerprint import models_sha256
from pantherseg.logs import one_line, show_log
from pantherseg.machine.cpus import limit_cpus
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import Recipe
from pantherseg.results import read_report
from pantherseg.session import Session
from pantherseg.tables import Table, decode_registered

logger = logging.getLogger(__name__)


class Job(Table, frozen=True):
    """What every worker of a cohort does.

    output: the cohort's folder, on a disk or in a store; models: None for the demo models of each worker; cpus: that a
    worker may use, 0 for all; redo: segment finished cases, too. The others are those of `Session`.
    """

    recipe: Recipe
    output: str
    models: str | None = None
    device: str = "auto"
    mode: Literal["exact", "fast"] = "exact"
    members: tuple[str, ...] | None = None
    cpus: int = 0
    wanted: Wanted = Wanted()
    redo: bool = False


class Identity(Table, frozen=True):
    """What all workers of a cohort must have in common, or else the reason why one cannot work."""

    machine: str
    pantherseg: str
    models_sha256: str = ""
    problem: str = ""


class Result(Table, frozen=True):
    """A case that was tried. skipped: it was finished before."""

    row: Row
    skipped: bool = False


def remove_results(case: str, folder: Path) -> None:
    """Remove what an earlier run wrote about a case. Raises OutputError."""
    remove_earlier(CaseOutput(folder / case, folder / f"{case}.json"))


class Worker:
    """One of the workers of a job. version, job: of the process that gives the cases; the job as JSON."""

    def __init__(self, version: str, job: bytes) -> None:
        self._version, self._job_text = version, job
        self._session: Session | None = None

    def identity(self) -> Identity:
        """Load the models, and return what this worker has. One of another version does not read the job."""
        known = Identity(machine=socket.gethostname(), pantherseg=__version__)
        if __version__ != self._version:
            return known
        try:
            return msgspec.structs.replace(known, models_sha256=models_sha256(self.load()))
        except PantherSegError as error:
            return msgspec.structs.replace(known, problem=str(error))

    def run(self, case: CohortCase, tries: int = 1) -> Result:
        """Segment a case unless it is finished. Whatever is wrong with it, there is a row."""
        job, began = self._job, time.monotonic()
        try:
            session = self.load()
            with local_source(case.input) as source, local_results(join(job.output, CASES), case.case) as folder:
                try:
                    output = job.wanted.output_of(source, folder, case.case)
                except InputError:  # such as a damaged archive, which no reader takes
                    remove_results(case.case, folder)
                    raise
                check_targets({source: output})
                skipped = not job.redo and is_finished(source, output, session)
                if not skipped:
                    segment_case(source, session, output)
                report = read_report(output.report)
        except Exception as error:  # one case must not end the worker, and with it other cases
            logger.debug("%s", case.case, exc_info=not isinstance(error, PantherSegError))
            row = Row(
                case=case.case,
                input=case.input,
                status="failed",
                error=one_line(error, case.input),
                total_seconds=time.monotonic() - began,
                tries=tries,
                worker=socket.gethostname(),
                recipe=job.recipe.name,
                finished=datetime.now(UTC),
            )
            return Result(row=row)
        total = None if skipped else time.monotonic() - began
        return Result(row=Row.done(case, report, tries=tries, total_seconds=total), skipped=skipped)

    @cached_property
    def _job(self) -> Job:
        return msgspec.json.decode(self._job_text, type=Job, dec_hook=decode_registered)

    def load(self) -> Session:
        """Return the session with its models. Raises what `Session.load` raises."""
        if self._session is None:
            job = self._job
            limit_cpus(job.cpus)
            models = DEMO_WEIGHTS if job.models is None else Path(job.models)
            self._session = Session(
                job.recipe, models, device=job.device, mode=job.mode, many_cases=True, members=job.members
            )
        self._session.load()
        return self._session


class RayWorker(Worker):
    """A worker in a process of its own, whose log Ray keeps."""

    def __init__(self, version: str, job: bytes) -> None:
        super().__init__(version, job)
        show_log()
