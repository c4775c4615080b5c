"""How much a compressed stream holds, found out in the memory of a chunk and no further than it matters."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path
from typing import IO, Any

from pantherseg.errors import InputError
from pantherseg.io.limits import CHUNK_BYTES, DAMAGED


def inflated_size(path: Path, data: Path, start: int, *, stored: int, limit: int) -> int:
    """Return how many bytes the zlib stream in `stored` bytes from `start` holds, reading little beyond `limit`.

    Raises InputError, which names `path`, for a stream that is damaged.
    """
    stream = zlib.decompressobj()
    size = 0
    try:
        with data.open("rb") as file:
            file.seek(start)
            while not stream.eof and size <= limit:
                pending = stream.unconsumed_tail
                if not pending:
                    pending = file.read(min(CHUNK_BYTES, stored))
                    stored -= len(pending)
                if not pending:
                    break
                size += len(stream.decompress(pending, CHUNK_BYTES))
    except zlib.error as error:
        raise InputError(path, expected="valid compressed voxels", found=str(error), hint=DAMAGED) from error
    return size


def unpacked_size(path: Path, file: IO[bytes], kind: str, *, limit: int) -> tuple[bytes, int]:
    """Return the first bytes of what follows in an open file, and how many there are, reading little beyond `limit`.

    kind: `gzip`, whose length and checksum are checked at the end, `bzip2`, or `raw`. Raises InputError.
    """
    opener: Any = {"gzip": gzip.open, "bzip2": bz2.open}.get(kind)
    stream = opener(file) if opener else file
    try:
        head: bytes = stream.read(min(CHUNK_BYTES, limit))
        size = len(head)
        while size <= limit and (chunk := stream.read(CHUNK_BYTES)):
            size += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(path, expected=f"a complete {kind} file", found=str(error), hint=DAMAGED) from error
    return head, size
