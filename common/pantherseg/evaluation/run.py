"""Scores every case of a folder of predictions against a folder of reference masks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pantherseg.errors import InputError, first_few
from pantherseg.evaluation.metrics import CaseScores, Totals, score_case, surface_distance_library, totals
from pantherseg.io import case_name, find_sources, read_labels
from pantherseg.io.dicom import refuse_dicom

logger = logging.getLogger(__name__)

# PANTHER's image files have nnU-Net's channel number in their names, its label files do not.
CHANNEL_SUFFIX = "_0000"
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Evaluation:
    """The scores of every case by name, and their totals in both conventions.

    failed: why a case could not be scored, by name; such cases are not among `cases`, nor in the totals.
    """

    cases: Mapping[str, CaseScores]
    failed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def official(self) -> Totals:
        """The totals that the challenge would report, with swapped axes as on the leaderboards."""
        return totals([c.official for c in self.cases.values()])

    @cached_property
    def corrected(self) -> Totals:
        """The totals with distances as they are in the patient."""
        return totals([c.corrected for c in self.cases.values()])

    @property
    def missing(self) -> tuple[str, ...]:
        """The cases without a prediction, which are scored as empty masks."""
        return tuple(name for name, case in self.cases.items() if case.missing)

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation for a JSON file, with the metrics named as in `METRICS`."""
        cases = {
            name: {
                "official": case.official.as_totals().as_dict(),
                "corrected": case.corrected.as_totals().as_dict(),
                "missing": case.missing,
            }
            for name, case in self.cases.items()
        }
        return {
            "cases": cases,
            "failed": dict(self.failed),
            "official": self.official.as_dict(),
            "corrected": self.corrected.as_dict(),
            "not_for_clinical_use": True,
        }


def evaluate(predictions: Path, references: Path) -> Evaluation:
    """Score the masks in a file or folder against the references in a file or folder.

    Cases are matched by file name without suffix. A prediction named after its image (`10000_0001_0000.mha`) is matched
    with the reference `10000_0001.mha`. Two single files are matched whatever their names. If one path is a file, only
    that case is scored. If both are folders, every reference is scored, as an empty mask if there is no prediction.
    Predictions without a reference are ignored with a warning. A case that cannot be scored, for which `score_case` or
    `read_labels` raise InputError, is logged and named in the result's `failed`, and the others are scored.

    Raises InputError if there is no volume, if no names match, if two files belong to one case, or if no case can be
    scored; PantherSegError if surface-distance is not installed.
    """
    surface_distance_library()
    cases: dict[str, CaseScores] = {}
    errors: dict[str, InputError] = {}
    for name, (predicted, reference) in _pairs(predictions, references).items():
        try:
            mask = read_labels(predicted) if predicted else None
            cases[name] = score_case(mask, read_labels(reference), name=predicted or name, reference_name=reference)
        except InputError as error:
            errors[name] = error
    if len(errors) == 1 and not cases:
        raise next(iter(errors.values()))
    failed = {name: str(error) for name, error in errors.items()}
    for reason in failed.values():
        logger.error("error: %s", reason)
    if not cases:
        raise InputError(predictions, f"none of {len(failed)} cases could be scored")
    missing = [name for name, case in cases.items() if case.missing]
    if missing:
        logger.warning(
            "%d of %d cases have no prediction and are scored as empty masks: %s",
            len(missing),
            len(cases),
            first_few(missing),
        )
    return Evaluation(cases, failed)


def _pairs(predictions: Path, references: Path) -> dict[str, tuple[Path | None, Path]]:
    """Return the prediction (None if missing) and the reference of every case."""
    reference_files = _by_case(references, _files(references), known=())
    prediction_files = _files(predictions)
    if predictions.is_file() and references.is_file():
        return {case_name(references): (predictions, references)}
    found = _by_case(predictions, prediction_files, known=reference_files)
    matched = {name: found[name] for name in reference_files if name in found}
    if not matched:
        raise InputError(
            predictions,
            expected=f"masks named like their reference masks, e.g. {next(iter(reference_files.values())).name}",
            found=first_few(p.name for p in prediction_files),
        )
    others = [path.name for name, path in found.items() if name not in reference_files]
    if others and references.is_dir():
        logger.warning("ignored predictions without a reference mask: %s", first_few(others))
    wanted = reference_files if predictions.is_dir() else matched
    return {name: (matched.get(name), reference_files[name]) for name in wanted}


def _files(path: Path) -> list[Path]:
    """Return the volumes in a folder, or the file itself, in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(path, expected="a volume or a folder of volumes", found="no such file or folder")
    files = find_sources(path)
    if not files:
        refuse_dicom(path)
        raise InputError(path, expected="at least one volume", found="a folder without volumes")
    return files


def _by_case(folder: Path, files: Iterable[Path], *, known: Iterable[str]) -> dict[str, Path]:
    """Return files by case. A channel number is dropped from a name if that gives the name of a known case."""
    names, cases = set(known), dict[str, Path]()
    for path in files:
        name = case_name(path)
        if name not in names and name.removesuffix(CHANNEL_SUFFIX) in names:
            name = name.removesuffix(CHANNEL_SUFFIX)
        if name in cases:
            raise InputError(folder, expected=f"one file for case {name}", found=f"{cases[name].name} and {path.name}")
        cases[name] = path
    return cases
