"""Where DICOM files lie: in a folder and those below it, or in a zip archive, which is read without unpacking it."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pantherseg.archives import MAX_MEMBERS, ArchiveError, Budget, damage_reported
from pantherseg.errors import InputError

# A DICOM file has `DICM` after a preamble of 128 arbitrary bytes.
MARK, MARK_OFFSET = b"DICM", 128
SUFFIX, ZIP_SUFFIX = ".dcm", ".zip"
DIRECTORY = "DICOMDIR"
# How many files are looked at to tell whether there is any DICOM file: seconds on a local disk.
MAX_FILES = MAX_MEMBERS


@dataclass(frozen=True)
class Place:
    """A file, or a member of a zip archive. stamp: changes when the file does."""

    path: Path
    member: str = ""
    stamp: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return the path, of a member below that of its archive."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.member or self.path).name


def is_zip(path: Path) -> bool:
    """Return whether a path is a zip archive by its suffix."""
    return path.suffix.lower() == ZIP_SUFFIX and path.is_file()


def without_directory(source: Path) -> Path:
    """Return the folder of a DICOMDIR, which stands for it, and any other source itself."""
    return source.parent if source.name.upper() == DIRECTORY and not source.is_dir() else source


def is_dicom(path: Path) -> bool:
    """Return whether a path is a DICOM file, as told by the suffix .dcm or by its content."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return _is_dicom(path.name, file.read(MARK_OFFSET + len(MARK)))
    return False


def first_dicom(source: Path) -> Place | None:
    """Return the first DICOM file of a source: itself, one in a folder or below it, or a member of a zip archive.

    At most MAX_FILES files are looked at; unreadable ones are skipped.
    """
    if source.is_dir():
        paths = (path for _, path in zip(range(MAX_FILES), files_below(source), strict=False))
        return next((Place(path) for path in paths if is_dicom(path)), None)
    if is_zip(source):
        with suppress(OSError, ArchiveError), damage_reported(), zipfile.ZipFile(source) as archive:
            for entry in _members(archive)[:MAX_FILES]:
                with archive.open(entry) as file:
                    if _is_dicom(entry.filename, file.read(MARK_OFFSET + len(MARK))):
                        return Place(source, entry.filename)
        return None
    return Place(source) if is_dicom(source) else None


def places_in(source: Path, *, below: bool = True) -> list[Place]:
    """Return the files of a folder, or of a zip archive, sorted; below: also those of the folders in it.

    Raises InputError and OSError.
    """
    if source.is_dir():
        return [stamped(path) for path in files_below(source, below=below)]
    stamp = stamped(source).stamp
    with _opened(source) as archive:
        return [Place(source, entry.filename, stamp) for entry in _members(archive)]


def files_below(folder: Path, *, below: bool = True) -> Iterator[Path]:
    """Yield the files in a folder and in those below it, each folder sorted by name, without what is hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if below and not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        yield from (path for name in shown if (path := Path(parent, name)).is_file())


def dicom_files(places: Sequence[Place]) -> Iterator[tuple[Place, BinaryIO]]:
    """Yield the DICOM files among some places, opened. Raises InputError and OSError."""
    for place in places:
        if not place.member:
            with place.path.open("rb") as file:
                if _is_dicom(place.name, file.read(MARK_OFFSET + len(MARK))):
                    file.seek(0)
                    yield place, file
    for path in dict.fromkeys(place.path for place in places if place.member):
        yield from _dicom_members(path, [place for place in places if place.path == path])


def _dicom_members(path: Path, places: Sequence[Place]) -> Iterator[tuple[Place, BinaryIO]]:
    with _opened(path) as archive:
        budget = Budget.of(path.stat().st_size)
        for place in places:
            with _damage_as_input_error(path), archive.open(place.member) as content:
                head = content.read(MARK_OFFSET + len(MARK))
                found = _is_dicom(place.name, head)
                if found:
                    budget.spend(archive.getinfo(place.member).file_size)
                    head += content.read()
            if found:
                yield place, io.BytesIO(head)


def _is_dicom(name: str, head: bytes) -> bool:
    return name.lower().endswith(SUFFIX) or head[MARK_OFFSET:] == MARK


def stamped(path: Path) -> Place:
    """Return a file with its stamp. Raises OSError."""
    state = path.stat()
    return Place(path, stamp=(state.st_size, state.st_mtime_ns, state.st_ino))


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    names = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    hidden = {name for name in names if Path(name).name.startswith(".")}
    return [names[name] for name in sorted(names.keys() - hidden)]


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with _damage_as_input_error(path):
        archive = zipfile.ZipFile(path)
    with archive:
        if len(archive.infolist()) > MAX_MEMBERS:
            raise InputError(path, expected=f"at most {MAX_MEMBERS} files", found=f"{len(archive.infolist())}")
        yield archive


@contextmanager
def _damage_as_input_error(path: Path) -> Iterator[None]:
    try:
        with damage_reported():
            yield
    except ArchiveError as error:
        hint = "copy it again, or unpack it and give the folder"
        raise InputError(path, expected="a valid zip archive", found=str(error), hint=hint) from error
