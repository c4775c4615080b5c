"""Files are written beside their final name and renamed: nothing half-written ever carries a result's name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pantherseg.errors import OutputError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path with the same suffix to write to; it becomes `path` when the block ends without an error.

    Makes the parent folders. Raises OutputError where anything cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise OutputError(path, expected="to write this file", found=reason.splitlines()[-1]) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def prepare_folder(folder: Path) -> None:
    """Make a folder for results, before the work whose results they are. Raises OutputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = error.strerror or str(error)
        raise OutputError(folder, expected="a folder that can be written", found=found) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file beside its final name and rename it. Raises OutputError."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
