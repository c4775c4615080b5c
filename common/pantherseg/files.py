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

from pantherseg.errors import InputError, OutputError, os_reason

TEMPORARY = ".pantherseg-"
ATTEMPTS = 10


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; it is renamed to `path` when the block ends without an error.

    Its suffix is in lower case: ITK writes another format, or none, for a suffix such as .MHA. Parent folders are
    created, and hidden files of killed processes are removed, except in a folder that is itself hidden until it is
    complete. Raises OutputError where the file cannot be written or synced to the disk, and for a folder or a device.
    """
    beside = path.with_name(f".{os.getpid()}.{_name_beside(path)}")
    _refuse_other_than_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not any(part.startswith(TEMPORARY) for part in path.parts):
            for leftover in leftovers(path):
                leftover.unlink(missing_ok=True)
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
    """Yield a new folder to fill, in a hidden one beside `path`; it is renamed to `path` when the block ends well.

    Parent folders are created, and hidden folders of processes that were killed are removed, on any machine that shares
    the disk: a process locks its own. Where the file system has no locks, they stay. Raises OutputError if `path`
    exists or cannot be written.
    """
    _refuse_existing(path)
    prefix = f"{TEMPORARY}{path.name}-"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unlocked(path.parent, prefix)
        hidden, lock = _locked_folder(prefix, path.parent)
    except OSError as error:
        raise OutputError(path, f"failed to write this folder: {os_reason(error)}") from error
    try:
        beside = hidden / path.name
        beside.mkdir()
        yield beside
        _refuse_existing(path)
        beside.rename(path)
    except OSError as error:
        raise OutputError(path, f"failed to write this folder: {os_reason(error)}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise OutputError(path, expected="a new folder", found="an existing one", hint="move it away")


def _refuse_other_than_file(path: Path) -> None:
    """Raise OutputError for a folder or a device, which a file cannot replace or must not."""
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError(path, expected="a file, or a name that is not taken", found=found, hint="name another file")


def check_writable(path: Path) -> None:
    """Check that a file can be written, before what it contains is computed. Raises OutputError."""
    _refuse_other_than_file(path)
    prepare_folder(path.absolute().parent)


def _name_beside(path: Path) -> str:
    return path.stem + path.suffix.lower()


def leftovers(path: Path) -> list[Path]:
    """Return what processes that ended while they wrote `path` left hidden beside it. Raises OSError.

    It must be removed, because the platform counts every file in the folder.
    """
    hidden = re.compile(r"\.(\d{1,7})\." + re.escape(_name_beside(path)))
    found = ((other, hidden.fullmatch(other.name)) for other in path.parent.iterdir())
    return [other for other, process in found if process and not _is_alive(int(process[1]))]


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
    _remove_unlocked(Path(tempfile.gettempdir()), TEMPORARY)
    folder, _ = _locked_folder(TEMPORARY, Path(tempfile.gettempdir()))  # locked until the process ends
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _locked_folder(prefix: str, parent: Path) -> tuple[Path, int | None]:
    """Return a new folder that no other process removes, and the file descriptor that holds its lock.

    None in its place where the file system has no locks. Raises OSError.
    """
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            file = lock_folder(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process is removing it, because it was not locked yet
        except OSError:
            return folder, None
        if folder.exists():
            return folder, file
        os.close(file)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _remove_unlocked(parent: Path, prefix: str) -> None:
    """Remove the folders with names that begin with `prefix` whose processes have ended. Raises OSError."""
    for other in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):
            file = lock_folder(other)
            shutil.rmtree(other, ignore_errors=True)
            os.close(file)


def lock_folder(folder: Path) -> int:
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


def not_in_utf8(path: str | Path) -> InputError:
    """Return the error about a path whose bytes are not UTF-8, as ITK, JSON and Parquet need it."""
    return InputError(path, expected="a file name in UTF-8", found="another encoding", hint="rename it")


def link_target(path: Path, folder: Path, *, within: Path) -> Path:
    """Return to what a link in a folder points that leads to a path, through links to its end.

    A relative path if it ends in `within`, which is then moved with its links, and the absolute one otherwise. folder:
    need not exist yet.
    """
    end = path.resolve()
    return Path(os.path.relpath(end, folder.resolve())) if end.is_relative_to(within.resolve()) else end


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; it is complete or absent. Raises OutputError."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
