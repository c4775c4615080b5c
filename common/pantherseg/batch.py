"""A volume, or every volume of a folder, into a folder of masks and reports."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import InputError, OutputError, PantherSegError, first_few
from pantherseg.files import prepare_folder, remove_file
from pantherseg.fingerprint import finished_report
from pantherseg.io import case_name, find_sources, input_name, mask_name
from pantherseg.io.probabilities import SUFFIX
from pantherseg.logs import one_line, shown
from pantherseg.progress import cases_with_progress
from pantherseg.results import read_report
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
    raises its error; in a folder the others are still segmented, and what an earlier run wrote about the failed one is
    removed. Finished cases, as `finished_report` tells them, are skipped.

    save_probabilities: also write the tumour's probability before post-processing to <case>.npz, in the form of
    `io.probabilities`; redo: segment finished cases, too. Raises what `run_case` raises for models, devices and outputs
    that no source could use.
    """
    is_folder = has_many_cases(source)
    sources = _sources(source) if is_folder else [source]
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
            run_case(path, session, outputs[path])
        return []
    return _run_all(waiting, outputs, session)


def _run_all(waiting: list[Path], outputs: dict[Path, CaseOutput], session: Session) -> list[Path]:
    """Segment the volumes of a folder, and return those that failed."""
    failed = []
    with cases_with_progress(waiting, unit="volume") as paths:
        for path in paths:
            try:
                run_case(path, session, outputs[path])
            except Exception as error:  # whatever is wrong with one volume, the others are segmented
                logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
                logger.error("error: %s", one_line(error, path))
                failed.append(path)
                _remove_earlier(outputs[path])
    if failed:
        names = ", ".join(input_name(path) for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(waiting), names)
    return failed


def _is_finished(source: Path, output: CaseOutput, session: Session) -> bool:
    """Return whether a case need not be segmented. A source that cannot be read is not finished."""
    try:
        report = finished_report(source, session, mask=output.mask, report=output.report)
    except InputError:
        return False
    if report is None:
        return False
    return output.probability is None or (isinstance(report.probability, str) and output.probability.is_file())


def _why(source: Path, is_folder: bool) -> str:
    which = "them" if is_folder else input_name(source)
    return f"their input, recipe, models and version are the same; to segment {which} again, use --redo"


def _remove_earlier(output: CaseOutput) -> None:
    """Remove what an earlier run wrote about a case, so that nobody takes it for the result of this run.

    A mask without a report that names it may be another program's, and stays.
    """
    try:
        earlier = read_report(output.report)
        if (output.report.parent / earlier.mask).resolve() != output.mask.resolve():
            return
        for path in (output.report, output.mask):
            remove_file(path)
        if isinstance(earlier.probability, str):
            remove_file(output.report.parent / earlier.probability)
    except (InputError, OutputError):
        return
    logger.warning("%s: the result of an earlier run was removed", shown(output.mask))


def _output_of(source: Path, output: Path, save_probabilities: bool) -> CaseOutput:
    name = case_name(source)
    probability = output / f"{name}{SUFFIX}" if save_probabilities else None
    return CaseOutput(output / mask_name(source), output / f"{name}.json", probability)


def _sources(folder: Path) -> list[Path]:
    sources = find_sources(folder, dangling=True)
    if not sources:
        raise InputError(folder, "the folder contains no volume")
    others = sorted(path.name for path in set(folder.iterdir()).difference(sources) if not path.name.startswith("."))
    if others:
        logger.warning("%s: not read, because they are not volumes: %s", folder, first_few(others))
    files = Counter(map(case_name, sources))
    if repeated := [path.name for path in sources if files[case_name(path)] > 1]:
        raise InputError(folder, expected="one file for each case", found=", ".join(repeated))
    return sources


def _check_targets(sources: list[Path], output: Path) -> None:
    """Raise OutputError if a mask would overwrite its volume, which has the same name."""
    for path in sources:
        if (output / mask_name(path)).resolve() == path.resolve():
            problem = f"the mask of {path.name} would overwrite the volume itself"
            raise OutputError(output, problem, hint="write to another folder")
