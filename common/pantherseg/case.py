"""One case from its source to a written mask and report: the one flow that every caller goes through.

    session = Session(load_recipe(path), models)
    run_case(source, session, CaseOutput(mask, report))

The container and `pantherseg predict` differ only in where a source and its output lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pantherseg.errors import InputError
from pantherseg.events import Event
from pantherseg.files import prepare_folder, remove_file, write_text
from pantherseg.fingerprint import fingerprint_of
from pantherseg.io import input_name, read_image, write_volume
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.io.digest import source_sha256
from pantherseg.io.probabilities import write_probability
from pantherseg.logs import shown, stage
from pantherseg.machine.deadline import Deadline
from pantherseg.machine.memory import forget_peak
from pantherseg.results import Fingerprint
from pantherseg.session import Session
from pantherseg.volume import Volume

if TYPE_CHECKING:
    from pantherseg.pipeline import Segmentation


@dataclass(frozen=True)
class CaseOutput:
    """Where the mask and the report (JSON) of a case belong, and the tumour's probability (.npz) if it is wanted."""

    mask: Path
    report: Path
    probability: Path | None = None


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
    fingerprint = fingerprint_of(source, session)  # loads models after reading, so that a bad input is named at once
    for path in (output.mask, output.report):
        prepare_folder(path.parent)
    from pantherseg.pipeline import segment  # imports what runs networks, for which a bad input need not wait

    try:
        segmentation = segment(
            volume, session, events=events, deadline=deadline, keep_probability=output.probability is not None
        )
    except InputError as error:
        raise error.at(source) from error
    write_case(source, segmentation, output, fingerprint)
    return CaseResult(segmentation, output)


def read_case(source: Path, series: SeriesChoice = ANY_SERIES) -> tuple[Volume, tuple[Event, ...]]:
    """Return a volume and the events of reading it, with a log line. series: of a DICOM study. Raises InputError."""
    with stage("read") as remarks:
        volume, events = read_image(source, series)
        remarks.append(f"{input_name(source)}, {volume.grid.describe()}")
    return volume, events


def write_case(source: Path, segmentation: Segmentation, output: CaseOutput, fingerprint: Fingerprint) -> None:
    """Write the mask, the probability if it is wanted, and last the report of a case; where one fails, none is left.

    Raises OutputError.
    """
    folder, probability = output.report.parent, segmentation.probability
    kept = None if probability is None or output.probability is None else output.probability
    report = segmentation.report(
        input_name=input_name(source),
        mask_path=os.path.relpath(output.mask, folder),
        probability_path=None if kept is None else os.path.relpath(kept, folder),
    )
    with stage("write") as remarks:
        remove_file(output.report)  # an older report must not stand beside a new mask
        write_volume(segmentation.mask, output.mask, like=source)
        try:
            if kept is not None and probability is not None:
                write_probability(probability, kept)
            made = msgspec.structs.replace(report, fingerprint=fingerprint, mask_sha256=source_sha256(output.mask))
            write_text(output.report, made.as_text())
        except BaseException:
            remove_file(output.mask)
            if kept is not None:
                remove_file(kept)
            raise
        remarks.append(shown(output.mask))
