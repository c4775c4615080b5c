"""The input volume of a job folder, and where its results belong.

A job folder of the platform holds inputs.json, with an entry for each input socket, and the volume at
<relative path>/<image pk>.mha; jobs of an older layout have no inputs.json.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec
from msgspec import Struct

from pantherseg.case import CaseOutput
from pantherseg.errors import JobError, os_reason
from pantherseg.io import case_name, find_sources
from pantherseg.recipe import Sockets

INPUTS = "inputs.json"
IMAGES = "images"
REPORT = "results.json"
MAX_INPUTS_BYTES = 16 << 20


def find_job(input_folder: Path, output_folder: Path, sockets: Sockets) -> tuple[Path, CaseOutput]:
    """Return the path of a job's volume, and where its mask and report belong. Raises JobError as `find_input`."""
    source = find_input(input_folder, sockets)
    return source, CaseOutput(output_path(output_folder, sockets, source), output_folder / REPORT)


def find_input(folder: Path, sockets: Sockets) -> Path:
    """Return the path of a job folder's input volume. Raises JobError unless there is exactly one."""
    try:
        return _find_input(folder, sockets)
    except OSError as error:
        where, found = error.filename or folder, os_reason(error)
        raise JobError(where, f"the job folder cannot be read: {found}") from error


def _find_input(folder: Path, sockets: Sockets) -> Path:
    if not folder.is_dir():
        raise JobError(folder, expected="a job folder", found="a file" if folder.exists() else "no such folder")
    if (folder / INPUTS).is_file():
        return _described_input(folder, sockets)
    images = folder / IMAGES
    expected = images / sockets.input
    # glob would take a folder without read permission for an empty one.
    folders = sorted(images.iterdir()) if images.is_dir() else []
    holders = [path for path in folders if path.is_dir() and find_sources(path)]
    if expected in holders:
        return _only_volume(expected)
    if len(holders) != 1:
        found = ", ".join(path.name for path in holders) or "none"
        raise JobError(images, expected=f"one folder with a volume, such as {sockets.input}", found=found)
    return _only_volume(holders[0])


def output_path(folder: Path, sockets: Sockets, input_path: Path) -> Path:
    """Return the path of an input's mask: <folder>/images/<output socket>/<case>.mha."""
    return folder / IMAGES / sockets.output / f"{case_name(input_path)}.mha"


class _Socket(Struct):
    slug: str
    relative_path: str


class _Image(Struct):
    pk: str = ""


class _Entry(Struct):
    """An entry of inputs.json. 'interface' is the older name of 'socket'."""

    socket: _Socket | None = None
    interface: _Socket | None = None
    image: _Image | None = None


def _described_input(folder: Path, sockets: Sockets) -> Path:
    path = folder / INPUTS
    entries = _entries(path)
    wanted = [
        (socket.relative_path, image.pk if image else "")
        for socket, image in entries
        if sockets.input in (socket.slug, PurePosixPath(socket.relative_path).name)
    ]
    if len(wanted) != 1:
        found = ", ".join(socket.slug for socket, _ in entries) or "none"
        hint = "each task has its own container"
        raise JobError(path, expected=f"one input '{sockets.input}'", found=found, hint=hint)
    relative, key = wanted[0]
    parent = folder / relative
    named = parent / f"{key}.mha"
    try:
        # The platform never names a path outside the job folder.
        inside = all(path.resolve().is_relative_to(folder.resolve()) for path in (parent, named))
        present = named.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, or not a valid file name; a link that leads to itself
        inside = present = False
    if not inside:
        raise JobError(path, expected="a file inside the job folder", found=f"{relative!r} and {key!r}")
    return named if present else _only_volume(parent)


def _entries(path: Path) -> list[tuple[_Socket, _Image | None]]:
    """Read inputs.json: the socket of each entry, and its image if it has one."""
    if (size := path.stat().st_size) > MAX_INPUTS_BYTES:
        raise JobError(path, expected=f"at most {MAX_INPUTS_BYTES >> 20} MB", found=f"{size >> 20} MB")
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JobError(path, expected="a list of inputs in JSON", found=str(error)) from error
    described = [(entry.socket or entry.interface, entry.image) for entry in entries]
    if any(socket is None for socket, _ in described):
        raise JobError(path, expected="inputs with 'socket' or 'interface'", found="an input without either")
    return [(socket, image) for socket, image in described if socket is not None]


def _only_volume(folder: Path) -> Path:
    volumes = find_sources(folder)
    if len(volumes) != 1:
        found = ", ".join(path.name for path in volumes) or "none"
        raise JobError(folder, expected="exactly one volume (.mha)", found=found)
    return volumes[0]
