"""Who segments the cases of a cohort: this process, or the workers of a Ray cluster (`ray_crew`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from pantherseg import __version__
from pantherseg.cohort.manifest import CohortCase
from pantherseg.cohort.worker import Job, Result, Worker


class LostWorker(msgspec.Struct, frozen=True):
    """A case whose worker ended in the middle of it, and why."""

    reason: str


class Crew(Protocol):
    """Segments cases."""

    def run(self, cases: Sequence[CohortCase], *, tries: int = 1) -> Iterator[tuple[CohortCase, Result | LostWorker]]:
        """Yield each case as it ends. tries: which time it is that they are tried."""


class ThisProcess:
    """A crew of one worker, this process: a case that ends it ends the run."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(__version__, msgspec.json.encode(job))
        self._worker.load()

    def run(self, cases: Sequence[CohortCase], *, tries: int = 1) -> Iterator[tuple[CohortCase, Result | LostWorker]]:
        """Yield each case as it ends."""
        for case in cases:
            yield case, self._worker.run(case, tries)
