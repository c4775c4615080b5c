"""`pantherseg report`: draw a volume and its mask as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from pantherseg.cli.options import PATH, check_not_an_input
from pantherseg.io import case_name, read_labels, read_volume
from pantherseg.report import draw_case


@click.command()
@click.argument("image", type=PATH)
@click.argument("mask", type=PATH)
@click.argument("output", metavar="PNG", type=PATH)
@click.option("--reference", type=PATH, help="Also draw this reference mask (label 1 is the tumour).")
def report(image: Path, mask: Path, output: Path, reference: Path | None) -> None:
    """Draw a volume and its mask as a picture.

    The picture PNG shows the tumour MASK on the volume IMAGE in three directions.
    """
    check_not_an_input(output, image, mask, reference)
    volume = read_volume(image)
    truth = None if reference is None else read_labels(reference)
    draw_case(volume, read_labels(mask), truth, output, title=case_name(image))
