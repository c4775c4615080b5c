"""Runs a cohort: gives its cases to a crew, and writes the table as they end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pantherseg.cohort.crew import Crew, LostWorker, ThisProcess
from pantherseg.cohort.manifest import CohortCase, find_cases, write_manifest
from pantherseg.cohort.ray_crew import Cluster, ray_crew
from pantherseg.cohort.storage import exists, inside, join, local_results, on_disk
from pantherseg.cohort.table import CASES, MANIFEST, RESULTS, ResultsTable, Row
from pantherseg.cohort.worker import Job, Result, remove_results
from pantherseg.errors import InputError, OutputError, PantherSegError, first_few
from pantherseg.files import lock_folder, prepare_folder
from pantherseg.progress import cases_with_progress

logger = logging.getLogger(__name__)

# The columns that say what a mask was made from, and which mask it is.
MADE_FROM = ("input", "input_sha256", "recipe_sha256", "models_sha256", "mode", "pantherseg", "mask_sha256")


def run_cohort(source: str, job: Job, cluster: Cluster | None = None) -> list[Row]:
    """Segment the cases of a manifest, a folder or a pattern, and return the rows of those that failed.

    The folder `job.output` gets `cases/` with a mask and a report <case>.json of each, the table results.parquet and
    manifest.parquet, the cases. Finished cases, as `predict` tells them, are skipped. A case whose worker is lost is
    tried once more when all the others are done, and nothing beside it. cluster: None for this process alone.

    Raises InputError for a manifest or a table that cannot be used, before any case runs; what `ray_crew` and
    `Session.load` raise; OutputError where the results cannot be written.
    """
    results, manifest = join(job.output, CASES), join(job.output, MANIFEST)
    # What lies among the results of a first run was there before it, and must not be overwritten by a mask.
    cases = find_cases(source, results=results if exists(manifest) else None)
    if among := inside((case.input for case in cases), results):
        expected, hint = "volumes outside the folder of the results", "move them, or write to another folder"
        raise InputError(source, expected=expected, found=first_few(sorted(among)), hint=hint)
    with _only_run(job.output):
        table = ResultsTable(job.output)
        _check_recipe(job, table)
        with ExitStack() as stack:
            crew: Crew = ThisProcess(job) if cluster is None else stack.enter_context(ray_crew(job, cluster))
            write_manifest(cases, manifest)
            stack.callback(table.write)
            failed = _run_all(cases, crew, table, job)
    if failed:
        names = first_few(row.case for row in failed)
        logger.error("error: %d of %d cases failed: %s; see %s", len(failed), len(cases), names, RESULTS)
    return failed


def _run_all(cases: list[CohortCase], crew: Crew, table: ResultsTable, job: Job) -> list[Row]:
    failed: list[Row] = []
    skipped = 0
    with cases_with_progress(_outcomes(cases, crew, job), unit="case", total=len(cases), failed=failed) as results:
        for result in results:
            if result.skipped:
                skipped += 1
                _keep(result.row, table)
                continue
            table.add(result.row)
            if result.row.status == "failed":
                logger.error("error: %s", result.row.error)
                failed.append(result.row)
    if skipped:
        logger.info("%d of %d cases were finished before, from the same input, recipe and models", skipped, len(cases))
    return failed


def _outcomes(cases: list[CohortCase], crew: Crew, job: Job) -> Iterator[Result]:
    """Yield a result of every case. Those whose worker was lost are tried once more, each alone."""
    lost = []
    for case, outcome in crew.run(cases):
        if isinstance(outcome, LostWorker):
            lost.append(case)
        else:
            yield outcome
    for case in lost:
        for _, outcome in crew.run([case], tries=2):
            if isinstance(outcome, LostWorker):
                outcome = Result(row=_lost(case, outcome.reason, job))
            yield outcome


def _lost(case: CohortCase, reason: str, job: Job) -> Row:
    """Return the row of a case that ended its worker when nothing else ran; earlier results of it are removed."""
    with suppress(PantherSegError), local_results(join(job.output, CASES), case.case) as folder:
        remove_results(case.case, folder)
    problem = f"{case.input}: its worker was lost twice, the second time without other cases beside it: {reason}"
    return Row(
        case=case.case,
        input=case.input,
        status="failed",
        error=problem,
        tries=2,
        recipe=job.recipe.name,
        finished=datetime.now(UTC),
    )


def _keep(row: Row, table: ResultsTable) -> None:
    """Keep the row of a finished case, which knows more than its report; without one, take what that says."""
    earlier = table.rows.get(row.case)
    if earlier is None or any(getattr(earlier, name) != getattr(row, name) for name in MADE_FROM):
        table.add(row)


def _check_recipe(job: Job, table: ResultsTable) -> None:
    """Raise InputError if the table is of another recipe."""
    other = sorted({row.recipe for row in table.rows.values()} - {job.recipe.name})
    if other:
        path, hint = join(job.output, RESULTS), "write to another folder"
        raise InputError(path, expected=f"results of the recipe {job.recipe.name}", found=other[0], hint=hint)


@contextmanager
def _only_run(output: str) -> Iterator[None]:
    """Prepare a folder on a disk, and keep other runs from it. Raises OutputError.

    Where the file system has no locks, and in a store, two runs at once would write over each other's table.
    """
    folder = on_disk(output)
    if folder is None:
        yield
        return
    prepare_folder(folder)
    prepare_folder(folder / CASES)
    file = _locked(folder)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def _locked(folder: Path) -> int | None:
    try:
        return lock_folder(folder.resolve())  # which does not follow links
    except BlockingIOError as error:
        raise OutputError(folder, "another run writes to this folder", hint="wait for it, or end it") from error
    except OSError:
        return None
