"""`pantherseg predict`: segment a volume, or every volume of a folder."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import click
import msgspec

from pantherseg.case import read_case
from pantherseg.cli.options import DEVICE, PATH, TASK, chosen_recipe
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.events import Event
from pantherseg.files import prepare_folder
from pantherseg.inference.backends import Mode
from pantherseg.io.names import case_name, mask_name, volumes_in
from pantherseg.logs import one_line
from pantherseg.machine.deadline import Deadline
from pantherseg.machine.memory import begin
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.pipeline import DEVICE_FAILED, System, load_system, segment, write_result
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)


@click.command()
@click.argument("source", metavar="INPUT", type=PATH)
@click.argument("output", type=PATH)
@click.option("--task", type=TASK, help="Use the recipe of this task.")
@click.option("--recipe", type=PATH, help="Use this recipe.")
@click.option(
    "--model", type=PATH, help="Folder of models  [default: the demo models, which were trained on phantoms only]."
)
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: the masks of nnU-Net's own predictor; fast: in bfloat16 if the CPU supports it, on a GPU as exact.",
)
@DEVICE
@click.option("--device-memory", metavar="MB", type=click.IntRange(min=1), help="Use at most this much GPU memory.")
@click.option(
    "--time-budget",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for each volume  [default: as in the recipe].",
)
@click.option(
    "--rescue/--no-rescue",
    default=None,
    help="Whether to fill an empty mask with the most probable component  [default: as in the recipe].",
)
def predict(
    source: Path,
    output: Path,
    task: str | None,
    recipe: Path | None,
    model: Path | None,
    mode: Mode,
    device: str,
    device_memory: int | None,
    time_budget: float | None,
    rescue: bool | None,
) -> None:
    """Segment a volume, or every volume of a folder.

    INPUT is a volume or a folder of volumes. The folder OUTPUT gets a mask in the format of each volume, and a report
    <case>.json.
    """
    path = chosen_recipe(task, recipe)
    if device_memory and device == "cpu":
        raise click.UsageError("--device-memory applies to GPUs only")
    if time_budget is not None and not math.isfinite(time_budget):
        raise click.UsageError("--time-budget: expected a finite number of seconds")
    failed = predict_all(
        source,
        output,
        recipe=path,
        model=model or DEMO_WEIGHTS,
        device=device,
        mode=mode,
        rescue=rescue,
        device_memory_mb=device_memory,
        time_budget_s=time_budget,
    )
    if failed:
        raise SystemExit(1)


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
    of the recipe's. rescue: fill an empty mask with the most probable component; None: as in the recipe.
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
    inputs = volumes_in(source)
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
    rescue: bool | None,
) -> System:
    """Return the system to go on with: another one after a device was lost."""
    volume, events = image
    try:
        result = segment(volume, system, rescue=rescue, events=events, deadline=deadline)
    except InputError as error:
        raise error.at(path) from error
    write_result(result, output / mask_name(path), output / f"{case_name(path)}.json", {"input": path.name})
    return result.system if any(event.code == DEVICE_FAILED for event in result.events) else system
