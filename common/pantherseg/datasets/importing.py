"""Brings published data sets into a raw nnU-Net data set: checked, relabelled, turned to one orientation.

An image that is stored as it is needed is linked, not copied.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.datasets.case_checks import CHECKS, CaseVolumes, read_case, relabelled
from pantherseg.datasets.layouts import Found, FoundCase, Values, find_cases
from pantherseg.datasets.raw import FILE_ENDINGS, NewDataset, dataset_folder, new_dataset
from pantherseg.errors import InputError
from pantherseg.files import write_text
from pantherseg.io import case_name, mask_name
from pantherseg.labels import BACKGROUND_NAME, LABEL_MAPS, TUMOUR_NAME, LabelMapName
from pantherseg.orientation import DEFAULT_ORIENTATION, NO_TURN, Orientation
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

REPORT = "import.json"


@dataclass(frozen=True)
class Source:
    """A folder to import, and its layout: a name in `layouts.LAYOUTS`."""

    layout: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.layout}={self.folder}"


@dataclass(frozen=True)
class Refusal:
    """A case that was not imported. case: its name; reason: one line that begins with the file."""

    source: str
    case: str
    reason: str


@dataclass
class ImportReport:
    """What an import did.

    dataset: the new folder; imported: the names of its cases; linked: those whose image is a link; refused: the other
    cases, with reasons; changed: by case, what differs from the file because nnU-Net would not read it right.
    """

    dataset: Path
    imported: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return {
            "imported": len(self.imported),
            "linked": len(self.linked),
            "refused": [vars(refusal) for refusal in self.refused],
            "changed": self.changed,
        }


def import_data(
    sources: Sequence[Source],
    raw: Path,
    dataset_id: int,
    name: str,
    *,
    labels: LabelMapName = "tumour+pancreas",
    orientation: Orientation = DEFAULT_ORIENTATION,
    require_tumour: bool = False,
    strict: bool = False,
    on_case: Callable[[str], object] | None = None,
) -> ImportReport:
    """Import sources as raw/Dataset<id>_<name>, and return what was done; import.json in that folder says the same.

    labels: the label map of the new data set, a name in LABEL_MAPS; orientation: to which every volume is turned;
    require_tumour: refuse cases without a tumour; strict: refuse the import if any case is refused; on_case: called
    with the name of each case once it is done.

    A case that cannot be used is refused, and logged in one line. Raises InputError if a source cannot be used, if no
    case is left, or as `strict` says; OutputError if the data set cannot be written. Then nothing is written.
    """
    folder = dataset_folder(raw, dataset_id, name)
    target = LABEL_MAPS[labels]
    found = _with_distinct_names([(source, find_cases(source.layout, source.folder)) for source in sources])
    _check_sources(found, labels)
    report = ImportReport(folder)
    seen: dict[str, Path] = {}
    ending = _file_ending([case for _, each in found for case in each.cases])
    with new_dataset(raw, dataset_id, name, labels=target, orientation=orientation, file_ending=ending) as new:
        for source, each in found:
            values = _wanted(each.values, target)
            for case in each.cases:
                try:
                    volumes = _checked(case, values, orientation, seen, require_tumour=require_tumour)
                except InputError as error:
                    report.refused.append(Refusal(str(source), case.name, str(error)))
                    logger.warning("refused: %s", error)
                else:
                    _add(new, case, volumes, target, report)
                if on_case is not None:
                    on_case(case.name)
        _check_outcome(report, strict=strict)
        content = {"sources": [str(source) for source in sources], "labels": labels, **report.as_dict()}
        write_text(new.folder / REPORT, json.dumps(content, indent=2) + "\n")
    return report


def _with_distinct_names(sources: list[tuple[Source, Found]]) -> list[tuple[Source, Found]]:
    """Return sources with the layout before the names of cases that more than one source has.

    Where the layout is the same too, all but the first are refused.
    """
    count = Counter(case.name for _, found in sources for case in found.cases)
    first: dict[str, FoundCase] = {}
    result = []
    for source, found in sources:
        cases = []
        for case in found.cases:
            if count[case.name] > 1:
                case = replace(case, name=f"{source.layout}_{case.name}")
            other = first.setdefault(case.name, case)
            if other is not case and not case.problem:
                case = replace(case, problem=f"the name of this case is also that of {other.image}")
            cases.append(case)
        result.append((source, replace(found, cases=tuple(cases))))
    return result


def _check_sources(sources: list[tuple[Source, Found]], labels: LabelMapName) -> None:
    """Raise InputError unless all sources are labelled or none is, and their labels include those that are wanted."""
    with_labels = {bool(found.values) for _, found in sources}
    for source, found in sources:
        if len(with_labels) > 1 and not found.values:
            raise InputError(source.folder, "images without labels can only be imported into a data set of their own")
        missing = LABEL_MAPS[labels].keys() - set(found.values.values())
        if found.values and missing:
            had = ", ".join(dict.fromkeys(found.values.values()))
            raise InputError(source.folder, expected=f"the labels {labels}", found=had)


def _wanted(values: Values, target: Mapping[str, int]) -> Values:
    """Return values with background as the name of those that the new data set does not have."""
    return {value: name if name in target else BACKGROUND_NAME for value, name in values.items()}


def _file_ending(cases: Sequence[FoundCase]) -> str:
    """Return the ending that most images have, so that the fewest must be copied; the first of equally many."""
    endings = Counter(mask_name(case.image).removeprefix(case_name(case.image)) for case in cases)
    return next((ending for ending, _ in endings.most_common() if ending in FILE_ENDINGS), FILE_ENDINGS[0])


def _checked(
    case: FoundCase, values: Values, orientation: Orientation, seen: dict[str, Path], *, require_tumour: bool
) -> CaseVolumes:
    """Return the volumes of a case. seen: the images so far by their checksum. Raises InputError."""
    if case.problem:
        raise InputError(case.image, case.problem)
    volumes = read_case(case.image, case.label, values=values, orientation=orientation)
    for check in CHECKS.values():
        check(volumes)
    if require_tumour and volumes.label is not None:
        tumour = [value for value, name in values.items() if name == TUMOUR_NAME]
        if not np.isin(volumes.label.array, tumour).any():
            raise InputError(volumes.label_path or "", expected="a tumour", found="none")
    first = seen.setdefault(volumes.digest, case.image)
    if first != case.image:
        raise InputError(case.image, f"this is the same image as {first}")
    return volumes


def _add(
    new: NewDataset, case: FoundCase, volumes: CaseVolumes, target: Mapping[str, int], report: ImportReport
) -> None:
    """Add a case to the new data set and to the report."""
    label = None
    if volumes.label is not None:
        label = Volume(relabelled(volumes.label.array, volumes.values, target), volumes.image.grid)
    corrections = volumes.corrections
    as_needed = volumes.turn == NO_TURN and not corrections and case.image.name.endswith(new.file_ending)
    new.add(case.name, case.known.turned(volumes.turn), case.image if as_needed else volumes.image, label)
    report.imported.append(case.name)
    if as_needed:
        report.linked.append(case.name)
    if corrections:
        report.changed[case.name] = corrections


def _check_outcome(report: ImportReport, *, strict: bool) -> None:
    """Raise InputError if no case is left, or if any was refused where that is not allowed."""
    refused, every = len(report.refused), len(report.refused) + len(report.imported)
    if refused and (strict or not report.imported):
        raise InputError(
            report.dataset, f"{refused} of {every} cases were refused, the first: {report.refused[0].reason}"
        )
