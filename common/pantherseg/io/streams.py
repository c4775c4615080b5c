"""Compressed streams, read in chunks and no further than needed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.limits import CHUNK_BYTES, DAMAGED

GZIP_MAGIC = b"\x1f\x8b"


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


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading, and decompress it if its first bytes say that it is a gzip file, whatever its name.

    A gzip stream that is read to its end is checked against its length and checksum. Raises InputError for a damaged
    one, and OSError.
    """
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if not compressed:
            yield file
            return
        with _gzip_error_as_input_error(path), gzip.open(file) as stream:
            yield stream


def chunks(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    """Yield the next bytes of a stream in chunks: `size` bytes, or fewer where it ends before."""
    while size > 0 and (chunk := stream.read(min(CHUNK_BYTES, size))):
        yield chunk
        size -= len(chunk)


def gunzipped_size(path: Path, file: BufferedIOBase, *, limit: int) -> int:
    """Return how many bytes the gzip stream in an open file holds, counted little beyond `limit`.

    A stream that ends before is checked against its length and checksum. Raises InputError.
    """
    with _gzip_error_as_input_error(path), gzip.open(file) as stream:
        return sum(map(len, chunks(stream, limit + CHUNK_BYTES)))


@contextmanager
def _gzip_error_as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, expected="a complete gzip file", found=str(error), hint=DAMAGED) from error
