"""A volume, or every volume of a folder, into a folder of masks and reports."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections import Counter
from pathlib import Path

from pantherseg.case import CaseOutput, remove_earlier, run_case
from pantherseg.errors import InputError, OutputError, PantherSegError, first_few
from pantherseg.files import prepare_folder
from pantherseg.fingerprint import finished_report
from pantherseg.io import case_name, find_sources, mask_name
from pantherseg.io.dicom import refuse_dicom
from pantherseg.io.probabilities import SUFFIX
from pantherseg.logs import one_line, shown
from pantherseg.progress import cases_with_progress
from pantherseg.session import Session

logger = logging.getLogger(__name__)


def has_many_cases(source: Path) -> bool:
    """Return whether a path is a folder of sources, rather than a source itself. Raises InputError."""
    return source.is_dir() and find_sources(source, dangling=True) != [source]


def run_batch(
    source: Path, output: Path, session: Session, *, save_probabilities: bool = False, redo: bool = False
) -> list[Path]:
    """Segment a source, or every source in a folder, and return the sources that failed.

    The folder `output` gets a mask in the format of each source and a report <case>.json. A single source that fails
    raises its error; in a folder the others are still segmented. What an earlier run wrote about a failed one is
    removed. Finished cases, as `finished_report` tells them, are skipped. Files that would get the same mask fail.

    save_probabilities: also write the tumour's probability before post-processing to <case>.npz, in the form of
    `io.probabilities`; redo: segment finished cases, too. Raises what `run_case` raises for models, devices and outputs
    that no source could use.
    """
    is_folder = has_many_cases(source)
    if is_folder and os.path.realpath(source) == os.path.realpath(output):
        raise OutputError(output, "the masks would lie among the volumes", hint="write to another folder")
    sources, ambiguous = _sources(source) if is_folder else ([source], [])
    _check_targets(sources, output)
    if is_folder:
        session.load()  # models or a folder that cannot be used end the run, rather than each case
        prepare_folder(output)
    outputs = {path: _output_of(path, output, save_probabilities) for path in sources}
    waiting = [path for path in sources if redo or not _is_finished(path, outputs[path], session)]
    if skipped := len(sources) - len(waiting):
        logger.info("%d of %d volumes are finished and skipped: %s", skipped, len(sources), _why(source, is_folder))
    if not is_folder:
        for path in waiting:
            _run(path, session, outputs[path])
        return []
    failed = ambiguous + _run_all(waiting, outputs, session)
    if failed:
        names = ", ".join(path.name for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(ambiguous) + len(waiting), names)
    return failed


def _run(source: Path, session: Session, output: CaseOutput) -> None:
    """Segment a volume; where that fails, nobody may take what an earlier run wrote for the result of this one."""
    try:
        run_case(source, session, output)
    except BaseException:
        with contextlib.suppress(OutputError):
            if remove_earlier(output):
                logger.warning("%s: the result of an earlier run was removed", shown(output.mask))
        raise


def _run_all(waiting: list[Path], outputs: dict[Path, CaseOutput], session: Session) -> list[Path]:
    """Segment the volumes of a folder, and return those that failed."""
    failed = []
    with cases_with_progress(waiting, unit="volume") as paths:
        for path in paths:
            try:
                _run(path, session, outputs[path])
            except Exception as error:  # whatever is wrong with one volume, the others are segmented
                logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
                logger.error("error: %s", one_line(error, path))
                failed.append(path)
    return failed


def _is_finished(source: Path, output: CaseOutput, session: Session) -> bool:
    """Return whether a case need not be segmented. A source that cannot be read is not finished."""
    try:
        report = finished_report(source, session, mask=output.mask, report=output.report)
    except InputError:
        return False
    if report is None:
        return False
    saved = isinstance(report.probability, str)
    return output.probability is None or (saved and zipfile.is_zipfile(output.probability))  # a cut file has no end


def _why(source: Path, is_folder: bool) -> str:
    which = "them" if is_folder else source.name
    return f"their input, recipe, models and version are the same; to segment {which} again, use --redo"


def _output_of(source: Path, output: Path, save_probabilities: bool) -> CaseOutput:
    name = case_name(source)
    probability = output / f"{name}{SUFFIX}" if save_probabilities else None
    return CaseOutput(output / mask_name(source), output / f"{name}.json", probability)


def _sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the volumes of a folder, and those of which several have the name of one case, with an error for each."""
    sources = find_sources(folder, dangling=True)
    if not sources:
        refuse_dicom(folder)
        raise InputError(folder, "the folder contains no volume")
    others = sorted(path.name for path in set(folder.iterdir()).difference(sources) if not path.name.startswith("."))
    if others:
        logger.warning("%s: not read, because they are not volumes: %s", folder, first_few(others))
    files = Counter(map(case_name, sources))
    ambiguous = [path for path in sources if files[case_name(path)] > 1]
    for path in ambiguous:
        others = [other.name for other in ambiguous if other != path and case_name(other) == case_name(path)]
        found, hint = f"also {', '.join(others)}", "rename or remove one of them"
        logger.error("error: %s", InputError(path, expected="one file for this case", found=found, hint=hint))
    return [path for path in sources if path not in ambiguous], ambiguous


def _check_targets(sources: list[Path], output: Path) -> None:
    """Raise OutputError if a mask would overwrite its volume, which has the same name."""
    for path in sources:
        if os.path.realpath(output / mask_name(path)) == os.path.realpath(path):  # links may form a loop
            problem = f"the mask of {path.name} would overwrite the volume itself"
            raise OutputError(output, problem, hint="write to another folder")
