"""Volumes read and written by SimpleITK."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.files import written_beside
from pantherseg.io.checks import Claim, check_file
from pantherseg.io.limits import check_origin, check_spacing
from pantherseg.volume import GRID_TOLERANCE, Grid, Volume, as_shape, as_triple

MAX_NON_FINITE_FRACTION = 0.01
# Beyond this, the squares of a volume's voxels overflow float32 in their sum, by which networks normalise.
LARGEST_VALUE = 1e15
# ITK looks for a format by a file's content too, and then reads others than those that were checked.
READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO"}


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


def read_image(path: Path) -> tuple[Volume, tuple[Event, ...]]:
    """Read an MR volume as float32, with an event for everything that was mended on the way.

    Raises InputError for a file that is missing, damaged, not a 3-D scalar volume, beyond the limits of
    `integrity.limits` or of the memory, or has over 1 % non-finite voxels.
    """
    volume, events = _read(path)
    try:
        image, more = _finite(path, volume.array)
    except MemoryError as error:
        raise InputError(path, expected="a volume that fits into memory", found=volume.grid.describe()) from error
    return Volume(image, volume.grid), events + more


def read_labels(path: Path) -> Volume:
    """Read a label volume as stored. Raises InputError, also for values that are not whole numbers."""
    volume, _ = _read(path)
    array = volume.array
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            raise InputError(path, expected="whole numbers as labels", found=f"the value {array[~whole][0]}")
    return volume


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume, zlib-compressed, beside its final name and rename it. Raises OutputError."""
    image = to_itk(volume)
    with written_beside(path) as beside:  # ITK picks the format by the suffix, which this name keeps
        sitk.WriteImage(image, name_for_itk(beside), useCompression=True)
        _check_written(beside)


def _read(path: Path) -> tuple[Volume, tuple[Event, ...]]:
    claim = check_file(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(READERS.get(path.suffix.lower(), "NiftiImageIO"))
    reader.SetFileName(name_for_itk(path))
    try:
        reader.ReadImageInformation()
        _check_kind(path, reader, claim)
        volume = from_itk(reader.Execute())
    except (RuntimeError, MemoryError) as error:
        raise InputError(path, expected="a readable volume", found=_reason(error)) from error
    grid = volume.grid
    check_origin(path, grid.origin)
    check_spacing(path, grid.spacing)
    if claim.spacing is not None and not np.allclose(grid.spacing[::-1], claim.spacing[:3], rtol=1e-5, atol=0):
        raise InputError(path, expected=f"spacing {claim.spacing}, as its header says", found=str(grid.spacing[::-1]))
    direction = np.array(grid.direction)
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=GRID_TOLERANCE):
        raise InputError(path, expected="orthonormal direction cosines", found=str(direction.tolist()))
    if len(claim.size) == 3:
        return volume, ()
    event = Event(EventCode.FOURTH_AXIS_DROPPED, f"size {claim.size} (x, y, z, t): the axis of length 1 was dropped")
    return volume, (event,)


def _check_written(path: Path) -> None:
    """Raise RuntimeError for a file that ITK has not written whole: on a full disk it says nothing."""
    try:
        check_file(path)
    except InputError as error:
        raise RuntimeError(f"an incomplete file ({error.expected}, {error.found}); is the disk full?") from error


def _check_kind(path: Path, reader: Any, claim: Claim) -> None:
    """Check that a file is a volume of one real number a voxel, as ITK will read it. Raises InputError."""
    size, kind = reader.GetSize(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if len(size) != 3 and not (len(size) == 4 and size[3] == 1):
        raise InputError(path, expected="a 3-D volume", found=f"{len(size)} dimensions, size {size} (x, y, z, ...)")
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        found = f"{reader.GetNumberOfComponents()} of {kind}"
        raise InputError(path, expected="one real number a voxel", found=found)
    if tuple(size) != claim.size:
        raise InputError(path, expected=f"size {claim.size}, as its header says", found=f"{size} read by ITK")


def name_for_itk(path: Path) -> str:
    """Return a path for ITK, which wants UTF-8 whatever the locale's encoding is. Raises InputError for other bytes."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path, expected="a file name in UTF-8", found="another encoding", hint="rename it") from error


def _finite(path: Path, array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[Event, ...]]:
    """Return float32 voxels with those that are not finite, or too large, replaced by the minimum of the others."""
    with np.errstate(over="ignore"):
        image = array.astype(np.float32)
    events: list[Event] = []
    finite = np.abs(image) < LARGEST_VALUE  # False for NaN
    bad = image.size - int(finite.sum())
    if bad > MAX_NON_FINITE_FRACTION * image.size:
        raise InputError(
            path,
            expected=f"at most {MAX_NON_FINITE_FRACTION:.0%} NaN or infinite voxels",
            found=f"{bad} of {image.size} ({bad / image.size:.1%})",
        )
    if bad:
        image[~finite] = image[finite].min()
        events.append(
            Event(EventCode.NON_FINITE_VOXELS, f"{bad} NaN or infinite voxels were set to the finite minimum")
        )
    if image.min() == image.max():
        events.append(Event(EventCode.CONSTANT_IMAGE, f"every voxel has the value {image.flat[0]:g}"))
    return image, tuple(events)


def _reason(error: Exception) -> str:
    """Return what ITK's long messages say, without where in ITK it was said."""
    text = " ".join(str(error).split())
    reason = re.split(r"\bERROR: |\[nrrd\] |:\d+: ", text)[-1]
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason) or type(error).__name__
