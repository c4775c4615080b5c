"""`pantherseg weights`: lists the published weights, fetches them, and verifies those that are installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from pantherseg.errors import DownloadError, ModelError, PantherSegError
from pantherseg.logs import shown
from pantherseg.paths import OWN_WEIGHTS, ZOO
from pantherseg.weights import Installation, find_weights, installations, load_zoo
from pantherseg.weights import fetch as fetch_weights
from pantherseg.weights import verify as verify_installation
from pantherseg.weights.zoo import ZENODO

HEADER = ("name", "role", "MB", "licence", "from", "recipe", "installed")


def table(root: Path | None) -> str:
    """Return a table of all known weights and where they are installed. Raises PantherSegError."""
    rows = [HEADER, *(_row(found) for found in installations(load_zoo(ZOO), root or OWN_WEIGHTS))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def fetch_named(name: str, root: Path | None, *, files: Sequence[str], zenodo: str | None) -> Iterator[str]:
    """Fetch weights by their name and yield a line for each step. Raises PantherSegError."""
    try:
        from pantherseg.weights.downloads import Client
    except ImportError as error:
        hint = "pip install pantherseg[fetch]"
        raise DownloadError(name, expected="the package requests", found="none", hint=hint) from error
    zoo, root, zenodo = load_zoo(ZOO), root or OWN_WEIGHTS, zenodo or ZENODO
    with closing(Client()) as client:
        yield from fetch_weights(find_weights(zoo, name), root, zoo=zoo, client=client, zenodo=zenodo, files=files)


def verify_all(name: str | None, root: Path | None) -> Iterator[tuple[str, bool]]:
    """Yield a line for each installed model, and whether it is intact. Raises PantherSegError.

    name: verify only these weights, which must be installed.
    """
    zoo, folder = load_zoo(ZOO), root or OWN_WEIGHTS
    found = installations(zoo if name is None else [find_weights(zoo, name)], folder)
    if name is not None and found[0].problem is None and not found[0].installed:
        there = "something else" if found[0].occupied else "nothing"
        raise ModelError(found[0].folder, expected=name, found=there, hint=f"run `pantherseg weights fetch {name}`")
    # Several entries may share a folder.
    by_folder = {one.folder: one for one in found if one.occupied or one.problem is not None}
    if not by_folder:
        yield f"{shown(folder)}: no weights are installed; `pantherseg weights list` names those to fetch", True
    for installation in by_folder.values():
        origin = installation.record.name if installation.record is not None else "not fetched"
        try:
            yield f"{shown(installation.folder)} ({origin}): {verify_installation(installation)}", True
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
        where = f"no: {found.folder.name} is {record.name if record is not None else 'something else'}"
    megabytes = "?" if size is None else f"{size / 1e6:.0f}"
    return entry.name, entry.role or "-", megabytes, licence, str(entry.source), entry.recipe or "-", where
