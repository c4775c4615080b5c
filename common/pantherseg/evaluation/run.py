"""Scores every case of a folder of predictions against a folder of reference masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.errors import InputError, first_few
from pantherseg.evaluation import bootstrap
from pantherseg.evaluation.bootstrap import Interval
from pantherseg.evaluation.lesions import (
    CLASSES,
    MIN_OVERLAP,
    CaseLesions,
    Detection,
    detection,
    detection_intervals,
    find_lesions,
)
from pantherseg.evaluation.metrics import CaseScores, Totals, score_case, totals, totals_interval
from pantherseg.io import case_name, find_sources, read_labels
from pantherseg.io.probabilities import SUFFIX as PROBABILITIES
from pantherseg.machine.cpus import usable_cpus
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

# PANTHER's image files have nnU-Net's channel number in their names, its label files do not.
CHANNEL_SUFFIX = "_0000"
# A label map has fewer values than this; images, and probabilities as whole numbers, have more.
MAX_LABELS = 64


@dataclass(frozen=True)
class Evaluation:
    """The scores and the lesions of every case by name, and their totals in both conventions.

    failed: why a case could not be scored, by name; such cases are not among `cases`, nor in the totals.
    """

    cases: Mapping[str, CaseScores]
    lesions: Mapping[str, CaseLesions]
    failed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def official(self) -> Totals:
        """The totals that the challenge would report, with swapped axes as on the leaderboards."""
        return totals([c.official for c in self.cases.values()])

    @cached_property
    def corrected(self) -> Totals:
        """The totals with distances as they are in the patient."""
        return totals([c.corrected for c in self.cases.values()])

    @cached_property
    def official_interval(self) -> dict[str, Interval] | None:
        """The 95 % bootstrap interval of each official total; None for a single case."""
        return totals_interval([c.official for c in self.cases.values()])

    @cached_property
    def corrected_interval(self) -> dict[str, Interval] | None:
        """The 95 % bootstrap interval of each corrected total; None for a single case."""
        return totals_interval([c.corrected for c in self.cases.values()])

    @property
    def missing(self) -> tuple[str, ...]:
        """The cases without a prediction, which are scored as empty masks."""
        return tuple(name for name, case in self.cases.items() if case.missing)

    @property
    def empty(self) -> tuple[str, ...]:
        """The cases whose prediction has no tumour, or nothing else: they get the worst scores, like missing ones."""
        return tuple(name for name, case in self.cases.items() if case.empty)

    @cached_property
    def detection(self) -> Detection:
        """How well lesions of all volumes were detected."""
        return detection(list(self.lesions.values()))

    @cached_property
    def detection_by_volume(self) -> tuple[Detection, ...]:
        """How well lesions of each class of volume were detected."""
        lesions = list(self.lesions.values())
        return tuple(detection(lesions, low_ml=low, high_ml=high) for low, high in CLASSES)

    @cached_property
    def detection_interval(self) -> dict[str, Interval] | None:
        """The 95 % bootstrap intervals of the sensitivity and the false positives a case; None for a single case."""
        return detection_intervals(list(self.lesions.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation for a JSON file, with the metrics named as in `METRICS`."""
        return {
            "cases": {name: self._case_as_dict(name) for name in self.cases},
            "failed": dict(self.failed),
            "missing": list(self.missing),
            "empty": list(self.empty),
            "official": self.official.as_dict(),
            "official_interval": self.official_interval,
            "corrected": self.corrected.as_dict(),
            "corrected_interval": self.corrected_interval,
            "bootstrap": bootstrap.settings(),
            "lesions": {
                "min_overlap": MIN_OVERLAP,
                "all": asdict(self.detection),
                "interval": self.detection_interval,
                "by_volume": [asdict(each) for each in self.detection_by_volume],
            },
            "not_for_clinical_use": True,
        }

    def _case_as_dict(self, name: str) -> dict[str, Any]:
        case = self.cases[name]
        return {
            "official": case.official.as_totals().as_dict(),
            "corrected": case.corrected.as_totals().as_dict(),
            "predicted_volume_mm3": case.official.predicted_volume_mm3,
            "reference_volume_mm3": case.official.reference_volume_mm3,
            "volume_error_mm3": case.official.volume_error_mm3,
            "missing": case.missing,
            "empty": case.empty,
            "lesions": self.lesions[name].as_dict(),
        }


def evaluate(
    predictions: Path,
    references: Path,
    *,
    workers: int | None = None,
    on_case: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Score the masks in a file or folder against the references in a file or folder.

    Cases are matched by file name without suffix. A prediction named after its image (`10000_0001_0000.mha`) is matched
    with the reference `10000_0001.mha`. Two single files are matched whatever their names. If one path is a file, only
    that case is scored. If both are folders, every reference is scored, as an empty mask if there is no prediction.
    Predictions without a reference are ignored with a warning. A case that cannot be scored, for which `score_case` or
    `read_labels` raise InputError, is logged and named in the result's `failed`, and the others are scored.

    workers: how many cases are read and scored at once, by default one on each CPU; each takes the memory of its two
    masks. on_case: called in the order of the cases with the number of those that are done, and of all.

    Raises InputError if there is no volume, if no names match, if two files belong to one case, or if no case can be
    scored.
    """
    pairs = _pairs(predictions, references)
    cases: dict[str, CaseScores] = {}
    lesions: dict[str, CaseLesions] = {}
    errors: dict[str, InputError] = {}
    # Threads, because the time goes to zlib, ITK and NumPy, which let other threads run.
    pool = ThreadPoolExecutor(workers or usable_cpus())
    try:
        for number, (name, found) in enumerate(zip(pairs, pool.map(_scored, pairs.items()), strict=True), start=1):
            if isinstance(found, InputError):
                errors[name] = found
            else:
                cases[name], lesions[name] = found
            if on_case is not None:
                on_case(number, len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)
    if len(errors) == 1 and not cases:
        raise next(iter(errors.values()))
    failed = {name: str(error) for name, error in errors.items()}
    for reason in failed.values():
        logger.error("error: %s", reason)
    if not cases:
        raise InputError(predictions, f"none of {len(failed)} cases could be scored")
    result = Evaluation(cases, lesions, failed)
    if result.missing:
        logger.warning(
            "%d of %d cases have no prediction and are scored as empty masks: %s",
            len(result.missing),
            len(cases),
            first_few(result.missing),
        )
    return result


def _scored(case: tuple[str, tuple[Path | None, Path]]) -> tuple[CaseScores, CaseLesions] | InputError:
    """Return the scores and the lesions of a case, given by its name, prediction and reference, or why it has none."""
    name, (predicted, reference) = case
    try:
        prediction, truth = _read_mask(predicted) if predicted else None, _read_mask(reference)
        scores = score_case(prediction, truth, name=predicted or name, reference_name=reference)
        return scores, find_lesions(prediction, truth)
    except MemoryError:
        return InputError(predicted or reference, "two masks do not fit into memory", hint="use fewer --workers")
    except InputError as error:
        return error.at(error.where)


def _read_mask(path: Path) -> Volume:
    """Read a label map. Raises InputError also for whole numbers that are those of an image or of probabilities."""
    mask = read_labels(path)
    # Counting takes long, and the labels of nearly all masks are close to each other.
    span = int(mask.array.max()) - int(mask.array.min())
    if span >= MAX_LABELS and (number := len(np.unique(mask.array))) > MAX_LABELS:
        found = f"{number} values, as an image or probabilities have"
        raise InputError(path, expected="a mask with a few labels", found=found)
    return mask


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
    files = find_sources(path, dangling=True)
    if not files:
        found, hint = "a folder without volumes", ""
        if any(path.glob(f"*{PROBABILITIES}")):
            found, hint = f"probabilities ({PROBABILITIES})", "give the folder of the masks"
        raise InputError(path, expected="at least one volume", found=found, hint=hint)
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
