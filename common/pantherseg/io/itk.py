"""Volumes as SimpleITK images, and the file formats that SimpleITK reads and writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.io.header import Header
from pantherseg.io.limits import MAX_ORIGIN_MM, check_spacing
from pantherseg.volume import GRID_TOLERANCE, Grid, Volume, as_shape, as_triple


@dataclass(frozen=True)
class ItkReader:
    """Reads and writes the files of one format with SimpleITK; a `pantherseg.io.Reader`.

    ITK reads damaged compressed voxels, files that end early and headers with negative spacing without an error, and
    hands over wrong voxels or a wrong grid; other headers end the process or fill the memory. `check` finds all of
    these before ITK reads a file, in a bounded time and in the memory of a few chunks.

    suffixes: in lower case. image_io: ITK's name of the format; left alone, ITK also looks at a file's content, and
    then reads a format that was not checked. check: returns what the header states, the spacing only for a format in
    which ITK takes it from there as it is; raises InputError and OSError.
    """

    suffixes: tuple[str, ...]
    image_io: str
    check: Callable[[Path], Header]

    def accepts(self, source: Path) -> bool:
        """Return whether a file has one of the suffixes; it may be missing."""
        return source.name.lower().endswith(self.suffixes) and not source.is_dir()

    def case_name(self, source: Path) -> str:
        """Return the file's name without its suffix."""
        return source.name[: -len(self._suffix(source))]

    def mask_suffix(self, source: Path) -> str:
        """Return the file's own suffix; `.mha` for `.mhd`, which would be written as two files."""
        suffix = self._suffix(source)
        return ".mha" if suffix == ".mhd" else suffix

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume with its voxels as stored; an event tells of a fourth axis. Raises InputError, OSError."""
        header = self._checked_header(source)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(self.image_io)
        reader.SetFileName(name_for_itk(source))
        try:
            reader.ReadImageInformation()
            _check_information(source, reader, header)
            volume = from_itk(reader.Execute())
        except (RuntimeError, MemoryError) as error:
            raise InputError(source, expected="a readable volume", found=_reason(error)) from error
        _check_grid(source, volume.grid, header)
        if len(header.size) == 3:
            return volume, ()
        event = Event(
            EventCode.FOURTH_AXIS_DROPPED, f"size {header.size} (x, y, z, t): the axis of length 1 was dropped"
        )
        return volume, (event,)

    def write(self, volume: Volume, path: Path) -> None:
        """Write a volume, zlib-compressed. Raises RuntimeError if the file is not complete: ITK does not say so."""
        sitk.WriteImage(to_itk(volume), name_for_itk(path), useCompression=True)
        try:
            self._checked_header(path)
        except InputError as error:
            raise RuntimeError(f"an incomplete file ({error.expected}, {error.found}); is the disk full?") from error

    def _checked_header(self, path: Path) -> Header:
        if not path.is_file():
            raise InputError(path, expected="a volume", found="no such file")
        if path.stat().st_size == 0:
            raise InputError(path, expected="a volume", found="an empty file")
        return self.check(path)

    def _suffix(self, source: Path) -> str:
        return next(suffix for suffix in self.suffixes if source.name.lower().endswith(suffix))


def to_itk(volume: Volume) -> Any:
    """Return the volume as a SimpleITK image."""
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.grid.spacing[::-1])
    image.SetOrigin(volume.grid.origin)
    image.SetDirection(np.ravel(volume.grid.direction).tolist())
    return image


def from_itk(image: Any) -> Volume:
    """Return a SimpleITK image as a volume; a fourth axis must have length 1 and is dropped."""
    array = sitk.GetArrayFromImage(image)
    array = array[0] if array.ndim == 4 else array
    size = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (size, size))[:3, :3]
    grid = Grid(
        shape=as_shape(array.shape),
        spacing=as_triple(image.GetSpacing()[2::-1]),
        origin=as_triple(image.GetOrigin()[:3]),
        direction=(as_triple(direction[0]), as_triple(direction[1]), as_triple(direction[2])),
    )
    return Volume(array, grid)


def name_for_itk(path: Path) -> str:
    """Return a path for ITK, which takes UTF-8 whatever the locale's encoding is. Raises InputError for other bytes."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path, expected="a file name in UTF-8", found="another encoding", hint="rename it") from error


def _check_information(path: Path, reader: Any, header: Header) -> None:
    """Check that ITK will read one real number per voxel, and the size that the header states. Raises InputError."""
    size, kind = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        found = f"{reader.GetNumberOfComponents()} of the type {kind}"
        raise InputError(path, expected="one real number per voxel", found=found)
    if tuple(size) != header.size:
        raise InputError(path, expected=f"size {header.size}, as its header states", found=f"{size} read by ITK")


def _check_grid(path: Path, grid: Grid, header: Header) -> None:
    """Check the grid that ITK has read. Raises InputError."""
    if not all(abs(mm) <= MAX_ORIGIN_MM for mm in grid.origin):  # also false for NaN
        expected = f"an origin within {MAX_ORIGIN_MM:g} mm of zero"
        raise InputError(path, expected=expected, found=f"{grid.origin} (x, y, z)")
    spacing = grid.spacing[::-1]
    check_spacing(path, spacing)
    if header.spacing is not None and not np.allclose(spacing, header.spacing[:3], rtol=1e-5, atol=0):
        expected = f"spacing {header.spacing}, as its header states"
        raise InputError(path, expected=expected, found=f"{spacing} read by ITK")
    direction = np.array(grid.direction)
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=GRID_TOLERANCE):
        raise InputError(path, expected="orthonormal direction cosines", found=str(direction.tolist()))


def _reason(error: Exception) -> str:
    """Return the reason in ITK's long messages, without the place in ITK's code."""
    text = " ".join(str(error).split())
    reason = re.split(r"\bERROR: |\[nrrd\] |:\d+: ", text)[-1]
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason) or type(error).__name__
