"""What every backend offers: networks, and facts about memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array
from pantherseg.errors import LostDeviceError
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import Network
from pantherseg.models.bundle import Bundle

Mode = Literal["exact", "fast"]


class Backend(Protocol):
    """Runs networks on one device in one precision, and says how much memory they need and how much is free.

    `inference.placement` decides by these facts. events: what a user should know about the choice of this backend;
    memory_name: how errors call its memory; roomier_event: the event for logits that are summed where
    `place_with_more_room` puts the data.
    """

    device: str
    precision: str
    mode: Mode
    events: tuple[Event, ...]
    memory_name: str
    roomier_event: EventCode

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Return the network of one fold. Raises ModelError.

        The network that was returned before may become unusable, unless it is kept. upcoming: the fold that will be
        needed next, which may be read in the background; keep: keep the network in memory for the next case.
        """
        ...

    def make_room(self, bundle: Bundle) -> None:
        """Free networks that cannot be used again, or not together with those of this bundle."""
        ...

    def keeps(self, bundle: Bundle) -> bool:
        """Return whether the networks of all folds of this bundle are kept in memory."""
        ...

    def release_networks(self) -> None:
        """Free all kept networks."""
        ...

    def network_bytes(self, bundle: Bundle) -> int:
        """Return an estimate of the memory for one network of the bundle, including its features."""
        ...

    def free_bytes(self) -> int:
        """Return how much of the memory in which networks run this process may still allocate."""
        ...

    def place(self, data: NDArray[np.float32]) -> Array | None:
        """Return a prepared volume (1, z, y, x) in the memory of the device, None if there is not enough after all."""
        ...

    def place_with_more_room(self, data: NDArray[np.float32]) -> Array:
        """Return a prepared volume (1, z, y, x) where logits have more room. Raises DeviceMemoryError."""
        ...

    def in_bfloat16(self) -> Backend | None:
        """Return a backend in bfloat16 on the same device, None if it does not exist or would need no less memory."""
        ...

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return the error of the device that caused `error`, None if the cause was not the device."""
        ...


class FileVersion(NamedTuple):
    """One version of a file; another one has another inode, size or modification time."""

    path: Path
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileVersion:
        """Return the present version of a file. Raises OSError."""
        status = path.stat()
        return cls(path, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def is_current(self) -> bool:
        """Whether the file still exists in this version."""
        try:
            return FileVersion.of(self.path) == self
        except OSError:
            return False


class VerifiedFolds:
    """Compares the files of folds with their checksums, each version of a file once."""

    def __init__(self) -> None:
        self._verified: set[FileVersion] = set()

    def check(self, bundle: Bundle, fold: str) -> None:
        """Check the content of a fold's file unless this version was checked before. Raises ModelError, OSError."""
        version = FileVersion.of(bundle.weights_path(fold))
        if version not in self._verified:
            bundle.check_content(fold)
            self._verified.add(version)
