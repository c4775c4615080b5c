"""Published archives: what is in one is looked at by name, and only what a model needs is unpacked."""

from __future__ import annotations

import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from pantherseg.errors import DownloadError, OutputError

# Weights hardly shrink: what unpacks to far more than it weighs was made to fill disks.
MAX_GROWTH = 20
ALWAYS_ALLOWED = 64 << 20
# What reading an archive raises; OSError is bz2's word for damage, and gzip's.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError)
ODD = (RuntimeError, ValueError, OverflowError, struct.error)
PIECE = 1 << 20


def allowed_bytes(packed: int) -> int:
    """Return how many bytes an archive of weights of so many may hold."""
    return ALWAYS_ALLOWED + MAX_GROWTH * packed


class Archive:
    """An archive that was opened and whose names were checked. sizes: of its files in bytes, by name."""

    def __init__(self, path: Path, opened: zipfile.ZipFile | tarfile.TarFile) -> None:
        self._path, self._opened = path, opened
        self.sizes: dict[str, int] = {}
        allowed = allowed_bytes(path.stat().st_size)
        total = 0
        for name, size in _entries(path, opened):
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or "\0" in name or not parts:
                raise DownloadError(path, expected="names below the archive's own folder", found=repr(name))
            plain = "/".join(parts)
            if plain in self.sizes:
                raise DownloadError(path, expected="names that differ", found=f"{name!r} twice")
            self.sizes[plain] = size
            total += size
            # Said by an entry's header before its bytes are unpacked.
            if total > allowed:
                expected = f"at most {allowed / 1e6:.0f} MB in an archive of {path.stat().st_size / 1e6:.1f} MB"
                raise DownloadError(path, expected=expected, found="more")

    def unpack(self, files: Mapping[str, Path]) -> None:
        """Write files of the archive, by their names. Raises DownloadError; OutputError where there is no room."""
        needed = sum(self.sizes[name] for name in files)
        target = next(iter(files.values()), self._path).parent
        with _writing(target):
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target).free
        if needed > free:
            raise OutputError(target, expected=f"room for {needed / 1e6:.0f} MB", found=f"{free / 1e6:.0f} MB free")
        for name, source in self._sources(files):
            with source, _opened_new(files[name], target) as file:
                # What goes wrong here is either the archive's fault or the disk's, and is told as such.
                while piece := source.read(PIECE):
                    with _writing(target):
                        file.write(piece)
                        file.flush()

    def _sources(self, files: Mapping[str, Path]) -> Iterator[tuple[str, IO[bytes]]]:
        if isinstance(self._opened, zipfile.ZipFile):
            for entry in self._opened.infolist():
                if (name := str(PurePosixPath(entry.filename))) in files and not entry.is_dir():
                    yield name, self._opened.open(entry)
        else:
            for member in self._opened.getmembers():
                source = self._opened.extractfile(member) if member.isfile() else None
                if source is not None and (name := str(PurePosixPath(member.name))) in files:
                    yield name, source


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(target, expected="to unpack here", found=error.strerror or str(error)) from error


@contextmanager
def _opened_new(path: Path, target: Path) -> Iterator[IO[bytes]]:
    with _writing(target):
        file = path.open("xb")
    try:
        yield file
    finally:
        with _writing(target):
            file.close()


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a zip or tar archive. Raises DownloadError for another file, a damaged one, or names that lead elsewhere."""
    try:
        with _open(path) as archive:
            yield Archive(path, archive)
    except (*DAMAGED, *ODD) as error:
        found = f"{type(error).__name__}: {error}"
        raise DownloadError(path, expected="a sound archive", found=found) from error


def _open(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        return zipfile.ZipFile(path) if _begins_as_zip(path) else tarfile.open(path)
    except tarfile.ReadError as error:
        with path.open("rb") as file:
            found = f"{path.stat().st_size} bytes beginning with {file.read(24)!r}"
        raise DownloadError(path, expected="a zip or tar archive", found=found) from error


def _begins_as_zip(path: Path) -> bool:
    """zipfile itself looks at the end, where a tar archive may have a checkpoint, which is a zip archive."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _entries(path: Path, archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each file. Raises DownloadError for what is neither a file nor a folder."""
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            kind = entry.external_attr >> 28  # of a Unix mode; 0 where the archive's maker wrote none
            if kind not in (0, 0o4, 0o10):
                raise DownloadError(path, expected="files and folders", found=f"a link or device ({entry.filename!r})")
            if not entry.is_dir():
                yield entry.filename, entry.file_size
    else:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise DownloadError(path, expected="files and folders", found=f"a link or device ({member.name!r})")
            if member.isfile():
                yield member.name, member.size
        _check_end(path, archive)


def _check_end(path: Path, archive: tarfile.TarFile) -> None:
    """Read on behind the last entry, where tarfile stops: there packed files have their checksum.

    tarfile also takes a damaged header for the end. Raises DownloadError, and what reading raises.
    """
    length = 0
    while piece := archive.fileobj.read(PIECE) if archive.fileobj is not None else b"":
        length += len(piece)
        if piece.strip(b"\0"):
            raise DownloadError(path, expected="a sound archive", found="bytes behind the last entry")
        if length > ALWAYS_ALLOWED:
            raise DownloadError(path, expected="the end of the archive", found="empty blocks without end")
