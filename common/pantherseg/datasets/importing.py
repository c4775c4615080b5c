"""Brings published data sets into a raw nnU-Net data set: checked, relabelled, turned to one orientation.

An image that is stored as it is needed is linked, not copied.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.datasets.case_checks import CHECKS, CaseVolumes, read_case, relabelled
from pantherseg.datasets.layouts import Found, FoundCase, Values, find_cases
from pantherseg.datasets.raw import FILE_ENDINGS, NAME, NewDataset, RawDataset, dataset_folder, new_dataset
from pantherseg.datasets.splits import SPLITS, Splits, check_splits, splits_of, write_splits
from pantherseg.errors import InputError, OutputError, first_few
from pantherseg.files import write_text
from pantherseg.io import case_name, mask_name, read_grid
from pantherseg.labels import BACKGROUND_NAME, LABEL_MAPS, TUMOUR_NAME, LabelMapName
from pantherseg.orientation import DEFAULT_ORIENTATION, NO_TURN, Orientation
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

REPORT = "import.json"
# The least share of an image's file that the image takes when it is written again, compressed.
COMPRESSED = 0.5
GB = 1e9


@dataclass(frozen=True)
class Source:
    """A folder to import, and its layout: a name in `layouts.LAYOUTS`."""

    layout: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.layout}={self.folder}"

    @property
    def prefix(self) -> str:
        """What sets its cases apart from those of other sources: the name of a raw data set, otherwise the layout."""
        named = re.fullmatch(NAME, self.folder.absolute().name) if self.layout == "raw" else None
        return named[2] if named else self.layout


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
    cases, with reasons; changed: by case, what differs from the file because nnU-Net would not read it right;
    label_names: for each source that names its labels, what each name was taken for.
    """

    dataset: Path
    imported: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    label_names: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return {
            "imported": len(self.imported),
            "linked": len(self.linked),
            "refused": [vars(refusal) for refusal in self.refused],
            "changed": self.changed,
            "label_names": self.label_names,
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
    keep_splits: bool = False,
    root: Path | None = None,
    on_case: Callable[[str], object] | None = None,
) -> ImportReport:
    """Import sources as raw/Dataset<id>_<name>, and return what was done; import.json in that folder says the same.

    labels: the label map of the new data set, a name in LABEL_MAPS; orientation: to which every volume is turned;
    require_tumour: refuse cases without a tumour; strict: refuse the import if any case is refused; keep_splits: a
    single source in the layout `raw` passes its splits on; root: as in `new_dataset`; on_case: called with the name of
    each case once it is done.

    A case that cannot be used is refused, and logged in one line. Cases with labels by experts come first, so that of
    two cases with the same image the expert's is taken. Raises InputError if a source cannot be used, if no case is
    left, or as `strict` says; OutputError if the data set cannot be written. Then nothing is written.
    """
    folder = dataset_folder(raw, dataset_id, name)
    target = LABEL_MAPS[labels]
    _check_not_inside(folder, sources)
    found = [(source, find_cases(source.layout, source.folder)) for source in sources]
    _check_sources(found, labels, require_tumour=require_tumour)
    cases = _with_distinct_names(found)
    splits = _splits_of(sources) if keep_splits else None
    ending = _file_ending([case for _, _, case in cases])
    _check_space(folder, [case for _, _, case in cases], ending, orientation)
    report = ImportReport(folder, label_names=_label_names(found, target))
    seen: dict[str, Path] = {}
    with new_dataset(
        raw, dataset_id, name, labels=target, orientation=orientation, file_ending=ending, root=root
    ) as new:
        for source, values, case in cases:
            try:
                volumes = _checked(case, _wanted(values, target), orientation, seen, require_tumour=require_tumour)
            except InputError as error:
                report.refused.append(Refusal(str(source), case.name, str(error)))
                logger.warning("refused: %s", error)
            else:
                _add(new, case, volumes, target, report)
            if on_case is not None:
                on_case(case.name)
        _check_outcome(report, strict=strict)
        if splits is not None:
            _pass_on(splits, new)
        content = {"sources": [str(source) for source in sources], "labels": labels, **report.as_dict()}
        write_text(new.folder / REPORT, json.dumps(content, indent=2) + "\n")
    return report


def _check_not_inside(folder: Path, sources: Sequence[Source]) -> None:
    """Raise OutputError for a data set that would be written into a folder that is imported."""
    for source in sources:
        if source.folder.resolve() in folder.resolve().parents:
            raise OutputError(folder, f"the new data set would be inside {source.folder}, which is to be imported")


def _with_distinct_names(sources: list[tuple[Source, Found]]) -> list[tuple[Source, Values, FoundCase]]:
    """Return the cases of all sources, pseudo-labelled ones last, with the values of their labels.

    Names are those of `distinct_names`; where two are still the same, the later case is refused. Cases that cannot be
    used keep their names.
    """
    every = [(source, found.values, case) for source, found in sources for case in found.cases]
    every.sort(key=lambda each: each[2].known.pseudo)
    usable = [(source.prefix, case.name, case.known.pseudo) for source, _, case in every if not case.problem]
    names = iter(distinct_names(usable))
    first: dict[str, FoundCase] = {}
    result = []
    for source, values, case in every:
        if not case.problem:
            case = replace(case, name=next(names))
            other = first.setdefault(case.name, case)
            if other is not case:
                case = replace(case, problem=f"the name of this case is also that of {other.image}")
        result.append((source, values, case))
    return result


def distinct_names(cases: Sequence[tuple[str, str, bool]]) -> list[str]:
    """Return the names that cases of several sources get in one data set.

    cases: for each the prefix of its source, its name there, and whether it is pseudo-labelled. A name that several
    cases have stays with the only one that is not pseudo-labelled, and the others get their prefix in front.
    """
    every = Counter(name for _, name, _ in cases)
    by_expert = Counter(name for _, name, pseudo in cases if not pseudo)
    return [
        name if every[name] == 1 or (by_expert[name] == 1 and not pseudo) else f"{prefix}_{name}"
        for prefix, name, pseudo in cases
    ]


def _splits_of(sources: Sequence[Source]) -> Splits | None:
    """Return the splits of a single raw data set, None for others. Raises InputError if they do not suit it."""
    if len(sources) != 1 or sources[0].layout != "raw":
        return None
    return splits_of(RawDataset.open(sources[0].folder))


def _pass_on(splits: Splits, new: NewDataset) -> None:
    """Write splits for a new data set, without the cases that were refused; log where too few cases are left."""
    splits = [{side: [name for name in names if name in new.cases] for side, names in fold.items()} for fold in splits]
    try:
        check_splits(new.target / SPLITS, splits, new.cases)
    except InputError as error:
        logger.warning("the splits are not kept, because of refused cases: %s", error)
    else:
        write_splits(new.folder, splits)


def _label_names(sources: list[tuple[Source, Found]], target: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Return for each source that names its labels what each is taken for, and log it."""
    result = {}
    for source, found in sources:
        if found.stated:
            wanted = _wanted(found.values, target)
            names = {found.stated[value]: name for value, name in wanted.items()}
            result[str(source)] = names
            taken = ", ".join(f"{stated} as {name}" for stated, name in names.items())
            logger.info("%s: labels taken: %s", source, taken)
    return result


def _check_space(folder: Path, cases: Sequence[FoundCase], ending: str, orientation: Orientation) -> None:
    """Raise OutputError if the disk has less room than the images take that cannot be linked."""
    wanted = 0.0
    for case in cases:
        with suppress(InputError, OSError):  # a case that cannot be used is refused later
            grid = read_grid(case.image)
            if grid is None or grid.orientation != orientation or not _has_ending(case.image, ending):
                wanted += COMPRESSED * case.image.stat().st_size
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if wanted > free:
        expected = f"at least {wanted / GB:.3g} GB for images that must be written in another form"
        raise OutputError(folder, expected=expected, found=f"{free / GB:.3g} GB free")


def _has_ending(image: Path, ending: str) -> bool:
    """Return whether a link to an image can have an ending; upper and lower case are the same, as the link is named."""
    return image.name.lower().endswith(ending)


def _check_sources(sources: list[tuple[Source, Found]], labels: LabelMapName, *, require_tumour: bool) -> None:
    """Raise InputError unless all sources are labelled or none is, and their labels include those that are wanted.

    Log how many files are not used.
    """
    with_labels = {bool(found.values) for _, found in sources}
    for source, found in sources:
        if found.others:
            names = first_few([path.name for path in found.others], limit=3)
            logger.warning("%s: %d files are no volumes and are left out: %s", source, len(found.others), names)
        if require_tumour and TUMOUR_NAME not in (LABEL_MAPS[labels] if found.values else ()):
            had = f"the labels {labels}" if found.values else "images without labels"
            raise InputError(source.folder, expected="labels of tumours, which are required", found=had)
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
    digest = volumes.digest
    if first := seen.get(digest):
        raise InputError(case.image, f"this is the same image as {first}")
    seen[digest] = case.image
    return volumes


def _add(
    new: NewDataset, case: FoundCase, volumes: CaseVolumes, target: Mapping[str, int], report: ImportReport
) -> None:
    """Add a case to the new data set and to the report."""
    label = None
    if volumes.label is not None:
        label = Volume(relabelled(volumes.label.array, volumes.values, target), volumes.image.grid)
    corrections = volumes.corrections
    as_needed = volumes.turn == NO_TURN and not corrections and _has_ending(case.image, new.file_ending)
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
