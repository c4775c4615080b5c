"""How many bytes a compressed stream holds, counted in the memory of one chunk and no further than needed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO

from pantherseg.errors import InputError
from pantherseg.io.limits import CHUNK_BYTES, DAMAGED


def inflated_size(path: Path, data: Path, start: int, *, stored: int, limit: int) -> int:
    """Return how many bytes a zlib stream holds, counting little further than `limit`.

    The stream is in `stored` bytes of the file `data` from `start`. Raises InputError, which names `path`, if it is
    damaged.
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


def gunzipped_size(path: Path, file: IO[bytes], *, limit: int) -> tuple[bytes, int]:
    """Return the first bytes of a gzip stream in an open file, and how many it holds, counted little beyond `limit`.

    A stream that ends before is checked against its length and checksum. Raises InputError.
    """
    try:
        with gzip.open(file) as stream:
            head = stream.read(min(CHUNK_BYTES, limit))
            size = len(head)
            while size <= limit and (chunk := stream.read(CHUNK_BYTES)):
                size += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, expected="a complete gzip file", found=str(error), hint=DAMAGED) from error
    return head, size
