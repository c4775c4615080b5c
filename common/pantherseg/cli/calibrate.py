"""`pantherseg calibrate`: calibrate models, so that reports say what Dice to expect."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pantherseg.cli.options import PATH
from pantherseg.confidence.calibrate import calibrate as calibrate_models
from pantherseg.confidence.calibrate import read_cohort
from pantherseg.errors import ModelError, first_few
from pantherseg.models.calibration import CALIBRATION, Calibration, read_calibrations, write_calibrations

logger = logging.getLogger(__name__)


@click.command()
@click.argument("predictions", metavar="PRED", type=PATH)
@click.argument("references", metavar="REF", type=PATH)
@click.argument("models", metavar="MODELS", type=PATH)
def calibrate(predictions: Path, references: Path, models: Path) -> None:
    """Calibrate models, so that reports say what Dice to expect.

    PRED is a folder that `pantherseg predict` has written, of cases that no fold was trained on, and REF a folder of
    their reference masks. The calibration is written to calibration.json in the folder MODELS, beside the models that
    made the masks, in place of an earlier one of their recipe. It serves only these very models and folds.
    """
    if not models.is_dir():
        found = "a file" if models.exists() else "no such folder"
        raise ModelError(models, expected="the folder of the models that made the masks", found=found)
    known = read_calibrations(models)
    cohort = read_cohort(predictions, references)
    calibration = calibrate_models(cohort)
    write_calibrations({**known, cohort.recipe: calibration}, models)
    click.echo(f"{models / CALIBRATION}: {cohort.recipe}, {summary(calibration)}")
    if calibration.cross_validated.aurc >= calibration.cross_validated.aurc_random:
        logger.warning("the expected Dice does not tell good masks from poor ones in these cases: do not sort by it")
    if cohort.failed:
        total = len(cohort.failed) + len(cohort.confidences)
        names = first_few(cohort.failed)
        logger.error("error: %d of %d cases could not be used: %s", len(cohort.failed), total, names)
        raise SystemExit(1)


def summary(calibration: Calibration) -> str:
    """Return a calibration in a few lines: its cases, its line, and the figures of the cross-validation."""
    line, figures = calibration.line, calibration.cross_validated
    terms = " ".join(f"{slope:+.3f} {name}" for name, slope in line.slopes.items())
    empty = f", and {calibration.empty_masks} without a tumour" if calibration.empty_masks else ""
    correlations = ", ".join(
        f"{name} {'-' if value is None else f'{value:.3f}'}"
        for name, value in (("Pearson", figures.pearson), ("Spearman", figures.spearman))
    )
    return (
        f"{calibration.cases} cases{empty}\n"
        f"expected Dice = {line.intercept:.3f} {terms}, from 0 to 1\n"
        f"each case by all others: mean absolute error {figures.mean_absolute_error:.3f}, {correlations}, "
        f"AURC {figures.aurc:.3f} (random {figures.aurc_random:.3f}, best {figures.aurc_best:.3f})"
    )
