"""Archives of which nothing is known yet: read once, from front to back, and no more of them than was allowed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

CHUNK_BYTES = 1 << 20
# Names, links and extended headers are read whole by tarfile.
MAX_READ_BYTES = 16 << 20
BLOCK_BYTES = 512
MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class Refused(Exception):  # noqa: N818  (an answer about the archive, no error of the program)
    """An archive that is not read to its end, in words that follow `found`."""


class Hash(Protocol):
    """What hashlib returns."""

    def update(self, data: bytes, /) -> None: ...  # noqa: D102
    def hexdigest(self) -> str: ...  # noqa: D102


@dataclass
class Budget:
    """How much may still be read: bytes after decompression, and entries of archives."""

    left: int
    entries: int

    def spend(self, size: int) -> None:
        """Take bytes from what is left. Raises Refused."""
        self.left -= size
        if self.left < 0:
            raise Refused("far more unpacked than it weighs: made to fill disks")

    def count(self) -> None:
        """Take one entry. Raises Refused."""
        self.entries -= 1
        if self.entries < 0:
            raise Refused("more entries than any image or model has")


class Forward(io.RawIOBase):
    """A stream that tarfile reads without ever going back.

    budget: None where the bytes of `source` are counted already; digest: gets every byte.
    """

    def __init__(self, source: Any, budget: Budget | None, *, digest: Hash | None = None) -> None:
        self._source, self._budget, self._digest = source, budget, digest
        self._place = 0
        self.last = b""
        """The last block that was read: zeros where an archive ended as it should."""

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer at the end. Raises Refused for more at once than any archive asks for."""
        if not 0 <= size <= MAX_READ_BYTES:
            raise Refused(f"a header of {size} bytes")
        parts, missing = [], size
        while missing and (part := self._source.read(missing)):
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        if self._budget is not None:
            self._budget.spend(len(data))
        if self._digest is not None:
            self._digest.update(data)
        self._place += len(data)
        self.last = data
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Read on to a place further on. Raises Refused for any other."""
        if whence or offset < self._place:
            raise Refused("an archive that leads back")
        while self._place < offset and self.read(min(CHUNK_BYTES, offset - self._place)):
            pass
        return self._place

    def tell(self) -> int:
        """Return how much was read."""
        return self._place

    def drain(self) -> None:
        """Read on to the end."""
        while self.read(CHUNK_BYTES):
            pass


class Joined:
    """The first bytes of a file, which were read already, and the rest of it."""

    def __init__(self, head: bytes, source: Any) -> None:
        self._head, self._source = head, source

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        if self._head:
            part, self._head = self._head[:size], self._head[size:]
            return part
        return bytes(self._source.read(size))


def begun(source: Any) -> tuple[str, Joined]:
    """Return by what an open file is compressed, as its first bytes say, and the file with them."""
    head = source.read(BLOCK_BYTES)
    return compression(head), Joined(head, source)


def compression(head: bytes) -> str:
    """Return the name of what a file's first bytes say it is compressed by, or `none`."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "none")


def decompressed(source: Any, kind: str) -> IO[bytes]:
    """Return a stream's content; kind: as `compression` names it. Raises Refused for what Python cannot read."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=source)  # type: ignore[return-value]  # typeshed: a file all the same
    if kind == "xz":
        return lzma.LZMAFile(source)
    if kind == "bzip2":
        return bz2.BZ2File(source)
    if kind != "none":
        raise Refused(f"{kind}, which is not looked into")
    return source  # type: ignore[no-any-return]


def members(stream: Forward, budget: Budget) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield a tar archive's members as they come. Raises Refused, also where it ends before its end is marked."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            budget.count()
            if member.size < 0:
                raise Refused(f"a size of {member.size} bytes")
            yield member, archive
            archive.members.clear()  # type: ignore[attr-defined]  # kept by tarfile for going back
    if stream.last.strip(b"\0") or len(stream.last) < BLOCK_BYTES:
        raise Refused("an archive that ends before its end is marked: truncated or damaged")
    stream.drain()


def link_target(member: tarfile.TarInfo, name: str) -> str:
    """Return where in its archive a link of a normal name leads: a symbolic one is relative to its own folder."""
    start = posixpath.dirname(name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(start, member.linkname))


def reason(error: Exception) -> str:
    """Return what a library says about a damaged archive, as one line."""
    return " ".join(str(error).split()) or type(error).__name__
