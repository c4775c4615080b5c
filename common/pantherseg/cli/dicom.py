"""`pantherseg dicom`: what a folder or archive of DICOM contains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from pantherseg.cli.options import PATH, RECIPE, SERIES, TASK, chosen_recipe
from pantherseg.errors import InputError, os_reason, printable
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.io.dicom.select import Candidate, Survey, select, survey
from pantherseg.io.dicom.series import plane_of
from pantherseg.recipe import load_recipe

HEADINGS = (
    "",
    "number",
    "slices",
    "rows x columns",
    "mm (z, y, x)",
    "plane",
    "contrast",
    "description",
    "series UID",
    "left out because of",
)
# Longer descriptions lose their middle, so that a row fits into a line.
DESCRIPTION = 44


@click.group()
def dicom() -> None:
    """List the series of a DICOM folder or archive."""


@dicom.command(name="list")
@click.argument("source", metavar="FOLDER", type=PATH)
@click.option("--task", type=TASK, help="Choose as the recipe of this task does.")
@RECIPE
@SERIES
def list_series(source: Path, task: str | None, recipe: Path | None, series: str | None) -> None:
    """List the series of a DICOM folder or archive, and mark (*) what `pantherseg predict` would take.

    FOLDER is a folder, a .zip archive, a DICOMDIR or a file of a series. Without a task or recipe, the only MR volume
    is taken.
    """
    choice = ANY_SERIES
    if series is not None:
        choice = SeriesChoice(uid=series)
    elif task is not None or recipe is not None:
        choice = load_recipe(chosen_recipe(task, recipe)).series
    try:
        found = survey(source, choice)
        refusal = _refusal(source, choice)
        rows = [HEADINGS, *(_row(candidate, found, is_taken=not refusal) for candidate in found.candidates)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        for row in rows:
            click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        for line in (*_remarks(found), refusal):
            if line:
                click.echo(printable(line))
    except OSError as error:
        raise InputError(source, expected="a folder or file that can be read", found=os_reason(error)) from error


def _refusal(source: Path, choice: SeriesChoice) -> str:
    """Return why no series is taken, or an empty text."""
    try:
        select(source, choice)
    except InputError as error:
        return f"none is taken: {error}"
    return ""


def _row(candidate: Candidate, found: Survey, *, is_taken: bool) -> tuple[str, ...]:
    series, stack = candidate.series, candidate.stack
    first = series.instances[0]
    size = next((one.size for one in series.instances if one.size is not None), None)
    return (
        "*" if is_taken and candidate is found.taken else "",
        "" if series.number is None else str(series.number),
        str(len(stack.slices) or len(series.instances)),
        "" if size is None else f"{size[0]} x {size[1]}",
        "" if stack.grid is None else " ".join(f"{mm:.4g}" for mm in stack.grid.spacing),
        plane_of(stack) or "",
        series.weighting or ("" if first.modality == "MR" else first.modality),
        ", ".join(printable(text, DESCRIPTION) for text in (series.description, stack.label) if text),
        candidate.uid or "(none)",
        printable(candidate.left_out),
    )


def _remarks(found: Survey) -> Iterator[str]:
    """Yield what is wrong with or odd about series that may be meant, damaged files, and how many are not DICOM."""
    for candidate in (one for one in found.candidates if not one.left_out):
        if candidate.stack.problem:
            yield f"{candidate.uid}: {candidate.stack.problem}"
        yield from (f"{candidate.uid}: {event.message}" for event in candidate.stack.events)
    for place, reason in found.scan.damaged:
        yield f"{place}: {reason}"
    if found.scan.others:
        yield f"files that are not DICOM: {found.scan.others}"
