"""`pantherseg phantom`: make synthetic abdominal MR volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pantherseg.cli.options import PATH, TASK

if TYPE_CHECKING:
    from pantherseg.phantom import Size


@click.command()
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--task", type=TASK, required=True, help="Make volumes like those of this task.")
@click.option("--cases", type=click.IntRange(min=1), required=True, help="Number of volumes.")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Seed of the first case; the next is seed + 1.")
@click.option("--size", type=click.Choice(["full", "small"]), default="full", show_default=True, help="Matrix size.")
@click.option("--organs", is_flag=True, help="Also write organ labels, numbered as the first seven of MRSegmentator.")
def phantom(output: Path, task: str, cases: int, seed: int, size: Size, organs: bool) -> None:
    """Make synthetic abdominal MR volumes.

    Each has a pancreatic tumour. The folder OUT is laid out, and its files are named, as PANTHER's training data.
    """
    from tqdm import tqdm

    from pantherseg.phantom import write_dataset

    with tqdm(total=cases, unit="case", disable=None) as bar:
        write_dataset(
            output, task=int(task), cases=cases, seed=seed, size=size, organs=organs, on_case=lambda _: bar.update()
        )
