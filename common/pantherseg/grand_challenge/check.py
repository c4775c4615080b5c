"""The platform's rules for a job's output, and what it lays out as a job, checked before an upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from pantherseg.errors import JobError, PantherSegError
from pantherseg.grand_challenge.job import IMAGES, find_input, output_path
from pantherseg.grand_challenge.verdict import Verdict
from pantherseg.recipe import Sockets
from pantherseg.volume import Volume, from_itk, read_image

METAIMAGE = b"ObjectType"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ALLOWED_TYPES = ("int8", "uint8")
ALLOWED_VALUES = (0, 1)


def check_job(folder: Path, sockets: Sockets) -> list[Verdict]:
    """Check that a job folder holds one readable input volume of the task."""
    rule = f"one readable volume for {sockets.input}"
    try:
        path = find_input(folder, sockets)
        volume, events = read_image(path)
    except PantherSegError as error:
        return [Verdict(rule, False, str(error))]
    size = "x".join(map(str, volume.grid.shape))
    remarks = "".join(f"; {event.message}" for event in events)
    return [Verdict(rule, True, f"{path.name}, {size} voxels (z, y, x){remarks}")]


def check_output(folder: Path, sockets: Sockets, *, job: Path | None = None) -> list[Verdict]:
    """Check an output folder by the platform's rules and, with its job, that the mask lies on the input's grid."""
    if not folder.is_dir():
        raise JobError(folder, expected="an output folder", found="a file" if folder.exists() else "no such folder")
    return list(_output_verdicts(folder, sockets, job))


def _output_verdicts(folder: Path, sockets: Sockets, job: Path | None) -> Iterator[Verdict]:
    links = [path for path in folder.rglob("*") if path.is_symlink() and not path.is_file()]
    names = ", ".join(str(path.relative_to(folder)) for path in links)
    yield Verdict("no dangling or folder links", not links, names or "none")
    place = folder / IMAGES / sockets.output
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else []
    names = ", ".join(path.name for path in files) or "none"
    yield Verdict(f"exactly one file in {IMAGES}/{sockets.output}", len(files) == 1, names)
    if len(files) != 1:
        return
    kind = _kind(files[0])
    yield Verdict("MetaImage or TIFF, by its content", kind is not None, kind or "neither")
    if kind is None:
        return
    mask = _read_mask(files[0])
    if isinstance(mask, str):
        yield Verdict("a readable 3-D image of one channel", False, mask)
        return
    yield Verdict("a readable 3-D image of one channel", True, f"{mask.grid.shape} (z, y, x)")
    yield Verdict(f"type {' or '.join(ALLOWED_TYPES)}", mask.array.dtype.name in ALLOWED_TYPES, mask.array.dtype.name)
    values = np.unique(mask.array)
    yield Verdict(f"values {ALLOWED_VALUES}", set(values.tolist()) <= set(ALLOWED_VALUES), str(values[:10].tolist()))
    if job is not None:
        yield _same_grid(mask, files[0], job, folder, sockets)


def _kind(path: Path) -> str | None:
    """Return the format that a file's first bytes tell, as the platform finds it: names do not count."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.lstrip().startswith(METAIMAGE):
        return "MetaImage"
    return "TIFF" if head.startswith(TIFF) else None


def _read_mask(path: Path) -> Volume | str:
    """Return the mask, or the reason why it cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        channels, size = reader.GetNumberOfComponents(), reader.GetSize()
        if channels != 1 or len(size) != 3:
            return f"{channels} channels, size {size}"
        return from_itk(reader.Execute())
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]


def _same_grid(mask: Volume, path: Path, job: Path, folder: Path, sockets: Sockets) -> Verdict:
    """The platform never compares grids; a mask on another grid is scored against the wrong voxels."""
    rule = "the input's name and grid"
    try:
        source = find_input(job, sockets)
        volume, _ = read_image(source)
    except PantherSegError as error:
        return Verdict(rule, False, str(error))
    expected = output_path(folder, sockets, source)
    difference = volume.grid.difference(mask.grid)
    if path != expected:
        difference = f"{path.name} instead of {expected.name}"
    return Verdict(rule, not difference, difference or "the same")
