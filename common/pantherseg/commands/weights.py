"""`pantherseg weights`: which published weights there are, fetching them, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from pantherseg.errors import ModelError, PantherSegError
from pantherseg.logs import shown
from pantherseg.paths import OWN_WEIGHTS, ZOO
from pantherseg.weights import Client, State, load_zoo, named, states
from pantherseg.weights import fetch as fetch_weights
from pantherseg.weights import verify as verify_state
from pantherseg.weights.zoo import ZENODO

HEADER = ("name", "role", "MB", "licence", "from", "recipe", "here")


def table(root: Path | None) -> str:
    """Return a table of all weights that are known, and what lies in their places. Raises PantherSegError."""
    rows = [HEADER, *(_row(state) for state in states(load_zoo(ZOO), root or OWN_WEIGHTS))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def fetch_named(name: str, root: Path | None, *, files: Sequence[str], zenodo: str | None) -> Iterator[str]:
    """Fetch weights by their name and yield a line for each step. Raises PantherSegError."""
    zoo = load_zoo(ZOO)
    entry = named(zoo, name)
    with closing(Client()) as client:
        yield from fetch_weights(
            entry, root or OWN_WEIGHTS, zoo=zoo, client=client, zenodo=zenodo or ZENODO, files=files
        )


def verify_all(name: str | None, root: Path | None) -> Iterator[tuple[str, bool]]:
    """Yield a line for each place that holds something, and whether it is sound. Raises PantherSegError.

    name: only this one, which must be there.
    """
    zoo, folder = load_zoo(ZOO), root or OWN_WEIGHTS
    every = states(zoo if name is None else [named(zoo, name)], folder)
    if name is not None and every[0].problem is None and not every[0].present:
        there = "something else" if every[0].taken else "nothing"
        raise ModelError(every[0].folder, expected=name, found=there, hint=f"run `pantherseg weights fetch {name}`")
    found = {state.folder: state for state in every if state.taken or state.problem is not None}
    if not found:
        yield f"{shown(folder)}: no weights there; `pantherseg weights list` says which can be fetched", True
    for state in found.values():
        held = state.record.name if state.record is not None else "not fetched"
        try:
            yield f"{shown(state.folder)} ({held}): {verify_state(state)}", True
        except PantherSegError as error:
            yield str(error), False


def _row(state: State) -> tuple[str, ...]:
    entry, size = state.entry, state.size
    here = "-"
    if state.problem is not None:
        here = f"damaged: {state.problem}"
    elif state.present:
        here = shown(state.folder)
    elif state.taken:
        here = f"no: {state.folder.name} is {state.record.name if state.record is not None else 'something else'}"
    licence = state.record.licence if state.present and state.record is not None else entry.licence
    megabytes = "?" if size is None else f"{size / 1e6:.0f}"
    return entry.name, entry.role or "-", megabytes, licence, str(entry.source), entry.recipe or "-", here
