"""Log lines for people: one a stage, on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pantherseg.errors import PantherSegError
from pantherseg.memory import shortage

logger = logging.getLogger(__name__)


def show_log() -> None:
    """Send this package's log lines to stderr as they are; of other libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pantherseg").setLevel(logging.INFO)


def one_line(error: Exception, where: object = "") -> str:
    """Return an error as one line: the project's own as it is, any other with its kind and the place."""
    if isinstance(error, MemoryError):
        error = shortage(error, str(where) or "this case") or error
    if isinstance(error, PantherSegError):
        return str(error)
    place = f"{where}: " if where else ""
    return f"{place}unexpected {type(error).__name__}: {' '.join(str(error).split())}"


def shown(path: Path) -> str:
    """Return a path as short as it can be written from the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def stage(name: str, seconds: dict[str, float] | None = None) -> Iterator[list[str]]:
    """Time a stage; what the block appends to the yielded list is logged behind its time.

    seconds: gets the time under the stage's name.
    """
    remarks: list[str] = []
    began = time.monotonic()
    yield remarks
    elapsed = time.monotonic() - began
    if seconds is not None:
        seconds[name] = elapsed
    logger.info("%-10s %6.1f s  %s", name, elapsed, ", ".join(remarks))
