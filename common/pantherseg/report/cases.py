"""One case of a report: what is known about it, and its pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pantherseg.errors import InputError, printable
from pantherseg.evaluation.metrics import CaseScores, score_case
from pantherseg.io import read_labels, read_volume
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.labels import tumour_of
from pantherseg.logs import one_line
from pantherseg.report.case_files import CaseFiles
from pantherseg.report.planes import Scene
from pantherseg.report.run_report import read_run_report
from pantherseg.results import CaseReport
from pantherseg.volume import Volume

T = TypeVar("T")

ML_PER_MM3 = 1e-3


@dataclass(frozen=True)
class Case:
    """A row of the report.

    number: in the order of the names, from 1. missing: there is no mask, which is scored as an empty one. problems: one
    line each, of files that could not be used. tumour_ml, reference_ml: volumes, None if unknown. run: the case's own
    report, None without one.
    """

    number: int
    name: str
    missing: bool = False
    problems: tuple[str, ...] = ()
    tumour_ml: float | None = None
    reference_ml: float | None = None
    scores: CaseScores | None = None
    run: CaseReport | None = None

    @property
    def dice(self) -> float | None:
        """Dice against the reference."""
        return None if self.scores is None else self.scores.corrected.dice

    @property
    def expected_dice(self) -> float | None:
        """The Dice that the calibration expects."""
        return None if self.run is None else self.run.confidence.expected_dice

    @property
    def agreement(self) -> float | None:
        """The mean Dice of pairs of folds."""
        return None if self.run is None else self.run.confidence.pairwise_dice

    @property
    def seconds(self) -> float | None:
        """How long the stages took together."""
        return None if self.run is None else sum(self.run.seconds.values())

    @property
    def urgency(self) -> tuple[int, float, int]:
        """The key by which cases that need a look come first: failed, without a mask, lowest Dice, unknown."""
        known = [value for value in (self.dice, self.expected_dice, self.agreement) if value is not None]
        group = 0 if self.problems else 1 if self.missing else 2 if known else 3
        return group, known[0] if known else 0.0, self.number


def read_case(files: CaseFiles, number: int, series: SeriesChoice = ANY_SERIES) -> tuple[Case, Scene | None]:
    """Return a case and what to draw of it, None where the volume or the mask is missing or cannot be used.

    series: of a DICOM study. A file that cannot be used becomes a problem of the case, and the others are used.
    """
    case = Case(number, printable(files.name), missing=files.mask is None)
    problems = [files.problem] if files.problem else []
    reference = _attempt(read_labels, files.reference, problems)
    mask = _attempt(read_labels, files.mask, problems)
    run = _attempt(read_run_report, files.mask, problems)
    scores = None
    if files.reference and reference and (mask or case.missing):
        name, of_reference = files.mask or files.name, files.reference
        scores = _attempt(
            lambda _: score_case(mask, reference, name=name, reference_name=of_reference), of_reference, problems
        )
    scene = None
    if mask and (image := _attempt(lambda path: read_volume(path, series), files.image, problems)):
        scene = _scene(image, mask, reference, case.name, problems)
    case = replace(
        case,
        problems=tuple(dict.fromkeys(problems)),
        tumour_ml=_tumour_ml(mask) if mask else None,
        reference_ml=_tumour_ml(reference) if reference else None,
        scores=scores,
        run=run,
    )
    return case, scene


def _attempt(action: Callable[[Path], T], path: Path | None, problems: list[str]) -> T | None:
    """Return what a function makes of a file; None where it cannot be used, with the reason among the problems."""
    if path is None:
        return None
    try:
        return action(path)
    except (InputError, MemoryError) as error:
        problems.append(one_line(error, path))
        return None


def _scene(image: Volume, mask: Volume, reference: Volume | None, name: str, problems: list[str]) -> Scene | None:
    """Return what to draw, without a mask or reference that is on another grid."""
    try:
        return Scene.of(image, mask, reference, title=name)
    except InputError as error:
        problems.append(str(error))
        return None if reference is None else _scene(image, mask, None, name, problems)


def _tumour_ml(labels: Volume) -> float:
    return float(tumour_of(labels.array).sum()) * labels.grid.voxel_mm3 * ML_PER_MM3
