"""The zoo: what weights/zoo.toml says about published weights, and which files of a record are meant."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import DownloadError, RecipeError
from pantherseg.tables import FileName, Table, read_table
from pantherseg.weights.downloads import Client, check_still_safe
from pantherseg.weights.partial import Wanted, check_name

ZENODO = "https://zenodo.org/api/records"
SEE_RECORD = "see the record"

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Patterns = Annotated[list[str], Meta(min_length=1)]


class Zenodo(Table, frozen=True, tag_field="kind", tag="zenodo"):
    """Files of a Zenodo record."""

    record: int
    files: Annotated[list[Patterns], Meta(min_length=1)]
    """For each wanted file the patterns of its name; the first that fits any of the record's files counts."""

    def __str__(self) -> str:
        return f"Zenodo {self.record}"


class Direct(Table, frozen=True, tag_field="kind", tag="url"):
    """One file at an address."""

    url: str
    size: int | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None

    def __str__(self) -> str:
        return self.url


class MrSegmentator(Table, frozen=True, tag_field="kind", tag="mrsegmentator"):
    """A model of the registry that the mrsegmentator package keeps."""

    model: str

    def __str__(self) -> str:
        return "mrsegmentator"


class Weights(Table, frozen=True):
    """One model that others have published."""

    name: Name
    title: str
    licence: str
    layout: Literal["model folder", "loose checkpoints"]
    checkpoint: FileName
    """Taken if every fold has it, else the one that every fold has; the name that loose checkpoints get."""
    packed: bool
    source: Zenodo | Direct | MrSegmentator
    role: Literal["task1", "task2", "localizer"] | None = None
    """Which model of a recipe it is; None for a start for training."""
    recipe: str = ""
    """The recipe that runs it."""
    folder: str | None = None
    """Pattern of the model folder's name in the archive, as far as it is known."""

    @property
    def place(self) -> str:
        """The name of its folder: the role's, under which models are looked for, or its own."""
        return self.role or self.name


class Zoo(Table, frozen=True):
    """All published weights that are known."""

    schema: Literal[1]
    weights: list[Weights]


class Published(msgspec.Struct, frozen=True):
    """What a source says at the time of fetching."""

    files: tuple[Wanted, ...]
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
    """Only looked at for the licence: what is odd about it is no reason to refuse the files."""


def load_zoo(path: Path) -> list[Weights]:
    """Read the zoo. Raises RecipeError naming the file and the key."""
    found = read_table(path, Zoo).weights
    names = [entry.name for entry in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(path, expected="names that differ", found=f"{twice[0]} twice")
    return found


def named(zoo: Sequence[Weights], name: str) -> Weights:
    """Return one of the zoo. Raises RecipeError naming all."""
    for entry in zoo:
        if entry.name == name:
            return entry
    raise RecipeError(name, expected=f"one of {', '.join(entry.name for entry in zoo)}", found="another name")


def publish(entry: Weights, client: Client, *, zenodo: str = ZENODO, files: Sequence[str] = ()) -> Published:
    """Ask an entry's source which files are to be fetched. files: names in place of the entry's patterns.

    Raises DownloadError, RecipeError.
    """
    source = entry.source
    if isinstance(source, Zenodo):
        return _of_record(entry, source, client, f"{zenodo.rstrip('/')}/{source.record}", files)
    if files:
        raise RecipeError("--file", expected="weights that lie in a Zenodo record", found=f"{entry.name}: {source}")
    if isinstance(source, MrSegmentator):
        source = _of_registry(source)
    checksum = f"sha256:{source.sha256}" if source.sha256 else None
    name = source.url.partition("?")[0].rpartition("/")[2] or entry.name
    return Published((Wanted(name, source.url, source.size, checksum),), entry.licence)


def _of_record(entry: Weights, source: Zenodo, client: Client, url: str, names: Sequence[str]) -> Published:
    try:
        record = msgspec.json.decode(client.read(url), type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DownloadError(url, expected="a Zenodo record", found=str(error)) from error
    every = {file.key: file for file in record.files}
    chosen = [_one(url, [name], every) for name in names] or [_one(url, wanted, every) for wanted in source.files]
    licence = entry.licence
    if licence == SEE_RECORD:
        licence = _licence(record.metadata) or SEE_RECORD
    if twice := [name for name in chosen if chosen.count(name) > 1]:
        raise DownloadError(url, expected="files that differ", found=f"{twice[0]} twice", hint="name each once")
    files = [every[name] for name in chosen]
    found = tuple(Wanted(file.key, file.links.self, file.size, file.checksum) for file in files)
    for wanted in found:
        check_name(wanted)
        check_still_safe(url, wanted.url)
    return Published(found, licence)


def _licence(metadata: Any) -> str | None:
    """Return the licence's name that a record states, {"license": {"id": ...}} or {"license": ...}, if it is one."""
    stated = metadata.get("license") if isinstance(metadata, dict) else None
    name = stated.get("id") if isinstance(stated, dict) else stated
    return name if isinstance(name, str) and name.strip() and name.isprintable() else None


def _one(url: str, patterns: Sequence[str], every: dict[str, _File]) -> str:
    """Return the only name that the first pattern fits that fits any."""
    fitting: list[str] = []
    for pattern in patterns:
        fitting = [name for name in every if name == pattern] or [name for name in every if fnmatchcase(name, pattern)]
        if fitting:
            break
    if len(fitting) == 1:
        return fitting[0]
    raise DownloadError(
        url,
        expected=f"one file like {' or '.join(patterns)}",
        found=f"{len(fitting) or 'none'} among {', '.join(sorted(every)) or 'no files at all'}",
        hint="name one with --file NAME",
    )


def _of_registry(source: MrSegmentator) -> Direct:
    try:
        from mrsegmentator.config import MODEL_REGISTRY
    except ImportError as error:
        hint = "pip install pantherseg[cuda]"
        raise DownloadError("mrsegmentator", expected="the package", found="none", hint=hint) from error
    try:
        known = MODEL_REGISTRY[source.model]
        return Direct(url=known["url"], sha256=known["sha256"])
    except (KeyError, TypeError) as error:
        found = f"no {error} in mrsegmentator.config.MODEL_REGISTRY"
        raise DownloadError("mrsegmentator", expected=f"URL and SHA-256 of {source.model}", found=found) from error
