"""One case from its source to a written mask and report: the one flow that every caller goes through.

    session = Session(load_recipe(path), models)
    run_case(source, session, CaseOutput(mask, report))

The container and `pantherseg predict` differ only in where a source and its output lie.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from pantherseg.dicom_results.formats import (
    check_headers,
    check_installed,
    format_of,
    is_probability,
    make_object,
    save_object,
)
from pantherseg.errors import InputError, OptionError, first_few
from pantherseg.events import Event
from pantherseg.files import prepare_folder, remove_file, write_text
from pantherseg.fingerprint import fingerprint_of
from pantherseg.io import input_name, read_image, source_datasets, write_volume
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.io.dicom.source import DicomSource
from pantherseg.io.digest import source_sha256
from pantherseg.io.probabilities import write_probability
from pantherseg.logs import shown, stage
from pantherseg.machine.deadline import Deadline
from pantherseg.machine.memory import forget_peak
from pantherseg.results import CaseReport, DicomOptions, Fingerprint, read_report
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

    from pantherseg.pipeline import Segmentation


@dataclass(frozen=True)
class CaseOutput:
    """Where the mask and the report (JSON) of a case belong, and the tumour's probability (.npz) if it is wanted.

    others: the same mask in other formats, by their suffixes, in the folder of the report; dicom: how those of them,
    and the mask, are made that are DICOM objects.
    """

    mask: Path
    report: Path
    probability: Path | None = None
    others: tuple[Path, ...] = ()
    dicom: DicomOptions = field(default_factory=DicomOptions)

    @property
    def results(self) -> tuple[Path, ...]:
        """The mask in all its formats."""
        return (self.mask, *self.others)

    @property
    def objects(self) -> tuple[Path, ...]:
        """Those of the results that are DICOM objects."""
        return tuple(path for path in self.results if format_of(path.name))

    @property
    def dicom_options(self) -> DicomOptions | UnsetType:
        """How DICOM objects are made, if there are any."""
        return self.dicom if self.objects else UNSET


@dataclass(frozen=True)
class CaseResult:
    """A case that is done: what was found, and where it was written."""

    segmentation: Segmentation
    output: CaseOutput


def run_case(source: Path, session: Session, output: CaseOutput) -> CaseResult:
    """Segment a source, a volume file or a folder that a reader takes, and write its mask and report.

    Nothing is written unless the mask is complete. Raises InputError for the source, ModelError, RecipeError and
    DeviceError for what the session needs, OutputError for what cannot be written.
    """
    deadline = Deadline.after(session.recipe.time_budget_s)
    forget_peak()
    volume, events = read_case(source, session.recipe.series)
    series = _series_of(source, volume.grid, session, output)
    # Loads models after reading, so that a bad input is named at once.
    fingerprint = fingerprint_of(source, session, output.dicom_options)
    for path in (output.mask, output.report):
        prepare_folder(path.parent)
    from pantherseg.pipeline import segment  # imports what runs networks, for which a bad input need not wait

    try:
        segmentation = segment(
            volume,
            session,
            events=events,
            deadline=deadline,
            keep_probability=output.probability is not None or any(map(is_probability, output.objects)),
            keep_pancreas=bool(output.objects),
        )
    except InputError as error:
        raise error.at(source) from error
    write_case(source, segmentation, output, fingerprint, series)
    return CaseResult(segmentation, output)


def _series_of(source: Path, grid: Grid, session: Session, output: CaseOutput) -> DicomSource | None:
    """Return the DICOM series that objects are about, None where there are none.

    Raises OptionError for no DICOM, and for a series whose headers do not allow the objects.
    """
    if not output.objects:
        return None
    check_installed(output.mask)
    series = source_datasets(source, session.recipe.series)
    if series is None:
        raise no_series(source)
    check_headers(output.objects, series, grid, output.dicom, session.recipe.name)
    return series


def no_series(source: Path) -> OptionError:
    """Return the error about a source that is no DICOM and was to get DICOM results."""
    expected, hint = "DICOM input for DICOM results, which refer to it", "choose another --output-format, such as mha"
    return OptionError(source, expected=expected, found="a volume file", hint=hint)


def read_case(source: Path, series: SeriesChoice = ANY_SERIES) -> tuple[Volume, tuple[Event, ...]]:
    """Return a volume and the events of reading it, with a log line. series: of a DICOM study. Raises InputError."""
    with stage("read") as remarks:
        volume, events = read_image(source, series)
        remarks.append(f"{input_name(source)}, {volume.grid.describe()}")
    return volume, events


def write_case(
    source: Path,
    segmentation: Segmentation,
    output: CaseOutput,
    fingerprint: Fingerprint,
    series: DicomSource | None = None,
) -> None:
    """Write the mask, the probability if it is wanted, and last the report of a case; where one fails, none is left.

    What an earlier run wrote about the case in formats that are not wanted now is removed. series: which DICOM objects
    are about. Raises OutputError, and OptionError for a series about which they cannot be made, before anything is
    removed.
    """
    folder, probability = output.report.parent, segmentation.probability
    kept = None if probability is None or output.probability is None else output.probability
    report = segmentation.report(
        input_name=input_name(source),
        mask_path=os.path.relpath(output.mask, folder),
        probability_path=None if kept is None else os.path.relpath(kept, folder),
    )
    report = msgspec.structs.replace(report, fingerprint=fingerprint)
    files = output.results if kept is None else (*output.results, kept)
    objects = _objects(segmentation, report, output, series)
    with stage("write") as remarks:
        remove_earlier(output, but=files)
        remove_file(output.report)  # an older report must not stand beside a new mask
        try:
            for path in output.results:
                if path in objects:
                    save_object(path, objects[path])
                else:
                    write_volume(segmentation.mask, path, like=source)
            if kept is not None and probability is not None:
                write_probability(probability, kept)
            sha256 = {path: source_sha256(path) for path in output.results}
            others = {path.name: sha256[path] for path in output.others}
            made = msgspec.structs.replace(report, mask_sha256=sha256[output.mask], other_results=others or UNSET)
            write_text(output.report, made.as_text())
        except BaseException:
            for path in files:
                remove_file(path)
            raise
        remarks.append(first_few(map(shown, output.results)))


def _objects(
    segmentation: Segmentation, report: CaseReport, output: CaseOutput, series: DicomSource | None
) -> dict[Path, Dataset]:
    """Return the results that are DICOM objects by their files."""
    if not output.objects:
        return {}
    from pantherseg.dicom_results.making import Found, Making  # imports highdicom, which only DICOM results need

    assert series is not None  # `run_case` has looked for it
    found = Found(segmentation.mask, segmentation.pancreas_mask, segmentation.probability)
    making = Making(series, segmentation.mask.grid, report, output.dicom)
    return {path: make_object(path, found, making) for path in output.objects}


def remove_earlier(output: CaseOutput, *, but: Collection[Path] = ()) -> bool:
    """Remove the report of an earlier run, and what it names of this case; return whether there was any of it.

    but: what stays, because it will be replaced. A mask without a report that names it may be another program's, and
    stays. Raises OutputError.
    """
    folder = output.report.parent
    try:
        earlier = read_report(output.report)
    except InputError:
        return False
    probability = [folder / earlier.probability] if isinstance(earlier.probability, str) else []
    # A report that was copied or renamed may name the results of another case.
    own = [
        path
        for path in (*earlier.results(folder), *probability)
        if path.parent == folder and path.name.startswith(f"{output.report.stem}.")
    ]
    for path in (output.report, *own):
        if path not in but:
            remove_file(path)
    return bool(own)
