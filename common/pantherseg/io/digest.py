"""The SHA-256 of files, and of a source's content, which tells it from others of the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pantherseg.errors import InputError, os_reason
from pantherseg.io.metaimage import voxel_file

# A header whose voxels are in another file.
HEADER_SUFFIX = ".mhd"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(source: Path, files: Sequence[Path] | None = None) -> str:
    """Return the SHA-256 of a source in hexadecimal digits. files: those that count, of a source with others in it.

    Of a single file it is that of its bytes. Of a folder, and of a header with its voxels in another file, it is that
    of the names and the SHA-256 of all files. The content is read, rather than its size and time compared: another
    program may keep both, a copy may change the time, and reading takes far less time than segmenting. Raises
    InputError.
    """
    try:
        if files is not None:
            pass
        elif source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.is_file())
        elif source.suffix.lower() == HEADER_SUFFIX:
            files = [source, voxel_file(source)]
        else:
            return sha256_of(source)
        digest = hashlib.sha256()
        for path in files:
            digest.update(
                f"{path.relative_to(source if source.is_dir() else source.parent)}\0{sha256_of(path)}\n".encode()
            )
    except OSError as error:
        expected, found = "a file or folder that can be read", os_reason(error)
        raise InputError(source, expected=expected, found=found) from error
    return digest.hexdigest()
