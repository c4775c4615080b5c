"""`pantherseg predict`: a volume or a folder of volumes into a folder of masks."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.inference.backends import Mode
from pantherseg.io import case_name, find_sources, mask_name
from pantherseg.logs import one_line
from pantherseg.recipe import load_recipe
from pantherseg.session import Session

logger = logging.getLogger(__name__)


def predict_all(
    source: Path,
    output: Path,
    *,
    recipe: Path,
    model: Path,
    device: str,
    mode: Mode,
    rescue: bool | None,
    device_memory_mb: int | None = None,
    time_budget_s: float | None = None,
) -> list[Path]:
    """Segment a volume, or every volume of a folder, and return the inputs that failed.

    A single volume that fails raises its error; in a folder the others go on. time_budget_s: for each volume, in place
    of the recipe's.
    """
    settings = load_recipe(recipe)
    if time_budget_s is not None:
        settings = msgspec.structs.replace(settings, time_budget_s=time_budget_s)
    if rescue is not None:
        settings = settings.with_rescue(rescue=rescue)
    many = source.is_dir()
    session = Session(settings, model, device=device, mode=mode, device_memory_mb=device_memory_mb, many_cases=many)
    if not many:
        _check_targets([source], output)
        run_case(source, session, _output_of(source, output))
        return []
    inputs = _inputs(source)
    _check_targets(inputs, output)
    session.load()  # models that cannot be used end the run, not each case
    failed = []
    for number, path in enumerate(inputs, start=1):
        logger.info("volume %d of %d", number, len(inputs))
        try:
            run_case(path, session, _output_of(path, output))
        except Exception as error:  # whatever is wrong with one volume, the others are segmented
            logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
            logger.error("error: %s", one_line(error, path))
            failed.append(path)
    if failed:
        names = ", ".join(path.name for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(inputs), names)
    return failed


def _output_of(path: Path, output: Path) -> CaseOutput:
    return CaseOutput(output / mask_name(path), output / f"{case_name(path)}.json")


def _inputs(source: Path) -> list[Path]:
    inputs = find_sources(source)
    if not inputs:
        raise InputError(source, expected="a volume or a folder of volumes", found="no volume in it")
    cases = [case_name(path) for path in inputs]
    twice = [path.name for path, case in zip(inputs, cases, strict=True) if cases.count(case) > 1]
    if twice:
        raise InputError(source, expected="one file a case", found=", ".join(twice))
    return inputs


def _check_targets(inputs: list[Path], output: Path) -> None:
    """Raise OutputError where a mask would take the place of a volume: they have the same names."""
    for path in inputs:
        if (output / mask_name(path)).resolve() == path.resolve():
            raise OutputError(output, expected="another folder than the volumes'", found=f"{path.name} itself there")
