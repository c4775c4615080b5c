"""Fingerprints of files that come from outside: hashes of content, remembered as long as the files stay the same."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pantherseg.datasets.layouts import find_cases
from pantherseg.datasets.raw import CASES, is_raw_dataset
from pantherseg.errors import InputError, os_reason
from pantherseg.files import write_text
from pantherseg.io.digest import sha256_of
from pantherseg.model_sources.nnunet import DATASET

logger = logging.getLogger(__name__)

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

    def fingerprint(self, files: Mapping[str, Path], what: str) -> str:
        """Return the hash of the names and hashes of files, wherever they lie. what: in a line of the log.

        Raises InputError if a file cannot be read.
        """
        if new := [path for path in files.values() if self._known(path) is None]:
            logger.info("%s: reading %d files for their checksums", what, len(new))
        digest = hashlib.sha256()
        for name, path in sorted(files.items()):
            digest.update(f"{name}\0{self._file(path)}\0".encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Remember the hashes. Raises OutputError."""
        if self._changed:
            write_text(self._path, msgspec.json.encode(self._entries).decode() + "\n")
            self._changed = False

    def _known(self, path: Path) -> Entry | None:
        """Return what is remembered of a file that stayed the same."""
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
        known = self._entries.get(str(path.resolve()))
        return known if known is not None and known[:2] == (status.st_size, status.st_mtime_ns) else None

    def _file(self, path: Path) -> str:
        known = self._known(path)
        if known is None:
            try:
                status = path.stat()
                known = status.st_size, status.st_mtime_ns, sha256_of(path)
            except OSError as error:
                raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
            self._entries[str(path.resolve())], self._changed = known, True
        return known[2]


def files_below(path: Path) -> dict[str, Path]:
    """Return all files below a folder by their names in it, but no hidden ones; or a file itself, without a name."""
    if path.is_file():
        return {"": path}
    found = []
    for parent, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return {each.relative_to(path).as_posix(): each for each in found if each.is_file()}


def files_of_data(layout: str, folder: Path) -> dict[str, Path]:
    """Return the files of a data set that an import reads, by their names in its folder, and nothing else in it.

    layout: used unless the folder is a raw data set. Raises InputError for a folder without cases.
    """
    raw = is_raw_dataset(folder)
    found: dict[str, Path] = {}
    for case in find_cases("raw" if raw else layout, folder).cases:
        for path in filter(None, (case.image, case.label)):
            found |= {each.relative_to(folder).as_posix(): each for each in _files_of_volume(path)}
    described = [folder / name for name in (DATASET, CASES)] if raw else []
    return found | {path.name: path for path in described if path.is_file()}


def _files_of_volume(path: Path) -> list[Path]:
    """Return the files of a volume: of a folder all, and of a header with the voxels beside it all of that name."""
    if path.is_dir():
        return sorted(files_below(path).values())
    if path.suffix.lower() != ".mhd":
        return [path]
    return sorted(other for other in path.parent.iterdir() if other.is_file() and other.stem == path.stem)
