"""Published weights by one command: download, check, unpack, pack, place."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pantherseg.errors import DownloadError, ModelError, OutputError
from pantherseg.files import prepare_folder, write_text
from pantherseg.models.bundle import is_bundle, open_bundle
from pantherseg.models.find import check_labels
from pantherseg.packing.pack import missing_packages
from pantherseg.paths import ROOT
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.weights.assemble import build, check_files
from pantherseg.weights.downloads import Client
from pantherseg.weights.installed import Record, Source, State, read_record, record_path, sums, verify, write_record
from pantherseg.weights.partial import Downloaded
from pantherseg.weights.zoo import ZENODO, Weights, publish

# Hidden, so that no unfinished model is found in it; on the same disk, so that a finished one is placed by a rename.
WORK = ".fetch"
# A name that no download can have.
MADE = Path(".place", "made")


def fetch(
    entry: Weights,
    root: Path,
    *,
    zoo: Sequence[Weights],
    client: Client,
    zenodo: str = ZENODO,
    files: Sequence[str] = (),
) -> Iterator[str]:
    """Fetch one of the zoo to <root>/<its place> and yield a line for each step.

    An end at any time leaves nothing half-placed, and what was downloaded until then is not downloaded again.
    zenodo: address of the records; files: names in a record, in place of the entry's patterns.
    Raises DownloadError, ModelError, OutputError, RecipeError, the last also where the recipe cannot use the model.
    """
    target, work = root / entry.place, root / WORK / entry.name
    with _alone(root / WORK, entry.place):
        state = State(entry, target, read_record(target))
        if state.taken:
            yield _already_there(state, files)
            return
        if missing := missing_packages():
            found, hint = f"no {' and '.join(missing)}", "pip install pantherseg[cuda]"
            raise ModelError(entry.name, expected="what reads nnU-Net's checkpoints", found=found, hint=hint)
        recipe = load_recipe(ROOT / entry.recipe) if entry.role and entry.recipe else None
        published = publish(entry, client, zenodo=zenodo, files=files)
        check_files(entry, [wanted.name for wanted in published.files])
        yield f"{entry.title}; {entry.source}; licence: {published.licence}"
        come = []
        for wanted in published.files:
            come.append(client.download(wanted, work))
            yield f"{wanted.name}: {come[-1].size} bytes, SHA-256 {come[-1].sha256}"
        _check_unchanged(state, come)
        _place(entry, come, work / MADE, target, zoo, recipe, published.licence)
        shutil.rmtree(work, ignore_errors=True)
    yield f"{target}: {verify(State(entry, target, read_record(target)))}"


def _already_there(state: State, files: Sequence[str]) -> str:
    record = state.record
    same = state.present and record is not None and (not files or set(files) == {file.name for file in record.sources})
    if not same or record is None:
        name = "a link" if state.folder.is_symlink() else "something else"
        if record is not None:
            name = f"{record.name} ({', '.join(source.name for source in record.sources)})"
        raise OutputError(state.folder, expected=f"room for {state.entry.name}", found=name, hint="move it away")
    return f"{state.folder}: there already, fetched {record.date}: {verify(state)}"


def _check_unchanged(state: State, come: Sequence[Downloaded]) -> None:
    """Raise DownloadError where a source gives other bytes under the same name than it once did."""
    record = state.record
    if record is None or record.name != state.entry.name:
        return
    before = {source.name: source.sha256 for source in record.sources}
    for file in come:
        if (expected := before.get(file.path.name, file.sha256)) != file.sha256:
            raise DownloadError(
                file.url,
                expected=f"SHA-256 {expected} as on {record.date}",
                found=file.sha256,
                hint=f"remove {record_path(state.folder)} to take it nevertheless",
            )


def _place(
    entry: Weights,
    come: Sequence[Downloaded],
    made: Path,
    target: Path,
    zoo: Sequence[Weights],
    recipe: Recipe | None,
    licence: str,
) -> None:
    try:
        build(entry, [file.path for file in come], made, zoo=zoo)
        if recipe is not None and is_bundle(made):
            # An error names the download, which is kept.
            check_labels(entry.place, replace(open_bundle(made), path=come[0].path), recipe)
        sources = tuple(Source(file.path.name, file.url, file.size, file.sha256) for file in come)
        date = datetime.now(UTC).date().isoformat()
        with _recorded(target, Record(entry.name, licence, date, sources, sums(made))):
            made.rename(target)
    except OSError as error:
        raise OutputError(target, expected="to place a model", found=error.strerror or str(error)) from error
    except DownloadError:
        # A file that is no sound archive will not become one by keeping it.
        for file in come:
            file.path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(made.parent, ignore_errors=True)


@contextmanager
def _recorded(target: Path, record: Record) -> Iterator[None]:
    """Write the record first, as a folder in its place always has one; after an error the one before is back."""
    path = record_path(target)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    write_record(target, record)
    try:
        yield
    except OSError:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, before)
        raise


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Hold the lock of a place, which goes with the process. Raises OutputError where another has it.

    The file stays: whoever removed it would take it from one who has just opened it, and two would hold two files.
    """
    prepare_folder(folder)
    path = folder / f"{place}.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(path, expected="a lock", found=error.strerror or str(error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(path, expected=f"no other fetch of {place}", found="one that is running") from error
        except OSError as error:
            raise OutputError(path, expected="a lock", found=error.strerror or str(error)) from error
        yield
