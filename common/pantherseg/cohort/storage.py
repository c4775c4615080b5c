"""Files by fsspec's paths: on a disk, as they are, or in a store such as S3, by copies on this machine's disk.

pyarrow's own client reads `s3://`, by AWS's usual settings (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, profiles, roles).
Other stores need fsspec's package for them, such as gcsfs.
"""

from __future__ import annotations

import glob
import posixpath
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSystem

from pantherseg.errors import InputError, OutputError, PantherSegError, last_line, os_reason
from pantherseg.files import not_in_utf8, temporary_folder, written_beside
from pantherseg.results import read_report

ON_DISK = "file://"


def on_disk(url: str) -> Path | None:
    """Return the path of a file or folder on a disk, None for one in a store."""
    url = url.removeprefix(ON_DISK)
    return None if "://" in url else Path(url)


def absolute(url: str) -> str:
    """Return a path that means the same in every process, whatever its working directory.

    Raises InputError for one that is not in UTF-8, which neither a table nor another process could be given.
    """
    path = on_disk(url)
    complete = url if path is None else str(path.absolute())
    try:
        complete.encode()
    except UnicodeEncodeError as error:
        raise not_in_utf8(complete) from error
    return complete


def join(folder: str, name: str) -> str:
    """Return the path of a file in a folder; one that is complete stays as it is."""
    return name if "://" in name else posixpath.join(folder, name)


def inside(urls: Iterable[str], folder: str) -> set[str]:
    """Return those of some paths that lie in a folder, or anywhere below it, by whatever links."""
    path = on_disk(folder)
    resolved = None if path is None else path.resolve()

    def is_inside(url: str) -> bool:
        other = on_disk(url)
        if resolved is None or other is None:
            return url.startswith(f"{folder}/")
        return other.resolve().is_relative_to(resolved)

    return {url for url in urls if is_inside(url)}


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a path, and the path in it. Raises PantherSegError."""
    try:
        if url.startswith("s3://"):
            path = url.removeprefix("s3://")
            return _bucket(path.partition("/")[0]), path
        return fsspec.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError, OSError) as error:
        raise PantherSegError(url, f"this store cannot be used: {last_line(error)}") from error


@cache
def _bucket(name: str) -> ArrowFSWrapper:
    return ArrowFSWrapper(FileSystem.from_uri(f"s3://{name}")[0])


def exists(url: str) -> bool:
    """Return whether there is a file or folder. Raises InputError for a store that does not answer."""
    files, path = filesystem(url)
    with _unreadable(url):
        return bool(files.exists(path))


def matching(url: str) -> list[str]:
    """Return the paths that a pattern means, sorted. Raises InputError."""
    files, path = filesystem(url)
    with _unreadable(url):
        found: list[str] = sorted(files.glob(path.rstrip("/")))
    store = "" if on_disk(url) else url.partition("://")[0] + "://"
    return [name if "://" in name else store + name for name in found]  # those of the web are complete


def read_bytes(url: str) -> bytes:
    """Return the content of a file. Raises InputError."""
    files, path = filesystem(url)
    with _unreadable(url):
        content: bytes = files.cat_file(path)
        return content


def write_bytes(url: str, content: bytes) -> None:
    """Write a file, which is complete or absent at any time. Raises OutputError."""
    if target := on_disk(url):
        with written_beside(target) as beside:
            beside.write_bytes(content)
        return
    files, path = filesystem(url)
    with _unwritable(url):
        files.pipe_file(path, content)


@contextmanager
def local_source(url: str) -> Iterator[Path]:
    """Yield the path of a source on this machine: its own, or that of a copy within the block. Raises InputError."""
    if path := on_disk(url):
        yield path
        return
    files, remote = filesystem(url)
    with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
        copy = Path(folder) / posixpath.basename(remote.rstrip("/"))
        with _unreadable(url):
            if files.isdir(remote):
                files.get(glob.escape(remote), str(copy), recursive=True)  # which takes a pattern
            else:
                files.get_file(remote, str(copy))
        yield copy


@contextmanager
def local_results(folder: str, case: str) -> Iterator[Path]:
    """Yield a folder on this machine with the results of one case, whose changes belong to `folder` after the block.

    The report is removed before, and written after, all that it names. Raises OutputError.
    """
    if path := on_disk(folder):
        yield path
        return
    report = f"{case}.json"
    with tempfile.TemporaryDirectory(dir=_scratch()) as temporary:
        copy = Path(temporary)
        if exists(join(folder, report)):
            _fetch_results(folder, copy, report)
        before = _stamps(copy)
        try:
            yield copy
        finally:
            _put_changes(folder, copy, before, report)


def _fetch_results(folder: str, copy: Path, report: str) -> None:
    """Copy the report of a case and what it names. What cannot be read is not there, and is made again."""
    files, remote = filesystem(folder)
    files.get_file(posixpath.join(remote, report), str(copy / report))
    try:
        earlier = read_report(copy / report)
        names = [path.name for path in earlier.results(copy)]
        names += [earlier.probability] if isinstance(earlier.probability, str) else []
        for name in names:
            files.get_file(posixpath.join(remote, name), str(copy / name))
    except (InputError, OSError):
        return


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}


def _put_changes(folder: str, copy: Path, before: dict[str, tuple[int, int]], report: str) -> None:
    after = _stamps(copy)
    files, remote = filesystem(folder)
    with _unwritable(folder):
        # A report must not stand beside results that it does not name.
        if report in before and before != after:
            files.rm_file(posixpath.join(remote, report))
        for name in before.keys() - after.keys() - {report}:
            files.rm_file(posixpath.join(remote, name))
        changed = [name for name, stamp in after.items() if before.get(name) != stamp]
        for name in sorted(changed, key=lambda name: name == report):
            files.put_file(str(copy / name), posixpath.join(remote, name))


@cache
def _scratch() -> Path:
    return temporary_folder()


@contextmanager
def _unreadable(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        found = os_reason(error) if isinstance(error, OSError) else last_line(error)
        raise InputError(url, expected="a file or folder that can be read", found=found) from error


@contextmanager
def _unwritable(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(url, f"failed to write here: {os_reason(error)}") from error
