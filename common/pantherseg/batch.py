"""A volume, or every volume of a folder, into a folder of masks and reports."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pantherseg.case import CaseOutput, no_series, remove_earlier, run_case
from pantherseg.dicom_results.formats import check_installed, format_of
from pantherseg.dicom_results.send import Receiver
from pantherseg.errors import InputError, OptionError, OutputError, PantherSegError, first_few
from pantherseg.files import prepare_folder
from pantherseg.fingerprint import finished_report
from pantherseg.io import case_name, find_sources, input_name, mask_name
from pantherseg.io.probabilities import SUFFIX
from pantherseg.io.reader import VOLUME_SUFFIXES
from pantherseg.logs import one_line, shown
from pantherseg.progress import cases_with_progress
from pantherseg.results import DicomOptions
from pantherseg.session import Session

logger = logging.getLogger(__name__)


def has_many_cases(source: Path) -> bool:
    """Return whether a path is a folder of sources, rather than a source itself. Raises InputError."""
    return source.is_dir() and find_sources(source, dangling=True) != [source]


@dataclass(frozen=True)
class Wanted:
    """What a run is to write about each case.

    formats: suffixes of the mask's files, none for the format of each source; dicom: how DICOM objects are made;
    probabilities: also the tumour's probability before post-processing, in the form of `io.probabilities`.
    """

    formats: tuple[str, ...] = ()
    dicom: DicomOptions = field(default_factory=DicomOptions)
    probabilities: bool = False

    def output_of(self, source: Path, folder: Path, name: str = "") -> CaseOutput:
        """Return where the results of a source belong. Raises InputError if no reader accepts it.

        name: of the case, by default that of its source.
        """
        name = name or case_name(source)
        first, *others = [folder / f"{name}{suffix}" for suffix in self.formats] or [folder / mask_name(source, name)]
        probability = folder / f"{name}{SUFFIX}" if self.probabilities else None
        return CaseOutput(first, folder / f"{name}.json", probability, tuple(others), self.dicom)


EACH_ITS_OWN = Wanted()


def run_batch(
    source: Path,
    output: Path,
    session: Session,
    *,
    wanted: Wanted = EACH_ITS_OWN,
    redo: bool = False,
    receiver: Receiver | None = None,
) -> list[Path]:
    """Segment a source, or every source in a folder, and return the sources that failed.

    The folder `output` gets a mask and a report <case>.json of each source. A single source that fails raises its
    error; in a folder the others are still segmented. What an earlier run wrote about a failed one is removed, unless
    it is only the options that the volume does not allow. Finished cases, as `finished_report` tells them, are skipped.
    Files that would get the same mask fail.

    redo: segment finished cases, too; receiver: gets the DICOM objects of all cases that did not fail, when they are
    done. Raises what `run_case` raises for models, devices and outputs that no source could use, and OutputError for a
    receiver that does not take the objects.
    """
    is_folder = has_many_cases(source)
    if source.is_dir() and os.path.realpath(source) == os.path.realpath(output):
        raise OutputError(output, "the masks would lie among the volumes", hint="write to another folder")
    sources, failed = _sources(source) if is_folder else ([source], [])
    outputs = {path: wanted.output_of(path, output) for path in sources}
    check_targets(outputs)
    if receiver is not None:
        receiver.check([one for one in map(format_of, wanted.formats) if one is not None])
    if is_folder:
        session.load()  # models or a folder that cannot be used end the run, rather than each case
        prepare_folder(output)
    waiting = [path for path in sources if redo or not is_finished(path, outputs[path], session)]
    if skipped := len(sources) - len(waiting):
        logger.info("%d of %d volumes are finished and skipped: %s", skipped, len(sources), _why(source, is_folder))
    if is_folder:
        total = len(failed) + len(waiting)
        failed += _run_all(waiting, outputs, session)
        if failed:
            names = ", ".join(map(input_name, failed))
            logger.error("error: %d of %d volumes failed: %s", len(failed), total, names)
    else:
        for path in waiting:
            segment_case(path, session, outputs[path])
    objects = [made for path in sources if path not in failed for made in outputs[path].objects]
    if receiver is not None and objects:
        receiver.send(objects)
    return failed


def segment_case(source: Path, session: Session, output: CaseOutput) -> None:
    """Segment one of many cases; where that fails, what an earlier run wrote about it is removed.

    Nobody may take that for the result of this run. It stays where the volume itself is not the reason, but what was
    asked for. Raises what `run_case` raises.
    """
    try:
        run_case(source, session, output)
    except OptionError:
        raise
    except BaseException:
        with contextlib.suppress(OutputError):
            if remove_earlier(output):
                logger.warning("%s: the result of an earlier run was removed", shown(output.mask))
        raise


def _run_all(waiting: list[Path], outputs: dict[Path, CaseOutput], session: Session) -> list[Path]:
    """Segment the volumes of a folder, and return those that failed."""
    failed: list[Path] = []
    with cases_with_progress(waiting, unit="volume", total=len(waiting), failed=failed) as paths:
        for path in paths:
            try:
                segment_case(path, session, outputs[path])
            except Exception as error:  # whatever is wrong with one volume, the others are segmented
                logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
                logger.error("error: %s", one_line(error, path))
                failed.append(path)
    return failed


def is_finished(source: Path, output: CaseOutput, session: Session) -> bool:
    """Return whether a case need not be segmented. A source that cannot be read is not finished.

    Raises what `Session.load` raises.
    """
    try:
        report = finished_report(
            source, session, results=output.results, report=output.report, dicom=output.dicom_options
        )
    except InputError:
        return False
    if report is None:
        return False
    saved = isinstance(report.probability, str)
    return output.probability is None or (saved and zipfile.is_zipfile(output.probability))  # a cut file has no end


def _why(source: Path, is_folder: bool) -> str:
    which = "them" if is_folder else input_name(source)
    return f"their input, recipe, models and version are the same; to segment {which} again, use --redo"


def _sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the volumes of a folder, and those of which several have the name of one case, with an error for each."""
    sources = find_sources(folder, dangling=True)
    if not sources:
        raise InputError(folder, "the folder contains no volume")
    others = sorted(path.name for path in set(folder.iterdir()).difference(sources) if not path.name.startswith("."))
    if others:
        # What lies beside DICOM may be named after patients, too.
        named = all(path.name.lower().endswith(VOLUME_SUFFIXES) for path in sources)
        which = first_few(others) if named else f"{len(others)} files or folders"
        logger.warning("%s: not read, because they are not volumes: %s", folder, which)
    names = {path: case_name(path) for path in sources}  # of DICOM, read from headers
    files = Counter(names.values())
    ambiguous = [path for path in sources if files[names[path]] > 1]
    for path in ambiguous:
        same = [other for other in ambiguous if other != path and names[other] == names[path]]
        found, hint = f"also {', '.join(map(input_name, same))}", "rename or remove one of them"
        logger.error("error: %s", InputError(path, expected="one file for this case", found=found, hint=hint))
    return [path for path in sources if path not in ambiguous], ambiguous


def check_targets(outputs: dict[Path, CaseOutput]) -> None:
    """Check what is to be written before anything is computed.

    Raises OutputError if a mask would overwrite its volume, which has the same name, and for a package that DICOM
    results need; InputError for a volume file that was to get them.
    """
    for source, output in outputs.items():
        if os.path.realpath(source) in map(os.path.realpath, output.results):
            problem = f"the mask of {source.name} would overwrite the volume itself"
            raise OutputError(output.mask.parent, problem, hint="write to another folder")
        if output.objects and source.name.lower().endswith(VOLUME_SUFFIXES):
            raise no_series(source)
    if any(output.objects for output in outputs.values()):
        check_installed(next(iter(outputs.values())).mask.parent)
