"""Archives of unknown content: published weights, model archives for the platform, and what `docker save` writes.

Tar archives are read in tarfile's stream mode, from front to back, so that a pipe can be read as well as a file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from pantherseg.errors import DownloadError, OutputError, os_reason

# Weights and images hardly shrink: an archive that unpacks to far more than its own size was made to fill a disk.
MAX_GROWTH = 20
MIN_ALLOWED_BYTES = 64 << 20
MAX_MEMBERS = 100_000
CHUNK_BYTES = 1 << 20
MAX_LINK_BYTES = 4096
HEAD_BYTES = 24
MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
# What the standard library raises for a damaged, truncated or encrypted archive.
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, OverflowError, RuntimeError, ValueError),
)

Kind = Literal["file", "folder", "symbolic link", "hard link", "device or pipe"]
# By the type in a tar header, and by the type of a Unix mode in a zip archive, which is 0 where its maker wrote none.
KINDS: dict[bytes | int, Kind] = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, "file"),
    **{tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"},
    **{0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"},
}


class ArchiveError(Exception):
    """An archive that cannot be used. The message says what was found, in words that may follow "found"."""


@dataclass
class Budget:
    """How many bytes may still be unpacked."""

    left: int

    @classmethod
    def of(cls, packed: int, *, at_least: int = MIN_ALLOWED_BYTES) -> Budget:
        """Return the budget of an archive of this many bytes."""
        return cls(at_least + MAX_GROWTH * packed)

    def spend(self, size: int) -> None:
        """Take bytes from what is left. Raises ArchiveError where they are too many, and for any more after that."""
        self.left -= size
        if self.left < 0:
            raise ArchiveError("an archive that unpacks to far more than its own size, as one made to fill a disk does")


@dataclass
class Decompressed:
    """The content of a compressed file. What is read counts against a budget."""

    source: Any
    budget: Budget

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end. Raises ArchiveError."""
        data: bytes = self.source.read(size)
        self.budget.spend(len(data))
        return data


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    name: in its shortest form; where it leads out of the archive's folder, as it was written, and `inside` is False.
    mode: its permissions. link: of a link, where it leads, as it was written.
    """

    name: str
    kind: Kind
    size: int = 0
    mode: int = 0o755
    link: str = ""
    inside: bool = True

    @classmethod
    def named(cls, written: str, kind: Kind, **values: Any) -> Member:
        """Return a member with its name checked."""
        name = posixpath.normpath(written)
        inside = not name.startswith("/") and ".." not in written.split("/") and "\0" not in written
        return cls(name if inside else written, kind, inside=inside, **values)

    @property
    def target(self) -> str:
        """Where a link leads, relative to the archive's folder: a symbolic one is relative to its own folder."""
        start = posixpath.dirname(self.name) if self.kind == "symbolic link" else ""
        return posixpath.normpath(posixpath.join(start, self.link))


class Archive:
    """A zip or tar archive of files, its members checked.

    members: files, folders and links. sizes: of the files in bytes, by name. links: those to files of the archive, and
    the names of these files. refused: as text, devices, pipes, other links, and names that lead out of the archive's
    folder; they are never unpacked.
    """

    def __init__(self, path: Path) -> None:
        """Read the archive to its end. Raises ArchiveError."""
        self._path = path
        self.members: list[Member] = []
        self.links: dict[str, str] = {}
        self.refused: list[str] = []
        self._packed = path.stat().st_size
        stated = Budget.of(self._packed)
        with damage_reported():
            for member, _ in _read(path, Budget.of(self._packed)):
                stated.spend(member.size)  # stated by its header, before its bytes are unpacked
                if not member.inside:
                    self.refused.append(member.name)
                elif member.kind == "device or pipe":
                    self.refused.append(f"{member.name} (a device or pipe)")
                else:
                    self.members.append(member)
        _check_names(self.members)
        self.sizes = {member.name: member.size for member in self.members if member.kind == "file"}
        for member in self.members:
            if member.kind in ("symbolic link", "hard link"):
                target = self.links.get(member.target, member.target)
                if target in self.sizes:
                    self.links[member.name] = target
                else:
                    self.refused.append(f"{member.name} (a link to {member.link})")

    def unpack(self, files: Mapping[str, Path]) -> None:
        """Write files of the archive: their names, and the paths where they are to be. A link becomes a hard link.

        Raises ArchiveError; OutputError where the disk has no room or cannot be written.
        """
        if not files:
            return
        target = Path(os.path.commonpath([path.parent for path in files.values()]))
        needed = sum(self.sizes[name] for name in files if name in self.sizes)
        with _writing(target):
            for path in files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target).free
        if needed > free:
            room = f"room to unpack {needed / 1e6:.0f} MB"
            raise OutputError(target, expected=room, found=f"{free / 1e6:.0f} MB free")
        with damage_reported():
            for member, content in _read(self._path, Budget.of(self._packed)):
                if content is not None and member.name in files:
                    with _writing(target), files[member.name].open("xb") as output:
                        while data := _chunk(content):
                            output.write(data)
        with _writing(target):
            for name in files.keys() & self.links.keys():
                files[name].hardlink_to(files[self.links[name]])


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive of published weights. Raises DownloadError where it is damaged or has more than files in it."""
    try:
        archive = Archive(path)
        if unwanted := [*archive.refused, *(f"{name} (a link to {target})" for name, target in archive.links.items())]:
            raise DownloadError(path, expected="only files and folders below the archive's own", found=unwanted[0])
        yield archive
    except ArchiveError as error:
        raise DownloadError(path, expected="a valid zip or tar archive", found=str(error)) from error


@contextmanager
def damage_reported() -> Iterator[None]:
    """Turn what the standard library raises for a damaged archive into an ArchiveError."""
    try:
        yield
    except DAMAGED as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ArchiveError(f"a damaged or truncated archive ({found})") from error


def compression(file: BufferedReader) -> str:
    """Return how a file is compressed by its first bytes, a value of MAGIC or `none`. Nothing of it is read."""
    head = file.peek(HEAD_BYTES)
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "none")


def decompressed(file: BufferedReader, budget: Budget) -> Decompressed:
    """Return a file's content, decompressed if it is compressed by gzip, xz or bzip2. Raises ArchiveError."""
    source: Any = file
    match compression(file):
        case "gzip":
            source = gzip.GzipFile(fileobj=file)
        case "xz":
            source = lzma.LZMAFile(file)  # noqa: SIM115  (closes nothing: the file is the caller's)
        case "bzip2":
            source = bz2.BZ2File(file)
        case "zstd":
            raise ArchiveError("compression by zstd, which is not supported")
    return Decompressed(source, budget)


def tar_members(file: BufferedReader, budget: Budget) -> Iterator[tuple[Member, BufferedReader | None]]:
    """Yield a tar archive's members, each file with its content, which must be read before the next member.

    Raises ArchiveError, and exceptions that `damage_reported` turns into one.
    """
    head, compressed = file.peek(HEAD_BYTES)[:HEAD_BYTES], compression(file) != "none"
    content: Any = decompressed(file, budget)
    try:
        archive = tarfile.open(fileobj=content, mode="r|", tarinfo=_Header)  # noqa: SIM115  (reads the first header)
    except tarfile.TarError as error:
        if compressed:
            raise
        raise ArchiveError(f"a file that is not a tar archive and begins with {head!r}") from error
    with archive:
        for count, info in enumerate(archive, start=1):
            if count > MAX_MEMBERS:
                raise ArchiveError(f"more than {MAX_MEMBERS} members")
            extracted: Any = archive.extractfile(info) if info.isfile() else None
            kind = KINDS.get(info.type, "device or pipe")
            yield Member.named(info.name, kind, size=info.size, mode=info.mode, link=info.linkname), extracted
        # tarfile stops at the mark of the end; the checksum of a compressed archive is behind it.
        while rest := archive.fileobj.read(CHUNK_BYTES) if archive.fileobj is not None else b"":
            if rest.strip(b"\0"):
                raise ArchiveError("an archive with data after its end")


class _Header(tarfile.TarInfo):
    """A header that raises an error where tarfile would take a damaged or missing one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]  # typeshed: Self
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros, which marks the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive was expected") from error


def _zip_members(path: Path) -> Iterator[tuple[Member, IO[bytes] | None]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            kind = "folder" if entry.is_dir() else KINDS.get(stat.S_IFMT(entry.external_attr >> 16), "device or pipe")
            with archive.open(entry) as content:
                link = content.read(MAX_LINK_BYTES).decode(errors="replace") if kind == "symbolic link" else ""
                member = Member.named(entry.filename, kind, size=entry.file_size, link=link)
                yield member, content if kind == "file" else None


def _read(path: Path, budget: Budget) -> Iterator[tuple[Member, IO[bytes] | None]]:
    """Yield an archive's members.

    zipfile.is_zipfile would also accept a tar archive that ends with a zip file, such as a checkpoint.
    """
    with path.open("rb") as file:
        yield from _zip_members(path) if compression(file) == "zip" else tar_members(file, budget)


def _check_names(members: Sequence[Member]) -> None:
    """Raise ArchiveError where two members have the same name, or a file has the name of a folder."""
    names = [member.name for member in members if member.kind != "folder"]
    folders = {member.name for member in members if member.kind == "folder"}
    folders |= {str(parent) for member in members for parent in PurePosixPath(member.name).parents}
    if both := sorted(folders.intersection(names)):
        raise ArchiveError(f"{both[0]!r} both as a file and as a folder")
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise ArchiveError(f"{count} members with the name {name!r}")


def _chunk(content: IO[bytes]) -> bytes:
    """Read a part of a member. What is raised outside of this is the fault of the disk that is written to."""
    with damage_reported():
        return content.read(CHUNK_BYTES)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(target, expected="to unpack here", found=os_reason(error)) from error
