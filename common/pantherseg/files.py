"""Result files are written under a temporary name and then renamed, so that a result is complete or absent."""

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

from pantherseg.errors import OutputError, os_reason

TEMPORARY = ".pantherseg-"
ATTEMPTS = 10


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; it is renamed to `path` when the block ends without an error.

    Its suffix is in lower case: ITK writes another format, or none, for a suffix such as .MHA. Parent folders are
    created, and hidden files of killed processes are removed. Raises OutputError where the file cannot be written or
    synced to the disk.
    """
    beside = path.with_name(f".{os.getpid()}.{_name_beside(path)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield beside
        _force_to_disk(beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise OutputError(path, f"failed to write this file: {reason.splitlines()[-1]}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


@contextmanager
def folder_written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden new folder beside `path` to fill; it is renamed to `path` when the block ends without an error.

    Parent folders are created, and hidden folders of killed processes are removed. Raises OutputError if `path` exists
    or cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}.{_name_beside(path)}")
    if path.exists() or path.is_symlink():
        raise OutputError(path, expected="a new folder", found="an existing one", hint="move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        beside.mkdir()
        yield beside
        beside.rename(path)
    except OSError as error:
        raise OutputError(path, f"failed to write this folder: {os_reason(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _name_beside(path: Path) -> str:
    return path.stem + path.suffix.lower()


def leftovers(path: Path) -> list[Path]:
    """Return what processes that ended while they wrote `path` left hidden beside it. Raises OSError.

    It must be removed, because the platform counts every file in the folder.
    """
    hidden = re.compile(r"\.(\d{1,7})\." + re.escape(_name_beside(path)))
    found = ((other, hidden.fullmatch(other.name)) for other in path.parent.iterdir())
    return [other for other, process in found if process and not _is_alive(int(process[1]))]


def _remove_leftovers(path: Path) -> None:
    for leftover in leftovers(path):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _force_to_disk(path: Path) -> None:
    """Sync a file to the disk; a full disk may report its error only now."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # this kind of file system cannot sync
            raise
    finally:
        os.close(file)


def temporary_folder() -> Path:
    """Return a new hidden folder that is removed when the process ends.

    Those that killed processes left behind are removed now. Raises OSError.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            file = _lock(other)
            shutil.rmtree(other, ignore_errors=True)
            os.close(file)
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        with suppress(OSError):  # another process is removing it, because it was not locked yet
            _lock(folder)
            break
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lock(folder: Path) -> int:
    """Lock a folder and return a file descriptor; the lock is held until that is closed or the process ends.

    Raises OSError where another process holds the lock.
    """
    file = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def prepare_folder(folder: Path) -> None:
    """Create a folder for results and check that files can be written to it, before the results are computed.

    Raises OutputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(folder, f"failed to write to this folder: {os_reason(error)}") from error


def remove_file(path: Path) -> None:
    """Remove a file if it exists. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, f"failed to remove this file: {os_reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; it is complete or absent. Raises OutputError."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
