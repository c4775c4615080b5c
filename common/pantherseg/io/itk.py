"""Volumes as SimpleITK images, and the file formats that SimpleITK reads and writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk  # noqa: N813

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.files import not_in_utf8
from pantherseg.io.direction import as_matrix, with_orthogonal_axes
from pantherseg.io.file_format import FileFormat, check_not_empty, dropped_axes
from pantherseg.io.header import Header
from pantherseg.io.limits import check_origin, check_spacing
from pantherseg.volume import Grid, Volume, as_shape, as_triple


class Check(Protocol):
    """Checks a file of one format before ITK sees it."""

    def __call__(self, path: Path, *, voxels: bool = True) -> Header:
        """Return what the header states, the spacing only for a format in which ITK takes it from there as it is.

        voxels: also read them to the end, to check that they are as many as the header states, and complete. Raises
        InputError and OSError.
        """


@dataclass(frozen=True)
class ItkReader(FileFormat):
    """Reads and writes the files of one format with SimpleITK.

    ITK reads damaged compressed voxels, files that end early and headers with negative spacing without an error, and
    hands over wrong voxels or a wrong grid; other headers end the process or fill the memory. `check` finds all of
    these before ITK reads a file, in a bounded time and in the memory of a few chunks.

    image_io: ITK's name of the format; left alone, ITK also looks at a file's content, and then reads a format that was
    not checked. check: see `Check`.
    """

    image_io: str
    check: Check

    def mask_suffix(self, source: Path) -> str:
        """Return the file's own suffix; `.mha` for `.mhd`, which would be written as two files."""
        suffix = self._suffix(source)
        return ".mha" if suffix == ".mhd" else suffix

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume with its voxels as stored; events tell of dropped axes and an assumed or corrected grid.

        Raises InputError and OSError.
        """
        with self._checked(source) as (reader, header):
            volume = from_itk(reader.Execute())
        _check_grid(source, volume.grid, header)
        grid, events = with_orthogonal_axes(source, volume.grid)
        assumed = (Event(EventCode.GEOMETRY_ASSUMED, header.assumed),) if header.assumed else ()
        return Volume(volume.array, grid), dropped_axes(header.size) + assumed + events

    def grid(self, source: Path) -> Grid:
        """Return a volume's grid by the header alone. Raises InputError and OSError."""
        with self._checked(source, voxels=False) as (reader, header):
            stored = _grid_of(reader)
        _check_grid(source, stored, header)
        return with_orthogonal_axes(source, stored)[0]

    def write(self, volume: Volume, path: Path, *, like: Path | None = None) -> None:
        """Write a volume, zlib-compressed. Raises RuntimeError if the file is not complete: ITK does not say so."""
        stored = None if like is None else self._stored_grid(like, volume)
        if stored is not None:
            volume = Volume(volume.array, stored)
        sitk.WriteImage(to_itk(volume), name_for_itk(path), useCompression=True)
        try:
            check_not_empty(path)
            self.check(path)
        except InputError as error:
            raise RuntimeError(f"an incomplete file ({error.expected}, {error.found}); is the disk full?") from error

    def _stored_grid(self, path: Path, volume: Volume) -> Grid | None:
        """Return the grid of a file as ITK reads it, without corrections.

        None for a file on another grid than `volume`, and for one that cannot be read.
        """
        if not self.accepts(path):
            return None
        try:
            with self._checked(path, voxels=False) as (reader, _):
                stored = _grid_of(reader)
            corrected, _ = with_orthogonal_axes(path, stored)
        except (InputError, OSError):
            return None
        return None if corrected.difference(volume.grid) else stored

    @contextmanager
    def _checked(self, source: Path, *, voxels: bool = True) -> Iterator[tuple[Any, Header]]:
        """Yield ITK's reader of a file that was checked, and what its header states.

        voxels: False where only the information in the header will be read. Raises InputError and OSError.
        """
        check_not_empty(source)
        header = self.check(source, voxels=voxels)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(self.image_io)
        reader.SetFileName(name_for_itk(source))
        try:
            reader.ReadImageInformation()
            _check_information(source, reader, header)
            yield reader, header
        except (RuntimeError, MemoryError) as error:
            raise InputError(source, expected="a readable volume", found=_reason(error)) from error


def to_itk(volume: Volume) -> Any:
    """Return the volume as a SimpleITK image."""
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.grid.spacing[::-1])
    image.SetOrigin(volume.grid.origin)
    image.SetDirection(np.ravel(volume.grid.direction).tolist())
    return image


def from_itk(image: Any) -> Volume:
    """Return a SimpleITK image as a volume; axes after the third must have length 1 and are dropped."""
    grid = _grid_of(image)
    return Volume(sitk.GetArrayFromImage(image).reshape(grid.shape), grid)


def grid_in_itk(path: Path) -> Grid | None:
    """Return the grid of a file as SimpleITK reads it on its own, and so nnU-Net; None if it cannot read the file.

    For files that a reader of this package has read, and so has checked.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(name_for_itk(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return _grid_of(reader)


def intercept_in_itk(path: Path) -> float:
    """Return what SimpleITK adds to the voxels of a NIfTI file with the slope 0, which means no scaling; else 0.

    For files that `grid_in_itk` can read.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(name_for_itk(path))
    reader.ReadImageInformation()
    scaling = [float(reader.GetMetaData(key)) for key in ("scl_slope", "scl_inter") if reader.HasMetaDataKey(key)]
    return scaling[1] if scaling[:1] == [0.0] and len(scaling) == 2 else 0.0


def _grid_of(image: Any) -> Grid:
    """Return the grid of an image, or of the image that a reader is about to read, from its first three axes."""
    axes = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    return Grid(
        shape=as_shape(image.GetSize()[2::-1]),
        spacing=as_triple(image.GetSpacing()[2::-1]),
        origin=as_triple(image.GetOrigin()[:3]),
        direction=as_matrix(direction),
    )


def name_for_itk(path: Path) -> str:
    """Return a path for ITK, which takes UTF-8 whatever the locale's encoding is. Raises InputError for other bytes."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_in_utf8(path) from error


def _check_information(path: Path, reader: Any, header: Header) -> None:
    """Check that ITK will read one real number per voxel, and the size that the header states. Raises InputError."""
    size, kind = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        found = f"{reader.GetNumberOfComponents()} of the type {kind}"
        raise InputError(path, expected="one real number per voxel", found=found)
    if tuple(size) != header.size:
        raise InputError(path, expected=f"size {header.size}, as its header states", found=f"{size} read by ITK")


def _check_grid(path: Path, grid: Grid, header: Header) -> None:
    """Check origin and spacing as ITK has read them. Raises InputError."""
    check_origin(path, grid.origin)
    spacing = grid.spacing[::-1]
    check_spacing(path, spacing)
    if header.spacing is not None and not np.allclose(spacing, header.spacing[:3], rtol=1e-5, atol=0):
        expected = f"spacing {header.spacing}, as its header states"
        raise InputError(path, expected=expected, found=f"{spacing} read by ITK")


def _reason(error: Exception) -> str:
    """Return the reason in ITK's long messages, without the place in ITK's code."""
    text = " ".join(str(error).split())
    reason = re.split(r"\bERROR: |\[nrrd\] |:\d+: ", text)[-1]
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason) or type(error).__name__
