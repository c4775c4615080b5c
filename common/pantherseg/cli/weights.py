"""`pantherseg weights`: list, download and verify published weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from pantherseg.cli.options import PATH
from pantherseg.errors import ModelError, PantherSegError
from pantherseg.logs import shown
from pantherseg.paths import ZOO, own_weights
from pantherseg.weights import Client, State, load_zoo, named, states
from pantherseg.weights import fetch as fetch_weights
from pantherseg.weights import verify as verify_weights
from pantherseg.weights.zoo import ZENODO

HEADER = ("name", "role", "MB", "licence", "from", "recipe", "here")
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
    rows = [HEADER, *map(_row, states(load_zoo(ZOO), root or own_weights()))]
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

    The weights NAME are packed and become DIR/<role>. The same command continues an interrupted download.
    """
    zoo = load_zoo(ZOO)
    entry = named(zoo, name)
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
    wanted = states(zoo if name is None else [named(zoo, name)], root)
    if name is not None and wanted[0].problem is None and not wanted[0].present:
        found = "another model" if wanted[0].taken else "nothing"
        raise ModelError(wanted[0].folder, expected=name, found=found, hint=f"run `pantherseg weights fetch {name}`")
    # Several weights may be for the same folder.
    installed = {state.folder: state for state in wanted if state.taken or state.problem is not None}
    if not installed:
        yield f"{shown(root)}: no weights there; see `pantherseg weights list`", True
    for state in installed.values():
        source = state.record.name if state.record is not None else "not fetched"
        try:
            yield f"{shown(state.folder)} ({source}): {verify_weights(state)}", True
        except PantherSegError as error:
            yield str(error), False


def _row(state: State) -> tuple[str, ...]:
    entry, record = state.entry, state.record
    here = "-"
    if state.problem is not None:
        here = f"damaged: {state.problem}"
    elif state.present:
        here = shown(state.folder)
    elif state.taken:
        here = f"no: {state.folder.name} is {'another model' if record is None else record.name}"
    licence = record.licence if state.present and record is not None else entry.licence
    megabytes = "?" if state.size is None else f"{state.size / 1e6:.0f}"
    return entry.name, entry.role or "-", megabytes, licence, str(entry.source), entry.recipe or "-", here
