"""`pantherseg predict`: segment a volume, or every volume of a folder."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import click
import msgspec

from pantherseg.batch import Wanted, has_many_cases, run_batch
from pantherseg.cli.options import (
    ANONYMOUS,
    DEVICE,
    MEMBERS,
    MODE,
    PATH,
    RECIPE,
    SERIES,
    STABLE_UIDS,
    TASK,
    VOLUME_FORMATS,
    check_dicom_options,
    chosen_recipe,
    formats_in,
    names_in,
    receiver_at,
)
from pantherseg.dicom_results.formats import format_of
from pantherseg.inference.backends import Mode
from pantherseg.io import find_sources
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.results import DicomOptions
from pantherseg.session import Session

logger = logging.getLogger(__name__)

PAGE = "report.html"


@click.command()
@click.argument("source", metavar="INPUT", type=PATH)
@click.argument("output", type=PATH)
@click.option("--task", type=TASK, help="Use the recipe of this task.")
@RECIPE
@click.option(
    "--model", type=PATH, help="Folder of models  [default: the demo models, which were trained on phantoms only]."
)
@MODE
@DEVICE
@click.option("--device-memory", metavar="MB", type=click.IntRange(min=1), help="Use at most this much GPU memory.")
@click.option(
    "--time-budget",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for each volume  [default: as in the recipe].",
)
@click.option(
    "--rescue/--no-rescue",
    default=None,
    help="Whether to fill an empty mask with the most probable component  [default: as in the recipe].",
)
@MEMBERS
@SERIES
@click.option(
    "--save-probabilities",
    is_flag=True,
    help="Also write the tumour's probability before post-processing, <case>.npz, for `pantherseg select`.",
)
@click.option(
    "--output-format",
    metavar="NAMES",
    help="Formats of the results, with commas between them: mha, nii.gz, nrrd; of DICOM input also dcmseg, rtstruct and"
    " dcmprob, the probability as a fractional segmentation  [default: the format of each volume, mha for DICOM].",
)
@ANONYMOUS
@STABLE_UIDS
@click.option("--send", metavar="AET@HOST:PORT", help="Send DICOM results to an archive or a viewer (C-STORE).")
@click.option("--report", is_flag=True, help="Also write a page of all cases, report.html, when they are done.")
@click.option("--redo", is_flag=True, help="Segment finished cases again.")
def predict(
    source: Path,
    output: Path,
    task: str | None,
    recipe: Path | None,
    model: Path | None,
    mode: Mode,
    device: str,
    device_memory: int | None,
    time_budget: float | None,
    rescue: bool | None,
    members: str | None,
    series: str | None,
    save_probabilities: bool,
    output_format: str | None,
    anonymous: bool,
    stable_uids: bool,
    send: str | None,
    report: bool,
    redo: bool,
) -> None:
    """Segment a volume, or every volume of a folder.

    INPUT is a volume, a DICOM series or study (folder, .zip or one of its files), or a folder of such volumes. The
    folder OUTPUT gets a mask in the format of each volume (.mha for DICOM) or in those of --output-format, and a
    report <case>.json. A volume that cannot be used does not stop the others. Cases that an earlier run has finished,
    with the same input, recipe, models, mode and version, are skipped.
    """
    settings = _settings(chosen_recipe(task, recipe), time_budget, rescue, series)
    if device_memory and device == "cpu":
        raise click.UsageError("--device-memory applies to GPUs only")
    dicom = DicomOptions(anonymous=anonymous, stable_uids=stable_uids)
    wanted = Wanted(formats_in(output_format), dicom, save_probabilities)
    _check_formats(wanted, is_sent=send is not None, report=report)
    receiver = receiver_at(send)
    session = Session(
        settings,
        model or DEMO_WEIGHTS,
        device=device,
        mode=mode,
        device_memory_mb=device_memory,
        many_cases=has_many_cases(source),
        members=names_in(members),
    )
    if report:
        from pantherseg.report.write import check_can_report  # takes a second to import

        check_can_report()
    failed = bool(run_batch(source, output, session, wanted=wanted, redo=redo, receiver=receiver))
    if report and not _write_page(source, output, settings.series):
        failed = True
    if failed:
        raise SystemExit(1)


def _settings(path: Path, time_budget: float | None, rescue: bool | None, series: str | None) -> Recipe:
    """Return a recipe as the options change it. Raises UsageError for a time budget without a number."""
    if time_budget is not None and not math.isfinite(time_budget):
        raise click.UsageError("--time-budget: expected a finite number of seconds")
    settings = load_recipe(path)
    if time_budget is not None:
        settings = msgspec.structs.replace(settings, time_budget_s=time_budget)
    if rescue is not None:
        settings = settings.with_rescue(rescue=rescue)
    if series is not None:
        settings = msgspec.structs.replace(settings, series=SeriesChoice(uid=series))
    return settings


def _check_formats(wanted: Wanted, *, is_sent: bool, report: bool) -> None:
    """Raise UsageError for options that need other formats."""
    check_dicom_options(wanted, is_sent=is_sent)
    has_objects = any(map(format_of, wanted.formats))
    if report and has_objects and not any(suffix in VOLUME_FORMATS for suffix in wanted.formats):
        raise click.UsageError("--report needs the mask as a volume file, such as --output-format mha,dcmseg")


def _write_page(source: Path, output: Path, series: SeriesChoice) -> bool:
    """Write the page of the cases beside their masks, and return whether all their files could be used."""
    from pantherseg.report.write import write_report

    if not find_sources(output):
        logger.error("error: %s: no page was written, because there is no mask", output)
        return False
    return not write_report(source, output, None, output / PAGE, series=series)
