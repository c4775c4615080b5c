"""Which weights are installed: <name>.fetched.json beside each model records what was fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pantherseg.errors import ModelError, os_reason
from pantherseg.files import write_text
from pantherseg.io.digest import sha256_of
from pantherseg.model_sources.nnunet import LAYOUT, PLANS
from pantherseg.models.bundle import Bundle, is_bundle, open_bundle
from pantherseg.models.find import FETCHED, open_model_folder
from pantherseg.models.manifest import MANIFEST
from pantherseg.weights.zoo import Weights


class Source(msgspec.Struct, frozen=True):
    """A downloaded file. size: in bytes."""

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
    """SHA-256 of the installed files; for a bundle only that of its manifest, which lists the others."""


@dataclass(frozen=True)
class Installation:
    """The folder where weights are installed, and what it contains.

    record: None where nothing was fetched to the folder, or where its record is damaged; `problem` is then the error.
    """

    entry: Weights
    folder: Path
    record: Record | None
    problem: ModelError | None = None

    @property
    def occupied(self) -> bool:
        """Whether the folder holds anything. A link counts, wherever it leads: no folder can be renamed to it."""
        if self.folder.is_symlink():
            return True
        try:
            return self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir()))
        except OSError:  # not readable by this user
            return True

    @property
    def installed(self) -> bool:
        """Whether the folder holds these weights."""
        return self.occupied and self._fetched is not None

    @property
    def download_size(self) -> int | None:
        """Bytes to download, None where unknown."""
        if self._fetched is not None:
            return sum(source.size for source in self._fetched.sources)
        return getattr(self.entry.source, "size", None)

    @property
    def _fetched(self) -> Record | None:
        return self.record if self.record is not None and self.record.name == self.entry.name else None


def installations(zoo: Sequence[Weights], root: Path) -> list[Installation]:
    """Return, for each entry, what is installed in a folder of models. Raises ModelError if that is not a folder."""
    if root.exists() and not root.is_dir():
        raise ModelError(root, expected="a folder of models", found="a file")
    found = []
    for entry in zoo:
        folder = root / entry.install_name
        try:
            found.append(Installation(entry, folder, read_record(folder)))
        except ModelError as error:
            found.append(Installation(entry, folder, None, error))
    return found


def record_path(folder: Path) -> Path:
    """Return the path of a model folder's record."""
    return folder.with_name(folder.name + FETCHED)


def read_record(folder: Path) -> Record | None:
    """Return a model folder's record, None if it has none. Raises ModelError if the record is damaged."""
    path = record_path(folder)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, expected="a record of what was fetched", found=str(error), hint="remove it") from error


def write_record(folder: Path, record: Record) -> None:
    """Write a model folder's record. Raises OutputError."""
    write_text(record_path(folder), msgspec.json.format(msgspec.json.encode(record), indent=1).decode() + "\n")


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a model that is about to be installed, as `Record.placed` has them."""
    paths = [folder / MANIFEST] if is_bundle(folder) else sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths}


def verify(installation: Installation) -> str:
    """Compare an installed model with its checksums, including every fold's, and describe it. Raises ModelError."""
    folder, record = installation.folder, installation.record
    if installation.problem is not None:
        raise installation.problem
    if not folder.is_dir():
        found = "a file" if folder.exists() else "a dangling link" if folder.is_symlink() else "nothing"
        raise ModelError(folder, expected="a model folder", found=found)
    for name, expected in (record.placed if record is not None else {}).items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise ModelError(folder / name, expected="a file", found=os_reason(error)) from error
        if found != expected:
            raise ModelError(folder / name, expected=f"SHA-256 {expected}", found=found)
    if is_bundle(folder):
        return _verify_bundle(open_bundle(folder))
    if record is None or not record.placed:
        return _check_own_model(folder)
    return f"{len(record.placed)} files"


def _check_own_model(folder: Path) -> str:
    """Describe a model that the user put there, at any depth, as find_models looks for it. Raises ModelError."""
    found = [path.parent for path in sorted(folder.rglob(PLANS)) if path.is_file()]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        expected = f"one bundle or nnU-Net model folder ({LAYOUT})"
        raise ModelError(folder, expected=expected, found=names or f"no {PLANS}")
    if is_bundle(found[0]):
        return _verify_bundle(open_bundle(found[0]))
    names_by_fold = [{path.name for path in fold.glob("*.pth")} for fold in found[0].glob("fold_*") if fold.is_dir()]
    # Any checkpoint that all folds have serves to describe the folder; the recipe says which one is used.
    common = sorted(set.intersection(*names_by_fold)) if names_by_fold else []
    model = open_model_folder(found[0], checkpoint=common[-1]) if common else open_model_folder(found[0])
    return (
        f"folds {' '.join(model.folds)} of {model.checkpoint}; not fetched, so there are no checksums to compare with"
    )


def _verify_bundle(bundle: Bundle) -> str:
    bundle.verify_all()
    return f"folds {' '.join(bundle.folds)} of {bundle.manifest.checkpoint}, {bundle.describe_labels()}"
