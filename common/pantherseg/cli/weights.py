"""`pantherseg weights`: list, download and verify published weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from pantherseg.cli.options import PATH
from pantherseg.errors import DownloadError, ModelError, PantherSegError
from pantherseg.logs import shown
from pantherseg.paths import ZOO, own_weights
from pantherseg.weights import Installation, find_weights, installations, load_zoo
from pantherseg.weights import fetch as fetch_weights
from pantherseg.weights import verify as verify_installation
from pantherseg.weights.zoo import ZENODO

HEADER = ("name", "role", "MB", "licence", "from", "recipe", "installed")
TO = click.option(
    "--to",
    "root",
    metavar="DIR",
    type=PATH,
    help="Folder of models  [default: weights/own in a checkout, else pantherseg/weights in the user's data folder].",
)


@click.group()
def weights() -> None:
    """List, download and verify published weights."""


@weights.command("list")
@TO
def list_weights(root: Path | None) -> None:
    """List the published weights.

    Prints a table of the known weights, with the folder of those that are installed.
    """
    rows = [HEADER, *map(_row, installations(load_zoo(ZOO), root or own_weights()))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


@weights.command()
@click.argument("name")
@TO
@click.option("--file", "files", metavar="NAME", multiple=True, help="File of the Zenodo record; may be repeated.")
@click.option("--zenodo", metavar="URL", default=ZENODO, show_default=True, help="Where the Zenodo records are.")
def fetch(name: str, root: Path | None, files: tuple[str, ...], zenodo: str) -> None:
    """Download, check and install weights.

    The weights NAME are installed as DIR/<role>, packed; those for training only stay an nnU-Net folder, DIR/<name>.
    The same command continues an interrupted download.
    """
    try:
        from pantherseg.weights.downloads import Client
    except ImportError as error:
        hint = "pip install 'pantherseg[fetch]'"
        raise DownloadError(name, "the package requests is not installed", hint=hint) from error
    zoo = load_zoo(ZOO)
    entry = find_weights(zoo, name)
    with closing(Client()) as client:
        for line in fetch_weights(entry, root or own_weights(), zoo=zoo, client=client, zenodo=zenodo, files=files):
            click.echo(line)


@weights.command()
@click.argument("name", required=False)
@TO
def verify(name: str | None, root: Path | None) -> None:
    """Verify the checksums of installed weights.

    Prints one line for each model, or only for NAME; the exit code is 1 if any is damaged.
    """
    all_intact = True
    for line, intact in _verify_each(name, root or own_weights()):
        click.echo(f"{'ok     ' if intact else 'DAMAGED'}  {line}")
        all_intact &= intact
    if not all_intact:
        raise SystemExit(1)


def _verify_each(name: str | None, root: Path) -> Iterator[tuple[str, bool]]:
    """Yield a line for each model below `root`, and whether it is intact.

    name: only this one. Raises ModelError if it is not installed.
    """
    zoo = load_zoo(ZOO)
    found = installations(zoo if name is None else [find_weights(zoo, name)], root)
    if name is not None and found[0].problem is None and not found[0].installed:
        there = "another model" if found[0].occupied else "nothing"
        raise ModelError(found[0].folder, expected=name, found=there, hint=f"run `pantherseg weights fetch {name}`")
    # Several weights may be for the same folder.
    by_folder = {one.folder: one for one in found if one.occupied or one.problem is not None}
    if not by_folder:
        yield f"{shown(root)}: no weights are installed; `pantherseg weights list` names those to fetch", True
    for installation in by_folder.values():
        source = installation.record.name if installation.record is not None else "not fetched"
        try:
            yield f"{shown(installation.folder)} ({source}): {verify_installation(installation)}", True
        except PantherSegError as error:
            yield str(error), False


def _row(found: Installation) -> tuple[str, ...]:
    entry, record, size = found.entry, found.record, found.download_size
    where, licence = "-", entry.licence
    if found.problem is not None:
        where = f"damaged: {found.problem}"
    elif found.installed and record is not None:
        where, licence = shown(found.folder), record.licence
    elif found.occupied:
        where = f"no; the folder holds {record.name if record is not None else 'another model'}"
    megabytes = "?" if size is None else f"{size / 1e6:.0f}"
    return entry.name, entry.role or "-", megabytes, licence, str(entry.source), entry.recipe or "-", where
