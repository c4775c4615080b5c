"""A download on its way: what has come of a file, and what tells whether the rest belongs to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from pantherseg.errors import DownloadError, OutputError
from pantherseg.files import write_text

CHUNK = 1 << 16
KINDS = ("md5", "sha256")
KEPT = "what has come is kept: fetch again to go on"


@dataclass(frozen=True)
class Wanted:
    """A file to download. size: in bytes; checksum: `md5:<digits>` or `sha256:<digits>`; None where unknown."""

    name: str
    url: str
    size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """A file that has come, whole."""

    path: Path
    url: str
    size: int
    sha256: str


class Note(msgspec.Struct, frozen=True):
    """What lies beside a part: which file it is the beginning of."""

    url: str
    size: int | None = None
    checksum: str | None = None
    validator: str | None = None
    """ETag, or else Last-Modified."""
    sha256: str | None = None
    """Of the whole file, once it has come."""


class BrokenError(Exception):
    """A connection that ended early, or an answer that may be another one later."""

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def check_name(wanted: Wanted) -> None:
    """Raise DownloadError where a name leads elsewhere, is hidden, or holds what a terminal would obey."""
    name = wanted.name
    if not name or name.startswith(".") or not name.isprintable() or Path(name).name != name:
        raise DownloadError(wanted.url, expected="a file's plain name", found=repr(name))


class Part:
    """A file on its way: <name>.part with <name>.json beside, then <name>."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        check_name(wanted)
        if wanted.checksum is not None:
            wanted = replace(wanted, checksum=wanted.checksum.lower())
        if wanted.checksum is not None and wanted.checksum.partition(":")[0] not in KINDS:
            raise DownloadError(wanted.url, expected=f"a checksum like {' or '.join(KINDS)}", found=wanted.checksum)
        self._wanted = wanted
        self._path = folder / wanted.name
        self._part, self._beside = folder / f"{wanted.name}.part", folder / f"{wanted.name}.json"
        with _writing(self._part):
            folder.mkdir(parents=True, exist_ok=True)
        note = self.note()
        same = (note.url, note.checksum) == (wanted.url, wanted.checksum) and wanted.size in (None, note.size)
        # Without a mark of the version or a checksum nothing would tell two versions' halves from one file.
        if not same or (note.validator is None and note.checksum is None):
            self.discard()

    def note(self) -> Note:
        """Return what lies beside, or an empty note."""
        try:
            return msgspec.json.decode(self._beside.read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError):
            return Note("")

    def length(self) -> int:
        """Return how many bytes have come of a file that is not whole."""
        return self._part.stat().st_size if self._part.is_file() else 0

    def discard(self) -> None:
        """Remove everything. Raises OutputError."""
        with _writing(self._part):
            for path in (self._part, self._path, self._beside):
                path.unlink(missing_ok=True)

    def begin(self, size: int | None, validator: str | None) -> Note:
        """Start from nothing. Raises DownloadError where the size is not the one wanted."""
        wanted = self._wanted
        if None not in (size, wanted.size) and size != wanted.size:
            self.discard()
            raise DownloadError(wanted.url, expected=f"{wanted.size} bytes", found=f"an answer of {size}")
        note = Note(wanted.url, wanted.size or size, wanted.checksum, validator)
        with _writing(self._part):
            self._part.write_bytes(b"")  # before the note: bytes of one version never stand beside another's
        write_text(self._beside, msgspec.json.encode(note).decode())
        return note

    def check_room(self, size: int | None) -> None:
        """Raise OutputError unless what is missing of `size` bytes has room."""
        missing = (size or 0) - self.length()
        free = shutil.disk_usage(self._part.parent).free
        if missing > free:
            expected, found = f"room for {missing / 1e6:.0f} MB", f"{free / 1e6:.0f} MB free"
            raise OutputError(self._part, expected=expected, found=found)

    def written(self, pieces: Iterator[bytes]) -> Iterator[int]:
        """Append pieces, and yield the length of each once it is written. Raises OutputError."""
        with _writing(self._part), self._part.open("ab", buffering=0) as file:
            for piece in pieces:
                view = memoryview(piece)
                while view:  # a disk that is nearly full takes a piece of the piece
                    view = view[file.write(view) :]
                yield len(piece)

    def finish(self) -> Downloaded:
        """Check what has come and give it its name. Raises BrokenError, DownloadError."""
        note, length = self.note(), self.length()
        if note.size is not None and length < note.size:
            raise BrokenError(f"{length} of {note.size} bytes")
        with _writing(self._part):
            sha256, checksum = _sums(self._part, note.checksum)
        if note.size not in (None, length) or checksum != note.checksum:
            self.discard()
            expected = f"{note.size} bytes, {note.checksum or 'any checksum'}"
            found = f"{length} bytes, {checksum or sha256}"
            hint = "it was removed; fetch again, or see whether the source was changed"
            raise DownloadError(self._wanted.url, expected=expected, found=found, hint=hint)
        write_text(self._beside, msgspec.json.encode(msgspec.structs.replace(note, sha256=sha256)).decode())
        with _writing(self._path):
            self._part.rename(self._path)
        return Downloaded(self._path, self._wanted.url, length, sha256)

    def whole(self) -> Downloaded | None:
        """Return the file if it has come, also when the last end came before it got its name."""
        note = self.note()
        if note.size is not None and not self._path.is_file() and self.length() == note.size:
            return self.finish()
        if not self._path.is_file():
            return None
        with _writing(self._path):
            sha256, _ = _sums(self._path, None)
        if sha256 != note.sha256:
            self.discard()
            return None
        return Downloaded(self._path, self._wanted.url, self._path.stat().st_size, sha256)


def _sums(path: Path, checksum: str | None) -> tuple[str, str | None]:
    """Return a file's SHA-256, and its checksum of the same kind as another."""
    sha256 = hashlib.sha256()
    kind = checksum.partition(":")[0] if checksum else ""
    other = hashlib.new(kind, usedforsecurity=False) if kind else None
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            sha256.update(piece)
            if other is not None:
                other.update(piece)
    return sha256.hexdigest(), f"{kind}:{other.hexdigest()}" if other is not None else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        raise OutputError(path, expected="to write this file", found=found, hint=KEPT) from error
