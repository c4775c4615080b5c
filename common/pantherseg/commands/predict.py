"""`pantherseg predict`: a volume or a folder of volumes into a folder of masks."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from pantherseg.case import read_case
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.events import Event
from pantherseg.files import prepare_folder
from pantherseg.inference.backends import Mode
from pantherseg.io import case_name, find_sources, mask_name
from pantherseg.logs import one_line
from pantherseg.machine.deadline import Deadline
from pantherseg.machine.memory import begin
from pantherseg.pipeline import DEVICE_FAILED, System, load_system, segment, write_result
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)


def predict_all(
    source: Path,
    output: Path,
    *,
    recipe: Path,
    model: Path,
    device: str,
    mode: Mode,
    rescue: bool,
    device_memory_mb: int | None = None,
    time_budget_s: float | None = None,
) -> list[Path]:
    """Segment a volume, or every volume of a folder, and return the inputs that failed.

    A single volume that fails raises its error; in a folder the others go on. time_budget_s: for each volume, in place
    of the recipe's.
    """
    begin()
    settings = load_recipe(recipe)
    if time_budget_s is not None:
        settings = msgspec.structs.replace(settings, time_budget_s=time_budget_s)
    if not source.is_dir():
        _check_targets([source], output)
        deadline = Deadline.after(settings.time_budget_s)
        image = read_case(source)  # a bad input is named before models are loaded
        system = load_system(settings, model, device=device, mode=mode, device_memory_mb=device_memory_mb)
        prepare_folder(output)
        _predict_one(source, image, output, system, deadline, rescue=rescue)
        return []
    inputs = _inputs(source)
    _check_targets(inputs, output)
    system = load_system(settings, model, device=device, mode=mode, device_memory_mb=device_memory_mb)
    prepare_folder(output)
    failed = []
    for number, path in enumerate(inputs, start=1):
        logger.info("volume %d of %d", number, len(inputs))
        deadline = Deadline.after(settings.time_budget_s)
        try:
            system = _predict_one(path, read_case(path), output, system, deadline, rescue=rescue)
        except Exception as error:  # whatever is wrong with one volume, the others are segmented
            logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
            logger.error("error: %s", one_line(error, path))
            failed.append(path)
    if failed:
        names = ", ".join(path.name for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(inputs), names)
    return failed


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


def _predict_one(
    path: Path,
    image: tuple[Volume, tuple[Event, ...]],
    output: Path,
    system: System,
    deadline: Deadline,
    *,
    rescue: bool,
) -> System:
    """Return the system to go on with: another one after a device was lost."""
    volume, events = image
    try:
        result = segment(volume, system, rescue=rescue, events=events, deadline=deadline)
    except InputError as error:
        raise error.at(path) from error
    write_result(result, output / mask_name(path), output / f"{case_name(path)}.json", {"input": path.name})
    return result.system if any(event.code == DEVICE_FAILED for event in result.events) else system
