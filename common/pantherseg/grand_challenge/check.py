"""Checks of a job folder and of an output folder by the platform's rules, before an upload."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from pantherseg.errors import JobError, PantherSegError
from pantherseg.grand_challenge.job import IMAGES, find_input, output_path
from pantherseg.io import read_image
from pantherseg.io.itk import from_itk, name_for_itk
from pantherseg.io.metaimage import check_metaimage
from pantherseg.recipe import Sockets
from pantherseg.verdict import Verdict
from pantherseg.volume import Volume

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Limits of a MetaImage header.
MAX_HEADER_LINES, MAX_LINE_BYTES = 10_000, 10_000
# Header entries that panimg refuses where they are not numbers.
NUMBERS = (
    *("ContentTimes", "Exposures", "LargestImagePixelValue", "SliceThickness", "SmallestImagePixelValue"),
    *("WindowCenter", "WindowWidth", "t0", "t1"),
)
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
    """Check an output folder by the platform's rules and, if a job is given, the mask's grid against the input's.

    Raises JobError where there is no such folder.
    """
    if not folder.is_dir():
        raise JobError(folder, expected="an output folder", found="a file" if folder.exists() else "no such folder")
    return list(_output_verdicts(folder, sockets, job))


def _output_verdicts(folder: Path, sockets: Sockets, job: Path | None) -> Iterator[Verdict]:
    links = [path for path in folder.rglob("*") if path.is_symlink() and not path.is_file()]
    names = ", ".join(str(path.relative_to(folder)) for path in links)
    yield Verdict("no dangling or folder links", not links, names or "none")
    masks = folder / IMAGES / sockets.output
    files = sorted(path for path in masks.rglob("*") if path.is_file()) if masks.is_dir() else []
    names = ", ".join(path.name for path in files) or "none"
    yield Verdict(f"exactly one file in {IMAGES}/{sockets.output}", len(files) == 1, names)
    if len(files) != 1:
        return
    kind = _kind(files[0])
    yield Verdict("MetaImage or TIFF by its content", kind is not None, kind or "neither")
    if kind is None:
        return
    mask = _read_mask(files[0], kind)
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
    """Return the format of a file, which the platform tells by the content and not by the name; None for any other."""
    with path.open("rb") as file:
        if file.read(4).startswith(TIFF):
            return "TIFF"
        file.seek(0)
        # panimg reads the header by lines, accepts one without ObjectType and refuses one that is not UTF-8.
        for _ in range(MAX_HEADER_LINES):
            line = file.readline(MAX_LINE_BYTES)
            if len(line) in (0, MAX_LINE_BYTES):
                return None
            try:
                key, equals, _ = line.decode("utf-8").partition("=")
            except UnicodeDecodeError:
                return None
            if equals and key.strip() == "ElementDataFile":
                return "MetaImage"
    return None


def _read_mask(path: Path, kind: str) -> Volume | str:
    """Return the mask, or the reason why the platform cannot read it."""
    if kind == "TIFF":
        return "a TIFF, whose pages the platform reads as resolutions of one slice rather than as slices"
    reader = sitk.ImageFileReader()
    try:
        check_metaimage(path)  # finds headers that ITK misreads without an error
        reader.SetFileName(name_for_itk(path))
        reader.SetImageIO("MetaImageIO")  # ITK would choose by the name
        reader.ReadImageInformation()
        channels, size = reader.GetNumberOfComponents(), reader.GetSize()
        if channels != 1 or len(size) != 3:
            return f"{channels} channels, size {size}"
        odd = [key for key in reader.GetMetaDataKeys() if key in NUMBERS and not _is_numbers(reader.GetMetaData(key))]
        return f"a header with {odd[0]}, which the platform refuses" if odd else from_itk(reader.Execute())
    except PantherSegError as error:
        return str(error)
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]


def _is_numbers(text: str) -> bool:
    return re.fullmatch(r"[-+0-9.eE,\[\]\s]+", text) is not None


def _same_grid(mask: Volume, path: Path, job: Path, folder: Path, sockets: Sockets) -> Verdict:
    """Compare the mask's name and grid with the input's.

    The platform does not compare grids, and would score a mask on another grid against the wrong voxels.
    """
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
