"""A volume, or every volume of a folder, into a folder of masks and reports."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import InputError, OutputError, PantherSegError, first_few
from pantherseg.files import prepare_folder
from pantherseg.io import case_name, find_sources, mask_name
from pantherseg.io.dicom import refuse_dicom
from pantherseg.io.probabilities import SUFFIX
from pantherseg.logs import one_line
from pantherseg.session import Session

logger = logging.getLogger(__name__)


def has_many_cases(source: Path) -> bool:
    """Return whether a path is a folder of sources, rather than a source itself. Raises InputError."""
    return source.is_dir() and find_sources(source) != [source]


def run_batch(source: Path, output: Path, session: Session, *, save_probabilities: bool = False) -> list[Path]:
    """Segment a source, or every source in a folder, and return the sources that failed.

    The folder `output` gets a mask in the format of each source and a report <case>.json. A single source that fails
    raises its error; in a folder the others are still segmented. save_probabilities: also write the tumour's
    probability before post-processing to <case>.npz, in the form of `io.probabilities`. Raises what `run_case` raises
    for models, devices and outputs that no source could use.
    """
    if not has_many_cases(source):
        _check_targets([source], output)
        run_case(source, session, _output_of(source, output, save_probabilities))
        return []
    sources = _sources(source)
    _check_targets(sources, output)
    session.load()  # models or a folder that cannot be used end the run, rather than each case
    prepare_folder(output)
    failed = []
    for number, path in enumerate(sources, start=1):
        logger.info("volume %d of %d", number, len(sources))
        try:
            run_case(path, session, _output_of(path, output, save_probabilities))
        except Exception as error:  # whatever is wrong with one volume, the others are segmented
            logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
            logger.error("error: %s", one_line(error, path))
            failed.append(path)
    if failed:
        names = ", ".join(path.name for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(sources), names)
    return failed


def _output_of(source: Path, output: Path, save_probabilities: bool) -> CaseOutput:
    name = case_name(source)
    probability = output / f"{name}{SUFFIX}" if save_probabilities else None
    return CaseOutput(output / mask_name(source), output / f"{name}.json", probability)


def _sources(folder: Path) -> list[Path]:
    sources = find_sources(folder)
    if not sources:
        refuse_dicom(folder)
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
