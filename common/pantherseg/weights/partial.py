"""A download in progress: the bytes received so far, and a record of the file that they belong to."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pantherseg.errors import DownloadError, OutputError, os_reason
from pantherseg.files import write_text

ALGORITHMS = ("md5", "sha256")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. size: in bytes; checksum: `md5:<digits>` or `sha256:<digits>`; None where unknown.

    Raises DownloadError for a name that is not a plain file name, and for another kind of checksum.
    """

    name: str
    url: str
    size: int | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        name, checksum = self.name, self.checksum
        if not name or name.startswith(".") or not name.isprintable() or Path(name).name != name:
            raise DownloadError(self.url, expected="a plain file name", found=repr(name))
        if checksum is not None:
            object.__setattr__(self, "checksum", checksum.lower())
            if checksum.lower().partition(":")[0] not in ALGORITHMS:
                raise DownloadError(self.url, expected=f"a checksum by {' or '.join(ALGORITHMS)}", found=checksum)


class Progress(msgspec.Struct, frozen=True):
    """The file that the received bytes belong to. size: None where the server has not announced it."""

    url: str = ""
    size: int | None = None
    checksum: str | None = None
    validator: str | None = None
    """A strong ETag, or else Last-Modified: identifies this version of the file on the server."""


class PartialFile:
    """A file being downloaded: <name>.part with <name>.json beside it, renamed to <name> once it is verified.

    Continues an earlier download of the same file; removes what was received of another one. Raises OutputError.
    """

    def __init__(self, folder: Path, remote: RemoteFile) -> None:
        self.path, self._remote = folder / remote.name, remote
        self._part, self._record = folder / f"{remote.name}.part", folder / f"{remote.name}.json"
        with _disk_errors(self._part):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            known = msgspec.json.decode(self._record.read_bytes(), type=Progress)
        except (OSError, msgspec.DecodeError):
            known = Progress()
        self.progress = known
        same = (known.url, known.checksum) == (remote.url, remote.checksum) and remote.size in (None, known.size)
        # Without a validator or a checksum, the halves of two versions could be joined unnoticed.
        if not same or (known.validator is None and known.checksum is None):
            self.discard()

    @property
    def length(self) -> int:
        """Bytes received so far."""
        return self._part.stat().st_size if self._part.is_file() else 0

    def discard(self) -> None:
        """Remove everything that was received. Raises OutputError."""
        with _disk_errors(self._part):
            for path in (self._part, self.path, self._record):
                path.unlink(missing_ok=True)
        self.progress = Progress()

    def start(self, size: int | None, validator: str | None) -> None:
        """Start from the first byte. Raises DownloadError where the server announces another size than expected."""
        remote = self._remote
        if None not in (size, remote.size) and size != remote.size:
            self.discard()
            raise DownloadError(remote.url, expected=f"{remote.size} bytes", found=f"{size} bytes on the server")
        with _disk_errors(self._part):
            self._part.write_bytes(b"")  # first, so that the record never describes the bytes of another version
        self._save(Progress(remote.url, remote.size or size, remote.checksum, validator))

    def append(self, chunks: Iterator[bytes]) -> Iterator[int]:
        """Write chunks and yield the length of each. Raises OutputError, at once if the rest does not fit."""
        free = shutil.disk_usage(self._part.parent).free
        if (missing := (self.progress.size or 0) - self.length) > free:
            expected, found = f"{missing / 1e6:.0f} MB of disk space", f"{free / 1e6:.0f} MB free"
            raise OutputError(self._part, expected=expected, found=found)
        with _disk_errors(self._part), self._part.open("ab", buffering=0) as file:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:  # an unbuffered write may be short, such as on a disk that is nearly full
                    rest = rest[file.write(rest) :]
                yield len(chunk)
        if self.progress.size is None:
            self._save(msgspec.structs.replace(self.progress, size=self.length))

    def complete(self) -> bool:
        """Return whether the file is complete, after verifying it; a verified file that was damaged later is removed.

        Raises DownloadError, after removing the file, where its size or checksum is wrong; OutputError.
        """
        expected = _summary(self.progress.size, self.progress.checksum)
        with _disk_errors(self.path):
            if self.path.is_file():
                if self._summary_of(self.path) == expected:
                    return True
                self.discard()
            if self.progress.size is None or self.length < self.progress.size:
                return False
            if (found := self._summary_of(self._part)) != expected:
                self.discard()
                hint = "it was removed; run the command again, or check whether the published file has changed"
                raise DownloadError(self._remote.url, expected=expected, found=found, hint=hint)
            self._part.rename(self.path)
        return True

    def _summary_of(self, path: Path) -> str:
        checksum = self.progress.checksum
        if checksum is not None:
            algorithm = checksum.partition(":")[0]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
            checksum = f"{algorithm}:{digest.hexdigest()}"
        return _summary(path.stat().st_size, checksum)

    def _save(self, progress: Progress) -> None:
        self.progress = progress
        write_text(self._record, msgspec.json.encode(progress).decode())


def check_secure(before: str, after: str) -> None:
    """Raise DownloadError where an https URL leads to one that anybody on the way could tamper with."""
    if before.lower().startswith("https:") and not after.lower().startswith("https:"):
        raise DownloadError(before, expected="a link to an https URL", found=after)


def _summary(size: int | None, checksum: str | None) -> str:
    return f"{size} bytes" + (f" with {checksum}" if checksum else "")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "what was received is kept; run the command again to continue"
        raise OutputError(path, expected="to write this file", found=os_reason(error), hint=hint) from error
