"""A case's volume, read and logged; what is wrong with it is said before anything that runs networks is imported."""

from __future__ import annotations

from pathlib import Path

from pantherseg.events import Event
from pantherseg.io import read_image
from pantherseg.logs import stage
from pantherseg.volume import Volume


def read_case(path: Path) -> tuple[Volume, tuple[Event, ...]]:
    """Return a volume and what happened on reading it, with a log line. Raises InputError."""
    with stage("read") as remarks:
        volume, events = read_image(path)
        remarks.append(f"{path.name}, {volume.grid.describe()}")
    return volume, events
