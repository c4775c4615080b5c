"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pantherseg.errors import OutputError
from pantherseg.files import check_writable
from pantherseg.io import case_name, find_sources
from pantherseg.io.probabilities import SUFFIX as PROBABILITIES
from pantherseg.paths import find_recipe, task_recipe
from pantherseg.verdict import Verdict

# Whether a path exists is checked by the library, whose errors say more than click's.
PATH = click.Path(path_type=Path, readable=False)
TASK = click.Choice(["1", "2"])
RECIPE = click.option(
    "--recipe", metavar="NAME|FILE", type=PATH, help="Use this recipe: a file, or a shipped one such as system_a_task1."
)
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
SERIES = click.option(
    "--series",
    metavar="UID",
    help="Of a DICOM study, take this series; UID/2: the second volume in it.",
)
MEMBERS = click.option(
    "--members",
    metavar="NAMES",
    help="Use only these members of the recipe, with commas between their names; with a minus in front of each, all"
    " but these (--members=-a,-b).",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")


def chosen_recipe(task: str | None, recipe: Path | None) -> Path:
    """Return the recipe of the options --task and --recipe. Raises UsageError unless exactly one of them is given."""
    if recipe is not None and task is None:
        return find_recipe(recipe)
    if task is not None and recipe is None:
        return task_recipe(int(task))
    raise click.UsageError("give either --task or --recipe")


def names_in(members: str | None) -> list[str] | None:
    """Return the names in the option --members, None without it."""
    return None if members is None else [name.strip() for name in members.split(",") if name.strip()]


def check_outputs(*targets: Path | None, inputs: Sequence[Path | None]) -> None:
    """Raise OutputError if a file to write is an input, lies in a folder that cannot be written, or is named twice.

    inputs: files, and folders whose volumes, probabilities and reports of cases are inputs too.
    """
    written: set[Path] = set()
    for target in filter(None, targets):
        path = target.resolve()
        if path in written:
            raise OutputError(target, "two results would be written to this file", hint="name another file")
        written.add(path)
        if any(path == given.resolve() or _is_in(path, given) for given in inputs if given is not None):
            raise OutputError(target, "this file is an input of the command", hint="write to another file")
        check_writable(target)


def _is_in(path: Path, folder: Path) -> bool:
    """Tell whether an existing file is one of the inputs in a folder."""
    if not path.is_file() or not folder.is_dir() or folder.resolve() not in path.parents:
        return False
    if path.suffix == ".json":  # the report of a case, not figures that an earlier run wrote
        return any(case_name(other) == path.stem for other in find_sources(path.parent))
    return path.suffix == PROBABILITIES or bool(find_sources(path))


def print_verdicts(verdicts: Sequence[Verdict], as_json: bool) -> None:
    """Print one line for each rule, or all as JSON; end with exit code 1 if any rule is broken."""
    if as_json:
        click.echo(json.dumps([verdict.as_dict() for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            click.echo(f"{'ok    ' if verdict.kept else 'BROKEN'}  {verdict.as_line()}")
    if not all(verdict.kept for verdict in verdicts):
        raise SystemExit(1)
