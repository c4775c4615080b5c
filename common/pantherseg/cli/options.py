"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pantherseg.batch import Wanted
from pantherseg.dicom_results.formats import FORMATS as OBJECT_FORMATS
from pantherseg.dicom_results.formats import format_of
from pantherseg.dicom_results.send import Receiver
from pantherseg.errors import OutputError
from pantherseg.files import check_writable
from pantherseg.io import case_name, find_sources
from pantherseg.io.probabilities import SUFFIX as PROBABILITIES
from pantherseg.paths import find_recipe, task_recipe
from pantherseg.results import DicomOptions
from pantherseg.verdict import Verdict

# Formats of masks that are written as volume files.
VOLUME_FORMATS = (".mha", ".nii.gz", ".nrrd")
# Whether a path exists is checked by the library, whose errors say more than click's.
PATH = click.Path(path_type=Path, readable=False)
TASK = click.Choice(["1", "2"])
RECIPE = click.option(
    "--recipe", metavar="NAME|FILE", type=PATH, help="Use this recipe: a file, or a shipped one such as system_a_task1."
)
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
MODE = click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: the masks of nnU-Net's own predictor; fast: later folds look only where a tumour may be, and the CPU "
    "uses bfloat16 if it has it.",
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
ANONYMOUS = click.option(
    "--anonymous", is_flag=True, help="Carry nothing that identifies the patient over to DICOM results."
)
STABLE_UIDS = click.option(
    "--stable-uids", is_flag=True, help="Give DICOM results of the same case always the same UIDs."
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


def formats_in(names: str | None) -> tuple[str, ...]:
    """Return the suffixes of the formats in the option --output-format, those of volumes first. Raises UsageError."""
    known = {suffix[1:]: suffix for suffix in VOLUME_FORMATS} | {
        name: one.suffix for name, one in OBJECT_FORMATS.items()
    }
    given = [name for part in (names or "").split(",") if (name := part.strip().lower())]
    if (unknown := [name for name in given if name not in known]) or (names is not None and not given):
        raise click.UsageError(f"--output-format: expected some of {', '.join(known)}, found {unknown or names!r}")
    if given and set(given) == {"dcmprob"}:
        raise click.UsageError("--output-format: dcmprob is the probability, name the format of the mask too")
    return tuple(suffix for name, suffix in known.items() if name in given)


def check_dicom_options(wanted: Wanted, *, is_sent: bool = False) -> None:
    """Raise UsageError for options about DICOM results where there are none."""
    if (wanted.dicom != DicomOptions() or is_sent) and not any(map(format_of, wanted.formats)):
        problem = "options about DICOM results, such as --anonymous, need a DICOM format: --output-format dcmseg"
        raise click.UsageError(problem)


def receiver_at(address: str | None) -> Receiver | None:
    """Return the receiver that the option --send names, None without it. Raises UsageError."""
    try:
        return None if address is None else Receiver.of(address)
    except ValueError as error:
        raise click.UsageError(f"--send: {error}") from error


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
