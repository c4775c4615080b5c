"""`pantherseg phantom`: make synthetic abdominal MR volumes."""

from __future__ import annotations

from pathlib import Path

import click
from tqdm import tqdm

from pantherseg.cli.options import PATH, TASK
from pantherseg.phantom import Size, write_dataset


@click.command()
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--task", type=TASK, required=True, help="Make volumes like those of this task.")
@click.option("--cases", type=click.IntRange(min=1), required=True, help="Number of volumes.")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Seed of the first case; the next is seed + 1.")
@click.option(
    "--size",
    type=click.Choice(["full", "small"]),
    default="full",
    show_default=True,
    help="full: as many voxels as in PANTHER's; small: 40x104x128.",
)
@click.option("--organs", is_flag=True, help="Also write organ labels, numbered like the first seven of MRSegmentator.")
def phantom(output: Path, task: str, cases: int, seed: int, size: Size, organs: bool) -> None:
    """Make synthetic abdominal MR volumes.

    Each has a pancreatic tumour. The folder OUT gets the layout and file names of PANTHER's training data.
    """
    with tqdm(total=cases, unit="case", disable=None) as bar:
        write_dataset(
            output, task=int(task), cases=cases, seed=seed, size=size, organs=organs, on_case=lambda _: bar.update()
        )
