"""`pantherseg predict`: segment a volume, or every volume of a folder."""

from __future__ import annotations

import math
from pathlib import Path

import click
import msgspec

from pantherseg.batch import has_many_cases, run_batch
from pantherseg.cli.options import DEVICE, MEMBERS, PATH, TASK, chosen_recipe, names_in
from pantherseg.inference.backends import Mode
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe
from pantherseg.session import Session


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
@MEMBERS
@click.option(
    "--save-probabilities",
    is_flag=True,
    help="Also write the tumour's probability before post-processing, <case>.npz, for `pantherseg select`.",
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
    members: str | None,
    save_probabilities: bool,
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
    settings = load_recipe(path)
    if time_budget is not None:
        settings = msgspec.structs.replace(settings, time_budget_s=time_budget)
    if rescue is not None:
        settings = settings.with_rescue(rescue=rescue)
    session = Session(
        settings,
        model or DEMO_WEIGHTS,
        device=device,
        mode=mode,
        device_memory_mb=device_memory,
        many_cases=has_many_cases(source),
        members=names_in(members),
    )
    if run_batch(source, output, session, save_probabilities=save_probabilities):
        raise SystemExit(1)
