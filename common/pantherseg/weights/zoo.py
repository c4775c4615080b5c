"""The zoo: the catalogue of published weights in weights/zoo.toml, and the files that each entry refers to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import DownloadError, PantherSegError, RecipeError
from pantherseg.orientation import Orientation
from pantherseg.tables import FileName, Table, read_table
from pantherseg.weights.partial import RemoteFile, check_secure

if TYPE_CHECKING:
    from pantherseg.weights.downloads import Client

ZENODO = "https://zenodo.org/api/records"
SEE_RECORD = "see the record"

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Patterns = Annotated[list[str], Meta(min_length=1)]


class Zenodo(Table, frozen=True, tag_field="kind", tag="zenodo"):
    """Files of a Zenodo record."""

    record: int
    files: Annotated[list[Patterns], Meta(min_length=1)]
    """For each file, patterns of its name in order of preference: the first that matches any file is used."""

    def __str__(self) -> str:
        return f"Zenodo {self.record}"


class Direct(Table, frozen=True, tag_field="kind", tag="url"):
    """One file at a URL."""

    url: str
    size: int | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None

    def __str__(self) -> str:
        return self.url


class MrSegmentator(Table, frozen=True, tag_field="kind", tag="mrsegmentator"):
    """A model listed in the registry of the mrsegmentator package."""

    model: str

    def __str__(self) -> str:
        return "mrsegmentator"


class Weights(Table, frozen=True):
    """An entry of the zoo: one published model."""

    name: Name
    title: str
    licence: str
    layout: Literal["model folder", "loose checkpoints"]
    checkpoint: FileName
    """The checkpoint to use if every fold has it, otherwise one that they all have; the name given to loose ones."""
    packed: bool
    source: Zenodo | Direct | MrSegmentator
    role: Literal["task1", "task2", "localizer"] | None = None
    """The model's role in its recipe; None for weights that only training starts from."""
    recipe: str = ""
    """The recipe that runs the model."""
    orientation: Orientation | None = None
    """Of the volumes that the model was trained on."""
    folder: str | None = None
    """Pattern of the model folder's name in the archive, where it is known."""

    @property
    def install_name(self) -> str:
        """Name of the folder to install the model to: its role, by which recipes find it, or else its own name."""
        return self.role or self.name


class Zoo(Table, frozen=True):
    """All known published weights."""

    schema: Literal[1]
    weights: list[Weights]


class Release(msgspec.Struct, frozen=True):
    """The files to download for an entry, and their licence, as its source states them now."""

    files: tuple[RemoteFile, ...]
    licence: str


class _Links(msgspec.Struct):
    self: str


class _File(msgspec.Struct):
    key: str
    links: _Links
    size: int | None = None
    checksum: str | None = None


class _Record(msgspec.Struct):
    files: list[_File]
    metadata: Any = None
    """Only used for the licence, so anything unexpected in it is no reason to refuse the files."""


def load_zoo(path: Path) -> list[Weights]:
    """Read the zoo. Raises RecipeError naming the file and the key."""
    entries = read_table(path, Zoo).weights
    _refuse_duplicates(RecipeError, path, "unique names", [entry.name for entry in entries])
    return entries


def find_weights(zoo: Sequence[Weights], name: str) -> Weights:
    """Return the entry of this name. Raises RecipeError listing all names."""
    for entry in zoo:
        if entry.name == name:
            return entry
    raise RecipeError(name, expected=f"one of {', '.join(entry.name for entry in zoo)}", found="an unknown name")


def find_release(entry: Weights, client: Client, *, zenodo: str = ZENODO, files: Sequence[str] = ()) -> Release:
    """Ask an entry's source which files to download.

    zenodo: URL of the records; files: names in the record, in place of the entry's patterns.
    Raises DownloadError, RecipeError.
    """
    source = entry.source
    if isinstance(source, Zenodo):
        return _from_record(entry, source, client, f"{zenodo.rstrip('/')}/{source.record}", files)
    if files:
        raise RecipeError("--file", expected="weights from a Zenodo record", found=f"{entry.name} from {source}")
    if isinstance(source, MrSegmentator):
        source = _from_registry(source)
    checksum = f"sha256:{source.sha256}" if source.sha256 else None
    name = source.url.partition("?")[0].rpartition("/")[2] or entry.name
    return Release((RemoteFile(name, source.url, source.size, checksum),), entry.licence)


def _from_record(entry: Weights, source: Zenodo, client: Client, url: str, names: Sequence[str]) -> Release:
    try:
        record = msgspec.json.decode(client.read(url), type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DownloadError(url, expected="a Zenodo record", found=str(error)) from error
    by_name = {file.key: file for file in record.files}
    chosen = [_match(url, patterns, by_name) for patterns in ([[name] for name in names] or source.files)]
    _refuse_duplicates(DownloadError, url, "different files", chosen)
    files = []
    for file in (by_name[name] for name in chosen):
        check_secure(url, file.links.self)
        files.append(RemoteFile(file.key, file.links.self, file.size, file.checksum))
    licence = (_licence(record.metadata) if entry.licence == SEE_RECORD else None) or entry.licence
    return Release(tuple(files), licence)


def _refuse_duplicates(kind: type[PantherSegError], where: str | Path, expected: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise kind(where, expected=expected, found=f"{twice[0]} twice")


def _licence(metadata: Any) -> str | None:
    """Return a record's licence, {"license": {"id": NAME}} or {"license": NAME}; None where it states no valid one."""
    stated = metadata.get("license") if isinstance(metadata, dict) else None
    name = stated.get("id") if isinstance(stated, dict) else stated
    return name if isinstance(name, str) and name.strip() and name.isprintable() else None


def _match(url: str, patterns: Sequence[str], names: Iterable[str]) -> str:
    """Return the file name that the first matching pattern matches. Raises DownloadError if it matches several."""
    names, matches = sorted(names), []
    for pattern in patterns:
        matches = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if matches:
            break
    if len(matches) == 1:
        return matches[0]
    expected = f"one file that matches {' or '.join(patterns)}"
    found = f"{len(matches) or 'none'} among {', '.join(names)}" if names else "a record without files"
    raise DownloadError(url, expected=expected, found=found, hint="choose one with --file NAME")


def _from_registry(source: MrSegmentator) -> Direct:
    try:
        from mrsegmentator.config import MODEL_REGISTRY
    except ImportError as error:
        hint = "pip install 'pantherseg[cuda]'"
        raise DownloadError("mrsegmentator", expected="the package to be installed", found="none", hint=hint) from error
    try:
        known = MODEL_REGISTRY[source.model]
        return Direct(url=known["url"], sha256=known["sha256"])
    except (KeyError, TypeError) as error:
        found = f"no {error} in mrsegmentator.config.MODEL_REGISTRY"
        raise DownloadError("mrsegmentator", expected=f"URL and SHA-256 of {source.model}", found=found) from error
