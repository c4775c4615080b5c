"""`pantherseg report`: show volumes and their masks, as a page of any number of cases or a picture of one."""

from __future__ import annotations

from pathlib import Path

import click

from pantherseg.cli.options import PATH, SERIES, check_outputs
from pantherseg.errors import InputError
from pantherseg.io import read_labels, read_volume
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.report import draw_case
from pantherseg.report.case_files import find_cases


@click.command()
@click.argument("images", type=PATH)
@click.argument("masks", type=PATH)
@click.argument("output", type=PATH)
@click.option("--references", type=PATH, help="Also draw these reference masks (label 1 is the tumour), and score.")
@SERIES
def report(images: Path, masks: Path, output: Path, references: Path | None, series: str | None) -> None:
    """Show volumes and their masks as a page or a picture.

    IMAGES and MASKS are files or folders; MASKS is usually the output of `pantherseg predict`, whose reports are shown
    too, or of a container. OUTPUT is an .html file, one page with all cases that needs no network, or a .png file, the
    picture of a single case. Files belong together by their names, as for `pantherseg evaluate`. A case with files
    that cannot be used does not stop the others.
    """
    choice = ANY_SERIES if series is None else SeriesChoice(uid=series)
    check_outputs(output, inputs=(images, masks, references))
    suffix = output.suffix.lower()
    if suffix == ".html":
        from pantherseg.report.write import write_report

        if write_report(images, masks, references, output, series=choice):
            raise SystemExit(1)
    elif suffix == ".png":
        _draw(images, masks, references, output, choice)
    else:
        raise click.UsageError(f"OUTPUT: expected a name that ends with .html or .png, found {output.name}")


def _draw(images: Path, masks: Path, references: Path | None, output: Path, series: SeriesChoice) -> None:
    """Draw the only case that has a mask."""
    masks_of_cases = [(case, case.mask) for case in find_cases(images, masks, references) if case.mask]
    if len(masks_of_cases) != 1:
        found = f"{len(masks_of_cases)} cases"
        raise InputError(images, expected="a single case for a picture", found=found, hint="write to an .html file")
    case, mask = masks_of_cases[0]
    truth = read_labels(case.reference) if case.reference else None
    draw_case(read_volume(case.image, series), read_labels(mask), truth, output, title=case.name)
