"""`pantherseg predict`: segment a volume, or every volume of a folder."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import click
import msgspec

from pantherseg.case import CaseOutput, run_case
from pantherseg.cli.options import DEVICE, PATH, TASK, chosen_recipe
from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.files import prepare_folder
from pantherseg.inference.backends import Mode
from pantherseg.io import case_name, find_sources, mask_name
from pantherseg.logs import one_line
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe
from pantherseg.session import Session

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
    settings = load_recipe(recipe)
    if time_budget_s is not None:
        settings = msgspec.structs.replace(settings, time_budget_s=time_budget_s)
    if rescue is not None:
        settings = settings.with_rescue(rescue=rescue)
    many = source.is_dir() and find_sources(source) != [source]
    session = Session(settings, model, device=device, mode=mode, device_memory_mb=device_memory_mb, many_cases=many)
    if not many:
        _check_targets([source], output)
        run_case(source, session, _output_of(source, output))
        return []
    sources = _sources(source)
    _check_targets(sources, output)
    session.load()  # models or a folder that cannot be used end the run, rather than each case
    prepare_folder(output)
    failed = []
    for number, path in enumerate(sources, start=1):
        logger.info("volume %d of %d", number, len(sources))
        try:
            run_case(path, session, _output_of(path, output))
        except Exception as error:  # whatever is wrong with one volume, the others are segmented
            logger.debug("%s", path, exc_info=not isinstance(error, PantherSegError))
            logger.error("error: %s", one_line(error, path))
            failed.append(path)
    if failed:
        names = ", ".join(path.name for path in failed)
        logger.error("error: %d of %d volumes failed: %s", len(failed), len(sources), names)
    return failed


def _output_of(source: Path, output: Path) -> CaseOutput:
    return CaseOutput(output / mask_name(source), output / f"{case_name(source)}.json")


def _sources(folder: Path) -> list[Path]:
    sources = find_sources(folder)
    if not sources:
        raise InputError(folder, "the folder contains no volume")
    cases = [case_name(path) for path in sources]
    repeated = [path.name for path, case in zip(sources, cases, strict=True) if cases.count(case) > 1]
    if repeated:
        raise InputError(folder, expected="one file for each case", found=", ".join(repeated))
    return sources


def _check_targets(sources: list[Path], output: Path) -> None:
    """Raise OutputError if a mask would overwrite its volume, which has the same name."""
    for path in sources:
        if (output / mask_name(path)).resolve() == path.resolve():
            problem = f"the mask of {path.name} would overwrite the volume itself"
            raise OutputError(output, problem, hint="write to another folder")
