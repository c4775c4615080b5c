"""File formats: what the readers of volume files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.volume import Grid, Volume


@dataclass(frozen=True)
class FileFormat(ABC):
    """A format of volume files, which it reads and writes; a `pantherseg.io.Reader`. suffixes: in lower case."""

    suffixes: tuple[str, ...]

    def accepts(self, source: Path) -> bool:
        """Return whether a file has one of the suffixes; it may be missing."""
        return self.has_suffix(source) and not source.is_dir()

    def has_suffix(self, path: Path) -> bool:
        """Return whether a path ends with one of the suffixes, in upper or lower case."""
        return path.name.lower().endswith(self.suffixes)

    def case_name(self, source: Path) -> str:
        """Return the file's name without its suffix."""
        return source.name[: -len(self._suffix(source))]

    def mask_suffix(self, source: Path) -> str:
        """Return the file's own suffix, in lower case."""
        return self._suffix(source)

    @abstractmethod
    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume with its voxels as stored, and the events of reading it. Raises InputError, OSError."""

    @abstractmethod
    def grid(self, source: Path) -> Grid:
        """Return a volume's grid by the header alone. Raises InputError and OSError."""

    @abstractmethod
    def write(self, volume: Volume, path: Path, *, like: Path | None = None) -> None:
        """Write a volume, compressed where the format allows it. Raises OSError, or RuntimeError for a full disk.

        like: a file of the same format, from which the new file gets the geometry exactly as it is stored there. Where
        that file cannot be read any more, or has another grid, the geometry is the volume's, as it is without `like`.
        """

    def _suffix(self, source: Path) -> str:
        return next(suffix for suffix in self.suffixes if source.name.lower().endswith(suffix))


def check_not_empty(path: Path) -> None:
    """Raise InputError unless there is a file with content."""
    if not path.is_file():
        raise InputError(path, expected="a volume", found="no such file")
    if path.stat().st_size == 0:
        raise InputError(path, expected="a volume", found="an empty file")


def dropped_axes(size: Sequence[int]) -> tuple[Event, ...]:
    """Return an event if a size (x, y, z, ...) has more than three axes; the others have length 1 (`check_size`)."""
    if len(size) == 3:
        return ()
    message = f"size {tuple(size)} (x, y, z, ...): the axes after the third, of length 1, were dropped"
    return (Event(EventCode.FOURTH_AXIS_DROPPED, message),)
