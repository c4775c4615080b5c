"""What was fetched: <place>.fetched.json beside each folder, and what is found there later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pantherseg.errors import ModelError
from pantherseg.files import write_text
from pantherseg.models.bundle import Bundle, is_bundle, open_bundle, sha256_of
from pantherseg.models.find import FETCHED, open_model_folder
from pantherseg.models.manifest import MANIFEST
from pantherseg.packing.sources.nnunet import LAYOUT, PLANS
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
    """One of the zoo, and what lies in its place.

    record: None where nothing was fetched to it, or where its record is damaged, for which problem is the error.
    """

    entry: Weights
    folder: Path
    record: Record | None
    problem: ModelError | None = None

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
    """Return what lies below a folder of each of the zoo. Raises ModelError where it is no folder."""
    if root.exists() and not root.is_dir():
        raise ModelError(root, expected="a folder of models", found="a file")
    return [_state(entry, root / entry.place) for entry in zoo]


def _state(entry: Weights, folder: Path) -> State:
    try:
        return State(entry, folder, read_record(folder))
    except ModelError as error:
        return State(entry, folder, None, error)


def holds_something(folder: Path) -> bool:
    """Return whether a path is anything but an empty folder; a link is, wherever it leads: it cannot be renamed to."""
    if folder.is_symlink():
        return True
    try:
        return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except OSError:  # a folder of others
        return True


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
    if state.problem is not None:
        raise state.problem
    if not folder.is_dir():
        found = "a file" if folder.exists() else "a link that leads nowhere" if folder.is_symlink() else "nothing"
        raise ModelError(folder, expected="a model's folder", found=found)
    for name, expected in (record.placed if record is not None else {}).items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise ModelError(folder / name, expected="a file", found=error.strerror or str(error)) from error
        if found != expected:
            raise ModelError(folder / name, expected=f"SHA-256 {expected}", found=found)
    if is_bundle(folder):
        return _verify_bundle(open_bundle(folder))
    if record is None or not record.placed:
        return _verify_own(folder)
    return f"{len(record.placed)} files"


def _verify_own(folder: Path) -> str:
    """Look at a model that was put in its place by hand; as find_models does, further down too."""
    found = [path.parent for path in sorted(folder.rglob(PLANS)) if path.is_file()]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        expected = f"one bundle or nnU-Net model folder ({LAYOUT})"
        raise ModelError(folder, expected=expected, found=names or f"no {PLANS}")
    if is_bundle(found[0]):
        return _verify_bundle(open_bundle(found[0]))
    held = [{path.name for path in fold.glob("*.pth")} for fold in found[0].glob("fold_*") if fold.is_dir()]
    # Of several that every fold has any will do here; the recipe says which one is run.
    common = sorted(set.intersection(*held)) if held else []
    model = open_model_folder(found[0], checkpoint=common[-1]) if common else open_model_folder(found[0])
    return f"folds {' '.join(model.folds)} of {model.checkpoint}; nothing to compare with: it was not fetched"


def _verify_bundle(bundle: Bundle) -> str:
    bundle.verify_all()
    return f"folds {' '.join(bundle.folds)} of {bundle.manifest.checkpoint}, {bundle.describe_labels()}"
