"""The calibration of models from masks, their reports and references."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pantherseg.confidence.figures import figures
from pantherseg.confidence.fit import fit_line, leave_one_out
from pantherseg.errors import InputError
from pantherseg.evaluation import evaluate
from pantherseg.evaluation.run import CHANNEL_SUFFIX
from pantherseg.events import EventCode
from pantherseg.io import case_name, find_sources
from pantherseg.models.calibration import Calibration, Identity
from pantherseg.results import CaseReport, Confidence, read_report

logger = logging.getLogger(__name__)

# A line with two slopes needs several times as many cases, some of them poor.
MIN_CASES = 10


@dataclass(frozen=True)
class Cohort:
    """Cases of one recipe and the same models. dice: of each case, by name; failed: why a case is not among them."""

    recipe: str
    models: Identity
    confidences: Mapping[str, Confidence]
    dice: Mapping[str, float]
    failed: Mapping[str, str]


def read_cohort(predictions: Path, references: Path) -> Cohort:
    """Read a folder of masks and reports, as `pantherseg predict` writes them, and compare the masks with references.

    A case that cannot be used is logged and named in `failed`: without a mask or report, not to be scored, of another
    recipe, or of other models or folds than most. Raises InputError if no case can be used.
    """
    if not predictions.is_dir():
        found = "a file" if predictions.exists() else "no such folder"
        raise InputError(predictions, expected="a folder with the masks and reports of cases", found=found)
    evaluation = evaluate(predictions, references)
    failed = {**evaluation.failed, **dict.fromkeys(evaluation.missing, "there is no mask")}
    paths = _report_paths(predictions, evaluation.cases)
    reports: dict[str, CaseReport] = {}
    for name in evaluation.cases:
        if name not in failed:
            try:
                reports[name] = _report(paths[name])
            except InputError as error:
                failed[name] = str(error)
                logger.error("error: %s", error)
    kinds = {name: (report.recipe, _hashable(_identity(report))) for name, report in reports.items()}
    most = Counter(kinds.values()).most_common(1)
    for name in [name for name, kind in kinds.items() if kind != most[0][0]]:
        failed[name] = f"of the recipe {reports.pop(name).recipe}, or of other models or folds than most cases"
        logger.error("error: %s: %s", paths[name], failed[name])
    if not reports:
        raise InputError(predictions, f"none of {len(failed)} cases can be used for a calibration")
    first = next(iter(reports.values()))
    return Cohort(
        first.recipe,
        _identity(first),
        {name: report.confidence for name, report in reports.items()},
        {name: evaluation.cases[name].official.dice for name in reports},
        failed,
    )


def calibrate(cohort: Cohort) -> Calibration:
    """Calibrate models by at least MIN_CASES cases with a tumour in the fused mask. Raises InputError for fewer."""
    fitted = [name for name, one in cohort.confidences.items() if one.mean_entropy is not None]
    if len(fitted) < MIN_CASES:
        expected = f"at least {MIN_CASES} cases in which the networks mark a tumour"
        hint = "segment more cases with reference masks, and poor ones among them"
        raise InputError("calibration", expected=expected, found=str(len(fitted)), hint=hint)
    confidences, dice = [cohort.confidences[name] for name in fitted], [cohort.dice[name] for name in fitted]
    line = fit_line(confidences, dice)
    empty = [name for name in cohort.confidences if name not in fitted]
    expected_dice = leave_one_out(confidences, dice) + [line.expected(cohort.confidences[name]) for name in empty]
    return Calibration(
        models=cohort.models,
        cases=len(fitted),
        empty_masks=len(empty),
        line=line,
        cross_validated=figures(expected_dice, dice + [cohort.dice[name] for name in empty]),
    )


def _report(path: Path) -> CaseReport:
    """Return the report of a case. Raises InputError."""
    report = read_report(path)
    stopped = any(event.code == EventCode.TILES_LEFT_OUT for event in report.events)
    if stopped or any(model.left_out_tiles for model in report.models):
        raise InputError(path, "tiles or folds were left out, so that it says little about the models")
    return report


def _report_paths(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return where the report of each case is, which is named after the image where its mask is."""
    masks = {case_name(mask) for mask in find_sources(folder)}
    after_image = {name: f"{name}{CHANNEL_SUFFIX}" for name in names}
    return {name: folder / f"{image if image in masks else name}.json" for name, image in after_image.items()}


def _identity(report: CaseReport) -> Identity:
    return tuple(model.sha256 for model in report.models)


def _hashable(models: Identity) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(tuple(sorted(folds.items())) for folds in models)
