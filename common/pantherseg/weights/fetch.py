"""Fetches published weights: download, verify, unpack, pack and install by one command."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pantherseg.errors import DownloadError, ModelError, OutputError, os_reason
from pantherseg.files import prepare_folder, write_text
from pantherseg.io.digest import sha256_of
from pantherseg.models.bundle import is_bundle, open_bundle
from pantherseg.models.find import check_labels
from pantherseg.packing.pack import missing_packages
from pantherseg.paths import ROOT
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.weights.assemble import build, check_files
from pantherseg.weights.installed import (
    Installation,
    Record,
    Source,
    checksums,
    read_record,
    record_path,
    verify,
    write_record,
)
from pantherseg.weights.zoo import ZENODO, Weights, find_release

if TYPE_CHECKING:
    from pantherseg.weights.downloads import Client

# Hidden, so that no unfinished model is found in it; on the same disk, so that a finished one can be renamed.
WORK = ".fetch"
# No download can have a hidden name.
BUILT = Path(".build", "model")


def fetch(
    entry: Weights,
    root: Path,
    *,
    zoo: Sequence[Weights],
    client: Client,
    zenodo: str = ZENODO,
    files: Sequence[str] = (),
) -> Iterator[str]:
    """Fetch an entry of the zoo, install it as <root>/<its role or name>, and yield a line for each step.

    Whenever the process ends, nothing is half installed, and completed parts of downloads are not repeated.
    zenodo: URL of the records; files: names in a record, in place of the entry's patterns.
    Raises DownloadError, ModelError, OutputError, and RecipeError, also where the recipe cannot use the model.
    """
    target, work = root / entry.install_name, root / WORK / entry.name
    with _install_lock(root, entry.install_name):
        before = Installation(entry, target, read_record(target))
        if before.occupied:
            yield _already_installed(before, files)
            return
        if missing := missing_packages():
            found, hint = f"no {' and '.join(missing)}", "pip install 'pantherseg[cuda]'"
            raise ModelError(entry.name, expected="the packages that read nnU-Net checkpoints", found=found, hint=hint)
        recipe = load_recipe(ROOT / entry.recipe) if entry.role and entry.recipe else None
        release = find_release(entry, client, zenodo=zenodo, files=files)
        check_files(entry, [remote.name for remote in release.files])
        yield f"{entry.title}; {entry.source}; licence: {release.licence}"
        sources = []
        for remote in release.files:
            path = client.download(remote, work)
            source = Source(remote.name, remote.url, path.stat().st_size, sha256_of(path))
            sources.append(source)
            yield f"{source.name}: {source.size} bytes, SHA-256 {source.sha256}"
        _check_unchanged(before, sources)
        date = datetime.now(UTC).date().isoformat()
        _install(entry, Record(entry.name, release.licence, date, tuple(sources), {}), work, target, zoo, recipe)
        shutil.rmtree(work, ignore_errors=True)
    yield f"{target}: {verify(Installation(entry, target, read_record(target)))}"


def _already_installed(installation: Installation, files: Sequence[str]) -> str:
    """Describe weights that are installed already. Raises ModelError if damaged, OutputError if others are there."""
    record, folder = installation.record, installation.folder
    found = "a link" if folder.is_symlink() else "something else"
    if record is not None:
        names = [source.name for source in record.sources]
        if installation.installed and (not files or set(files) == set(names)):
            return f"{folder}: already installed, fetched {record.date}: {verify(installation)}"
        found = f"{record.name} ({', '.join(names)})"
    hint = "move it away"
    raise OutputError(folder, expected=f"nothing where {installation.entry.name} goes", found=found, hint=hint)


def _check_unchanged(before: Installation, sources: Sequence[Source]) -> None:
    """Raise DownloadError where the source gives other bytes under the same name than when it was last fetched."""
    record = before.record
    if record is None or record.name != before.entry.name:
        return
    known = {source.name: source.sha256 for source in record.sources}
    for source in sources:
        if (sha256 := known.get(source.name, source.sha256)) != source.sha256:
            expected = f"SHA-256 {sha256} as on {record.date}"
            hint = f"remove {record_path(before.folder)} to accept the new file"
            raise DownloadError(source.url, expected=expected, found=source.sha256, hint=hint)


def _install(
    entry: Weights, record: Record, work: Path, target: Path, zoo: Sequence[Weights], recipe: Recipe | None
) -> None:
    """Build a model from the downloads in a working folder, and rename it to where it is installed."""
    downloads = [work / source.name for source in record.sources]
    built = work / BUILT
    try:
        build(entry, downloads, built, zoo=zoo)
        if recipe is not None and is_bundle(built):
            # An error names the download, which is kept.
            check_labels(entry.install_name, replace(open_bundle(built), path=downloads[0]), recipe)
        with _recorded(target, msgspec.structs.replace(record, placed=checksums(built))):
            built.rename(target)
    except OSError as error:
        raise OutputError(target, expected="to install a model", found=os_reason(error)) from error
    except DownloadError:
        # The archive is damaged or unsafe, so the next attempt must download it again.
        for path in downloads:
            path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(built.parent, ignore_errors=True)


@contextmanager
def _recorded(target: Path, record: Record) -> Iterator[None]:
    """Write the record first, so that an installed model always has one; restore the previous one after an error."""
    path = record_path(target)
    previous = path.read_text(encoding="utf-8") if path.exists() else None
    write_record(target, record)
    try:
        yield
    except OSError:
        if previous is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, previous)
        raise


@contextmanager
def _install_lock(root: Path, name: str) -> Iterator[None]:
    """Hold the lock on one model in a folder of models. Raises OutputError where another process holds it.

    The file is never removed: a process that has just opened it would then lock another file than the next one.
    """
    prepare_folder(root / WORK)
    path = root / WORK / f"{name}.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(path, expected="a lock", found=os_reason(error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(path, expected=f"no other fetch of {name}", found="one that is running") from error
        except OSError as error:
            raise OutputError(path, expected="a lock", found=os_reason(error)) from error
        yield
