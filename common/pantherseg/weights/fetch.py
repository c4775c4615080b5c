"""Published weights by one command: download, check, unpack, pack, place."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pantherseg.errors import DownloadError, ModelError, OutputError
from pantherseg.files import prepare_folder
from pantherseg.packing import missing_packages
from pantherseg.weights.download import Client
from pantherseg.weights.part import Downloaded
from pantherseg.weights.place import build
from pantherseg.weights.shelf import Record, Source, State, read_record, record_path, sums, verify, write_record
from pantherseg.weights.zoo import ZENODO, Weights, publish

# Hidden, so that no unfinished model is found in it; on the same disk, so that a finished one is placed by a rename.
WORK = ".fetch"


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
    Raises DownloadError, ModelError, OutputError.
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
        published = publish(entry, client, zenodo=zenodo, files=files)
        yield f"{entry.title}; {entry.source}; licence: {published.licence}"
        come = []
        for wanted in published.files:
            come.append(client.download(wanted, work))
            yield f"{wanted.name}: {come[-1].size} bytes, SHA-256 {come[-1].sha256}"
        _check_unchanged(state, come)
        _place(entry, come, work, target, zoo, published.licence)
        shutil.rmtree(work, ignore_errors=True)
    yield f"{target}: {verify(State(entry, target, read_record(target)))}"


def _already_there(state: State, files: Sequence[str]) -> str:
    record = state.record
    same = state.present and record is not None and (not files or set(files) == {file.name for file in record.sources})
    if not same or record is None:
        name = "something else" if record is None else f"{record.name} ({', '.join(s.name for s in record.sources)})"
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
    entry: Weights, come: Sequence[Downloaded], work: Path, target: Path, zoo: Sequence[Weights], licence: str
) -> None:
    made = work / "made"
    try:
        build(entry, [file.path for file in come], made, zoo=zoo)
        sources = tuple(Source(file.path.name, file.url, file.size, file.sha256) for file in come)
        date = datetime.now(UTC).date().isoformat()
        # First the record: a folder in its place always has one.
        write_record(target, Record(entry.name, licence, date, sources, sums(made)))
        made.rename(target)
    except OSError as error:
        raise OutputError(target, expected="to place a model", found=error.strerror or str(error)) from error
    except DownloadError:
        # A file that is no sound archive will not become one by keeping it.
        for file in come:
            file.path.unlink(missing_ok=True)
        raise
    finally:
        for folder in (made, work / "source"):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Hold the lock of a place, which goes with the process. Raises OutputError where another has it."""
    prepare_folder(folder)
    path = folder / f"{place}.lock"
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(path, expected=f"no other fetch of {place}", found="one that is running") from error
        try:
            yield
        finally:
            with suppress(OSError):  # what has come of others is there
                path.unlink()
                folder.rmdir()
