"""What was fetched: <place>.fetched.json beside each folder, and what is found there later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pantherseg.bundle import MANIFEST, Bundle, is_bundle, open_bundle, sha256_of
from pantherseg.errors import ModelError
from pantherseg.files import write_text
from pantherseg.models import FETCHED
from pantherseg.weights.zoo import Weights


class Source(msgspec.Struct, frozen=True):
    """A file as it was downloaded. size: in bytes."""

    name: str
    url: str
    size: int
    sha256: str


class Record(msgspec.Struct, frozen=True):
    """What was fetched, from where, and when."""

    name: str
    licence: str
    date: str
    sources: tuple[Source, ...]
    placed: dict[str, str]
    """SHA-256 of the files placed; of a bundle the manifest's, which names the others'."""


@dataclass(frozen=True)
class State:
    """One of the zoo, and what lies in its place. record: None where nothing was fetched to it."""

    entry: Weights
    folder: Path
    record: Record | None

    @property
    def taken(self) -> bool:
        """Whether anything lies in its place."""
        return holds_something(self.folder)

    @property
    def present(self) -> bool:
        """Whether it lies in its place itself."""
        return self.taken and self.record is not None and self.record.name == self.entry.name

    @property
    def size(self) -> int | None:
        """Bytes to download, if they are known."""
        if self.record is not None and self.record.name == self.entry.name:
            return sum(source.size for source in self.record.sources)
        return getattr(self.entry.source, "size", None)


def states(zoo: Sequence[Weights], root: Path) -> list[State]:
    """Return what lies below a folder of each of the zoo. Raises ModelError for a damaged record."""
    return [State(entry, root / entry.place, read_record(root / entry.place)) for entry in zoo]


def holds_something(folder: Path) -> bool:
    """Return whether a path is anything but an empty folder."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def record_path(folder: Path) -> Path:
    """Return where the record of a folder lies."""
    return folder.with_name(folder.name + FETCHED)


def read_record(folder: Path) -> Record | None:
    """Return the record of what was fetched to a folder. Raises ModelError if it is damaged."""
    path = record_path(folder)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, expected="a record of what was fetched", found=str(error), hint="remove it") from error


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a folder. Raises OutputError."""
    write_text(record_path(folder), msgspec.json.format(msgspec.json.encode(record), indent=1).decode() + "\n")


def sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder that is to be placed."""
    paths = [folder / MANIFEST] if is_bundle(folder) else sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths}


def verify(state: State) -> str:
    """Compare what lies in a place with its checksums, every fold's too, and say what was found. Raises ModelError."""
    folder, record = state.folder, state.record
    for name, expected in (record.placed if record is not None else {}).items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise ModelError(folder / name, expected="a file", found=error.strerror or str(error)) from error
        if found != expected:
            raise ModelError(folder / name, expected=f"SHA-256 {expected}", found=found)
    if is_bundle(folder):
        return _verify_bundle(open_bundle(folder))
    if record is None:
        return "nothing to compare with: it was not fetched and is no bundle"
    return f"{len(record.placed)} files"


def _verify_bundle(bundle: Bundle) -> str:
    for fold in bundle.folds:
        bundle.verify(fold)
    return f"folds {' '.join(bundle.folds)} of {bundle.manifest.checkpoint}"
