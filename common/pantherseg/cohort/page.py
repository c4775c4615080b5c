"""The page of a cohort: the cases that need a look, chosen by the table."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pantherseg.cohort.status import cohort_rows
from pantherseg.cohort.storage import join, local_results, local_source
from pantherseg.cohort.table import CASES, Row
from pantherseg.dicom_results.formats import format_of
from pantherseg.errors import InputError, PantherSegError
from pantherseg.report.case_files import CaseFiles
from pantherseg.report.write import check_can_report, write_page

logger = logging.getLogger(__name__)


def write_cohort_page(folder: str, output: Path, *, cases: int) -> None:
    """Write a page of the cases that need a look most.

    Failed cases come first, then those with the lowest expected Dice, or else with the folds that agree least. cases:
    how many there are at most. Raises InputError for a folder without results or with DICOM objects alone, and what
    `write_page` raises.
    """
    check_can_report()
    rows = sorted((row for row in cohort_rows(folder).values() if row is not None), key=lambda row: row.urgency)
    if not rows:
        raise InputError(folder, expected="at least one case that is done or has failed", found="none")
    shown = rows[:cases]
    masks = [row.mask for row in shown if row.mask is not None]
    if masks and all(map(format_of, masks)):
        hint = "run the cohort again with another format first, such as --output-format mha,dcmseg"
        raise InputError(folder, expected="masks in volume files", found="DICOM objects alone", hint=hint)
    logger.info("%d of %d cases, those that need a look most", len(shown), len(rows))
    with ExitStack() as stack:
        write_page([_files(row, folder, stack) for row in shown], output)


def _files(row: Row, folder: str, stack: ExitStack) -> CaseFiles:
    """Return the files of a case on this machine, as long as the stack is open."""
    missing = CaseFiles(row.case, Path(row.input), None, None, row.error)
    if row.status == "failed" or row.mask is None:
        return missing
    try:
        image = stack.enter_context(local_source(row.input))
        mask = stack.enter_context(local_results(join(folder, CASES), row.case)) / Path(row.mask).name
    except PantherSegError as error:
        return replace(missing, problem=str(error))
    return CaseFiles(row.case, image, mask, None)
