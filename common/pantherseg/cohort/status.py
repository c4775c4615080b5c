"""How far a cohort is, by its table: from any machine, while it runs or afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pantherseg.cohort.manifest import read_manifest
from pantherseg.cohort.storage import exists, join
from pantherseg.cohort.table import MANIFEST, Row, read_rows
from pantherseg.errors import InputError
from pantherseg.progress import HOUR, in_words

# The rate is that of the last cases, which shows that machines have joined or left.
RECENT = 200


@dataclass(frozen=True)
class Status:
    """How many cases of the manifest are done, have failed and are waiting.

    cases_an_hour: of the last RECENT that were segmented, while any case was being worked on; None for fewer than two.
    last_s: seconds since the last one ended, None without any; failures: the reasons by case.
    """

    cases: int
    done: int
    failed: int
    waiting: int
    recipe: str
    cases_an_hour: float | None
    last_s: float | None
    failures: dict[str, str]

    @property
    def left_s(self) -> float | None:
        """How many seconds the waiting cases take at this rate, None if unknown or if there are none."""
        return self.waiting / self.cases_an_hour * HOUR if self.waiting and self.cases_an_hour else None

    def as_dict(self) -> dict[str, Any]:
        """Return the status for a JSON file."""
        return {**asdict(self), "left_s": self.left_s}

    def lines(self) -> list[str]:
        """Return the status in sentences, the last of them about failed cases."""
        found = [f"{self.cases} cases: {self.done} done, {self.failed} failed, {self.waiting} waiting"]
        if self.last_s is not None:
            rate = "" if self.cases_an_hour is None else f", {self.cases_an_hour:.0f} cases an hour"
            left = "" if self.left_s is None else f", about {in_words(self.left_s)} left if the run goes on"
            found.append(f"recipe {self.recipe}{rate}{left}; the last case ended {in_words(self.last_s)} ago")
        return found + [f"failed: {case}: {reason}" for case, reason in self.failures.items()]


def status_of(folder: str) -> Status:
    """Return how far the cohort in a folder is. Raises InputError for a folder without one."""
    rows = cohort_rows(folder)
    known = [row for row in rows.values() if row is not None]
    failures = {row.case: row.error for row in known if row.status == "failed"}
    worked_on = [(row.finished, row.total_seconds) for row in known if row.total_seconds is not None]
    recent = sorted(worked_on)[-RECENT:]
    busy_s = _busy_s(recent) if recent else 0.0
    return Status(
        cases=len(rows),
        done=len(known) - len(failures),
        failed=len(failures),
        waiting=len(rows) - len(known),
        recipe=known[0].recipe if known else "",
        cases_an_hour=(len(recent) - 1) / busy_s * HOUR if busy_s else None,
        last_s=(datetime.now(UTC) - recent[-1][0]).total_seconds() if recent else None,
        failures=failures,
    )


def _busy_s(cases: Sequence[tuple[datetime, float]]) -> float:
    """Return for how many seconds any case was being worked on, from the first end of a case to the last.

    cases: when each ended, the first at the front, and how many seconds it took. Pauses between runs are left out.
    """
    covered, busy = cases[0][0], timedelta()
    for start, end in sorted((end - timedelta(seconds=seconds), end) for end, seconds in cases):
        busy += max(end - max(start, covered), timedelta())
        covered = max(covered, end)
    return busy.total_seconds()


def cohort_rows(folder: str) -> dict[str, Row | None]:
    """Return the rows of a cohort's cases by name, None for those that have none yet. Raises InputError."""
    manifest = join(folder, MANIFEST)
    if not exists(manifest):
        hint = "begin one with `pantherseg cohort run`"
        raise InputError(folder, expected="the folder of a cohort", found=f"no {MANIFEST} in it", hint=hint)
    rows = read_rows(folder)
    return {case.case: rows.get(case.case) for case in read_manifest(manifest)}
