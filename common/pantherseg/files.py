"""Files are written beside their final name and renamed: nothing half-written ever carries a result's name."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pantherseg.errors import OutputError

TEMPORARY = ".pantherseg-"
ATTEMPTS = 10


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path with the same suffix to write to; it becomes `path` when the block ends without an error.

    Makes the parent folders, and removes what processes left that were killed on the way. Raises OutputError where
    anything cannot be written, or is not on the disk.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(path)
        yield beside
        _force_to_disk(beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise OutputError(path, expected="to write this file", found=reason.splitlines()[-1]) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _remove_remains(path: Path) -> None:
    """Remove the hidden files of processes that have ended: the platform counts every file of the folder."""
    for other in path.parent.iterdir():
        process = re.fullmatch(r"\.(\d{1,7})\." + re.escape(path.name), other.name)
        if process and not _is_alive(int(process[1])):
            other.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _force_to_disk(path: Path) -> None:
    """Wait for the disk, which may say only now that it is full."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not on this kind of file system
            raise
    finally:
        os.close(file)


def temporary_folder() -> Path:
    """Return a new hidden folder that goes when the process ends; those of killed processes go now. Raises OSError."""
    for other in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            file = _lock(other)
            shutil.rmtree(other, ignore_errors=True)
            os.close(file)
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        with suppress(OSError):  # another process took it for one that was left
            _lock(folder)
            break
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lock(folder: Path) -> int:
    """Hold a folder until the file that is returned is closed, or the process ends, however it ends.

    Raises OSError where another process holds it.
    """
    file = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


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
