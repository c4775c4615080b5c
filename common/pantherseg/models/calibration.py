"""The calibration of models: from what the networks say about a case to the Dice to expect of its mask.

`calibration.json` lies in the folder of models, beside the models that it is of, and has a table for each recipe.
`pantherseg calibrate` writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import ModelError, os_reason
from pantherseg.files import write_text
from pantherseg.logs import shown
from pantherseg.models.bundle import Bundle
from pantherseg.results import Confidence, Sha256, Share
from pantherseg.tables import Table

logger = logging.getLogger(__name__)

CALIBRATION = "calibration.json"
SCHEMA: Literal[1] = 1

Feature = Literal["pairwise_dice", "mean_entropy"]
Identity = tuple[dict[str, Sha256], ...]

# What the expected Dice is computed from, and the sign of its slope: the Dice rises with the first and falls with the
# second.
SIGNS: dict[Feature, int] = {"pairwise_dice": 1, "mean_entropy": -1}


class Line(Table, frozen=True):
    """The expected Dice as a line: intercept + slope * feature + ..., cut to 0..1."""

    intercept: float
    slopes: dict[Feature, float]

    def expected(self, confidence: Confidence) -> float:
        """Return the Dice to expect; 0 where the networks mark no tumour, as a rescued mask is a guess."""
        if confidence.mean_entropy is None:
            return 0.0
        value = self.intercept + sum(slope * (getattr(confidence, name) or 0) for name, slope in self.slopes.items())
        return min(1.0, max(0.0, value))


class Figures(Table, frozen=True):
    """How good expected Dice scores are, each by a fit without its case.

    aurc: the area under the risk-coverage curve, risk being 1 - Dice; 0 is the best. pearson, spearman: None where all
    cases are alike.
    """

    mean_absolute_error: Share
    pearson: float | None
    spearman: float | None
    aurc: Share
    aurc_random: Share
    """That of cases in any order."""
    aurc_best: Share
    """That of cases in the order of their true Dice."""


class Calibration(Table, frozen=True):
    """The calibration of the models of one recipe."""

    models: Identity
    """The SHA-256 of the weights of each fold, for each member, then for the localizer."""
    cases: Annotated[int, Meta(ge=1)]
    """Cases that were fitted: those with a tumour in the fused mask."""
    empty_masks: Annotated[int, Meta(ge=0)]
    """Cases in which the networks marked no tumour; they are in the figures with an expected Dice of 0."""
    line: Line
    cross_validated: Figures

    def applied(self, confidence: Confidence, models: Identity) -> Confidence:
        """Return the confidence with the expected Dice, or as it is if other models or folds were used."""
        if self.models != models:
            return confidence
        expected = round(self.line.expected(confidence), 3)
        return msgspec.structs.replace(confidence, expected_dice=expected)


class CalibrationFile(Table, frozen=True):
    """A calibration.json."""

    schema: Literal[1]
    not_for_clinical_use: Literal[True]
    recipes: dict[str, Calibration]
    """The calibration of each recipe, by its name."""


def identity(models: Iterable[Bundle]) -> Identity:
    """Return what tells the members of a recipe, and its localizer if there is one, from others."""
    return tuple(model.folds_sha256 for model in models)


def read_calibrations(folder: Path) -> dict[str, Calibration]:
    """Return the calibrations in a folder of models by recipe, none without a file. Raises ModelError."""
    path = folder / CALIBRATION
    expected, hint = "a calibration of models", "remove it, and calibrate the models again"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CalibrationFile).recipes
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(path, expected=expected, found=os_reason(error), hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(path, expected=expected, found=str(error), hint=hint) from error


def write_calibrations(calibrations: dict[str, Calibration], folder: Path) -> None:
    """Write the calibrations of a folder of models, in place of those that it has. Raises OutputError."""
    content = CalibrationFile(schema=SCHEMA, not_for_clinical_use=True, recipes=dict(sorted(calibrations.items())))
    write_text(folder / CALIBRATION, msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n")


def find_calibration(folder: Path, recipe: str, models: Identity) -> Calibration | None:
    """Return the calibration of a recipe in a folder of models, if it is of these models.

    One that cannot be used takes nothing from a mask, so it is no more than a line of the log.
    """
    try:
        calibration = read_calibrations(folder).get(recipe)
    except ModelError as error:
        logger.warning("no expected Dice: %s", error)
        return None
    if calibration is None or calibration.models == models:
        return calibration
    logger.warning("no expected Dice: %s is of other models or folds than these", shown(folder / CALIBRATION))
    return None


def copy_calibration(source: Path, target: Path, recipe: str, models: Identity) -> None:
    """Copy a recipe's calibration between folders of models, if there is one of these models.

    Raises ModelError for a damaged one, OutputError.
    """
    calibration = read_calibrations(source).get(recipe)
    if calibration is None:
        return
    if calibration.models == models:
        write_calibrations({recipe: calibration}, target)
    else:
        logger.warning("%s: left out, because it is of other models or folds", shown(source / CALIBRATION))
