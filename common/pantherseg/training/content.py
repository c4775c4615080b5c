"""Fingerprints of files that come from outside: hashes of content, remembered as long as the files stay the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from pantherseg.errors import InputError, os_reason
from pantherseg.files import write_text
from pantherseg.models.bundle import sha256_of

REMEMBERED = "content.json"
# Size in bytes, time of the last change in nanoseconds, SHA-256.
Entry = tuple[int, int, str]


class Contents:
    """Hashes of files. folder: where they are remembered, so that a large data set is not read again each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REMEMBERED
        try:
            self._entries = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Entry])
        except (OSError, msgspec.DecodeError):
            self._entries = {}
        self._changed = False

    def fingerprint(self, path: Path) -> str:
        """Return the hash of a file, or of the names and hashes of all files below a folder, whatever its own path.

        Hidden files do not count. Raises InputError if the path does not exist or a file cannot be read.
        """
        if not path.exists():
            raise InputError(path, expected="a file or folder", found="nothing")
        files = [path] if path.is_file() else _files_below(path)
        digest = hashlib.sha256()
        for file in files:
            name = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name}\0{self._file(file)}\0".encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Remember the hashes. Raises OutputError."""
        if self._changed:
            write_text(self._path, msgspec.json.encode(self._entries).decode() + "\n")
            self._changed = False

    def _file(self, path: Path) -> str:
        try:
            status, key = path.stat(), str(path.resolve())
            known = self._entries.get(key)
            if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
                known = status.st_size, status.st_mtime_ns, sha256_of(path)
                self._entries[key], self._changed = known, True
        except OSError as error:
            raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
        return known[2]


def _files_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())
