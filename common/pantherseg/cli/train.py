"""`pantherseg train`: train the stages of a training file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pantherseg.cli.options import PATH
from pantherseg.paths import training_file

NAMED = "NAME=FOLDER"


def _named(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Return the values of NAME=PATH by name; another form, or a name that is given twice, is a usage error."""
    found: dict[str, Path] = {}
    for value in values:
        name, _, path = value.partition("=")
        if not name or not path or name in found:
            raise click.BadParameter(f"expected {option.metavar} once for each name, found {value!r}")
        found[name] = Path(path)
    return found


def _settings(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return the values of KEY=VALUE by key; another form is a usage error."""
    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (key, _, text) in zip(values, pairs, strict=True) if not key or not text]:
        raise click.BadParameter(f"expected {option.metavar}, found {wrong[0]!r}")
    return {key: text for key, _, text in pairs}


def _devices(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the devices of a list such as `cuda:0,cuda:1`; another form is a usage error."""
    devices = tuple(part.strip() for part in value.split(","))
    known = [part for part in devices if part in ("auto", "cpu", "cuda") or part.removeprefix("cuda:").isdigit()]
    if len(known) < len(devices) or (len(devices) > 1 and "auto" in devices):
        raise click.BadParameter(f"expected auto, cpu, cuda, or GPUs such as cuda:0,cuda:1, found {value!r}")
    return devices


@click.command()
@click.argument("file", type=PATH)
@click.option("--output", type=PATH, required=True, help="Folder for everything that is made; finished steps are kept.")
@click.option(
    "--data", metavar=NAMED, multiple=True, callback=_named, help="Folder of a data set of the file; for each of them."
)
@click.option(
    "--start",
    metavar="STAGE=FOLDER",
    multiple=True,
    callback=_named,
    help="nnU-Net model folder or bundle that a stage starts from.",
)
@click.option("--splits", metavar="STAGE=FILE", multiple=True, callback=_named, help="Published splits of a stage.")
@click.option("--model", type=PATH, help="Folder of models with the localizer, for stages that train on crops.")
@click.option("--stage", help="Run this stage and what it needs.")
@click.option("--fold", type=click.IntRange(min=0), help="Run this fold of the stage and what it needs.")
@click.option("--step", help="Run this step of the plan and what it needs.")
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    callback=_devices,
    help="cpu, cuda, or GPUs such as cuda:0,cuda:1, which train the folds of a stage beside each other; a device that "
    "is named twice trains two folds at once.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and run nothing.")
@click.option(
    "--slurm",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_settings,
    help="Submit the steps to Slurm with this setting of sbatch or submitit.",
)
def train(
    file: Path,
    output: Path,
    data: dict[str, Path],
    start: dict[str, Path],
    splits: dict[str, Path],
    model: Path | None,
    stage: str | None,
    fold: int | None,
    step: str | None,
    devices: tuple[str, ...],
    dry_run: bool,
    slurm: dict[str, str],
) -> None:
    """Train the stages of a training file, from data sets to bundles.

    FILE names the data sets and the stages; the project's own, such as Task1/training/system_c.toml, are found from any
    folder. Prints the plan first. Steps that are finished, with the same inputs and settings, are skipped, and a step
    that was interrupted goes on. Each stage ends in OUTPUT/bundles/<stage>.
    """
    if fold is not None and stage is None:
        raise click.UsageError("--fold needs --stage")
    # These import torch and nnU-Net, which the help can do without.
    from pantherseg.training.check import check_inputs, check_memory, check_names, usable_devices
    from pantherseg.training.graph import load_training_file
    from pantherseg.training.plan_table import plan_table
    from pantherseg.training.run import prepare, run
    from pantherseg.training.workspace import Inputs, Workspace

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    file = training_file(file)
    graph = load_training_file(file)
    inputs = Inputs(data=data, starts=start, splits=splits, models=model)
    check_names(graph, inputs, output)
    training = prepare(file, Workspace(graph, output, inputs), stage=stage, fold=fold, step=step, remember=not dry_run)
    chosen = usable_devices(devices, dry_run=dry_run or bool(slurm))
    if step is None:  # a process that the command itself started has its plan printed already
        click.echo(plan_table(training, chosen, measure=not (dry_run or slurm)))
    if dry_run:
        return
    check_inputs(training)
    if slurm:
        from pantherseg.training.cluster import submit

        for name, job in submit(training, slurm).items():
            click.echo(f"{name}: job {job}")
        return
    check_memory(training, chosen)
    run(training, chosen)
