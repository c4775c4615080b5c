"""The table of a cohort, results.parquet: a row a case, as it was last tried."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import UnionType
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import UNSET

from pantherseg import __version__
from pantherseg.cohort.manifest import CohortCase
from pantherseg.cohort.storage import exists, join, read_bytes, write_bytes
from pantherseg.errors import InputError, last_line
from pantherseg.results import CaseReport
from pantherseg.tables import Table

logger = logging.getLogger(__name__)

# In the folder of a cohort.
RESULTS, MANIFEST, CASES = "results.parquet", "manifest.parquet", "cases"
# The table is written whole, which takes far less than a case; so seldom that it takes at most this share of the time.
WRITING_SHARE, MIN_SECONDS = 0.05, 1.0


class Row(Table, frozen=True, kw_only=True):
    """What is known of a case. None where a case has failed, or where its report does not say it."""

    case: str
    input: str
    status: Literal["done", "failed"]
    error: str = ""
    """Why it failed, in one line."""
    events: tuple[str, ...] = ()
    """The codes of what was unusual."""
    tumour_ml: float | None = None
    pairwise_dice: float | None = None
    mean_entropy: float | None = None
    expected_dice: float | None = None
    seconds: float | None = None
    """Of the stages, as in the case's report."""
    total_seconds: float | None = None
    """With reading, checking and writing; None for a case that was found finished, or whose worker was lost."""
    peak_memory_mb: int | None = None
    tries: int
    worker: str = ""
    """The machine; empty where the worker was lost."""
    device: str | None = None
    precision: str | None = None
    recipe: str
    mode: str | None = None
    pantherseg: str = __version__
    input_sha256: str | None = None
    recipe_sha256: str | None = None
    models_sha256: str | None = None
    mask: str | None = None
    """Relative to the table."""
    mask_sha256: str | None = None
    finished: datetime
    """When it ended."""

    @classmethod
    def done(cls, case: CohortCase, report: CaseReport, *, tries: int, total_seconds: float | None) -> Row:
        """Return the row of a case by its report."""
        made_from = None if report.fingerprint is UNSET else report.fingerprint
        return cls(
            case=case.case,
            input=case.input,
            status="done",
            events=tuple(event.code for event in report.events),
            tumour_ml=report.tumour_ml,
            pairwise_dice=report.confidence.pairwise_dice,
            mean_entropy=report.confidence.mean_entropy,
            expected_dice=report.confidence.expected_dice,
            seconds=sum(report.seconds.values()),
            total_seconds=total_seconds,
            peak_memory_mb=report.peak_memory_mb,
            tries=tries,
            worker=socket.gethostname(),
            device=report.device,
            precision=report.precision,
            recipe=report.recipe,
            mode=None if made_from is None else made_from.mode,
            pantherseg=report.pantherseg,
            input_sha256=None if made_from is None else made_from.input_sha256,
            recipe_sha256=None if made_from is None else made_from.recipe_sha256,
            models_sha256=None if made_from is None else made_from.models_sha256,
            mask=f"{CASES}/{report.mask}",
            mask_sha256=None if report.mask_sha256 is UNSET else report.mask_sha256,
            finished=datetime.now(UTC),
        )

    @property
    def urgency(self) -> tuple[int, float, str]:
        """The key by which cases that need a look come first: failed, least certain, unknown."""
        known = [value for value in (self.expected_dice, self.pairwise_dice) if value is not None]
        group = 0 if self.status == "failed" else 1 if known else 2
        return group, known[0] if known else 0.0, self.case


TYPES: Mapping[type | UnionType | object, pa.DataType] = {
    str: pa.string(),
    str | None: pa.string(),
    int: pa.int64(),
    int | None: pa.int64(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    Literal["done", "failed"]: pa.string(),
    datetime: pa.timestamp("us", tz="UTC"),
}
SCHEMA = pa.schema([(field.name, TYPES[field.type]) for field in msgspec.structs.fields(Row)])


def read_rows(folder: str) -> dict[str, Row]:
    """Return the rows of a cohort by case; none without a table. Raises InputError for a damaged table."""
    path = join(folder, RESULTS)
    if not exists(path):
        return {}
    try:
        rows = pq.read_table(pa.BufferReader(read_bytes(path))).to_pylist()
        return {row.case: row for row in msgspec.convert(rows, list[Row])}
    except (pa.ArrowException, OSError, UnicodeError, msgspec.ValidationError) as error:
        hint = "move it away: finished cases are found by their reports"
        raise InputError(path, expected="the table of a cohort", found=last_line(error), hint=hint) from error


class ResultsTable:
    """The table as it is being written: after every case, but not more often than it is worth."""

    def __init__(self, folder: str) -> None:
        self.rows = read_rows(folder)
        self._path = join(folder, RESULTS)
        self._is_written = True
        self._next = 0.0

    def add(self, row: Row) -> None:
        """Add a row, or replace that of its case. Raises OutputError."""
        self.rows[row.case] = row
        self._is_written = False
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the rows that are not written yet. The file is that of before or of now, at any time."""
        if self._is_written:
            return
        began = time.monotonic()
        file = pa.BufferOutputStream()
        rows = [msgspec.structs.asdict(self.rows[name]) for name in sorted(self.rows)]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
        write_bytes(self._path, file.getvalue().to_pybytes())
        self._is_written = True
        now = time.monotonic()
        self._next = now + max(MIN_SECONDS, (now - began) / WRITING_SHARE)
