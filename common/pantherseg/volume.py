"""Volumes on their grids: read, validate, crop, uncrop, write.

Arrays, shapes, spacings and boxes are in the order (z, y, x). Origin and direction are ITK's: physical (x, y, z) in
mm (LPS), the direction's columns belonging to the index axes x, y, z. No orientation is ever assumed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import ArrayLike, NDArray

from pantherseg.errors import Event, InputError
from pantherseg.files import written_beside
from pantherseg.integrity import Claim, check_file
from pantherseg.integrity.limits import MAX_SIDE, MAX_VOXELS, check_origin, check_spacing

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

VOLUME_SUFFIXES = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd")
MAX_NON_FINITE_FRACTION = 0.01
# Beyond this, the squares of a volume's voxels overflow float32 in their sum, by which networks normalise.
LARGEST_VALUE = 1e15
# ITK looks for a format by a file's content too, and then reads others than those that were checked.
READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO"}
# Relative to a voxel; headers are written with few digits.
GRID_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Box:
    """A box of voxels: start inclusive, stop exclusive, both (z, y, x)."""

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        if not all(0 <= a < b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box needs 0 <= start < stop in each axis, got {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """Return the box that holds every voxel of a volume of this shape."""
        return cls((0, 0, 0), shape)

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Box | None:
        """Return the smallest box with every true voxel of a mask (z, y, x) inside it; None if there is none."""
        axes = ((1, 2), (0, 2), (0, 1))
        hits = [np.flatnonzero(mask.any(axis=other)) for other in axes]
        if not len(hits[0]):
            return None
        return cls(_shape(h[0] for h in hits), _shape(h[-1] + 1 for h in hits))

    @property
    def shape(self) -> Shape:
        """Voxels along (z, y, x)."""
        return _shape(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array (z, y, x)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def expanded(self, margin_mm: float, grid: Grid) -> Box:
        """Return the box grown by at least `margin_mm` on each side, within the grid."""
        margin = np.ceil(margin_mm / np.array(grid.spacing) - 1e-6).astype(int)
        start = np.maximum(np.array(self.start) - margin, 0)
        stop = np.minimum(np.array(self.stop) + margin, grid.shape)
        return Box(_shape(start), _shape(stop))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie in space.

    shape: (z, y, x); spacing: mm along (z, y, x); origin: mm (x, y, z) of voxel 0; direction: 3 rows (x, y, z), its
    columns being the unit vectors of the index axes x, y, z.
    """

    shape: Shape
    spacing: Triple
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(np.prod(self.spacing))

    def describe(self) -> str:
        """Return size and spacing for a log line."""
        size, spacing = "x".join(map(str, self.shape)), "x".join(f"{mm:.4g}" for mm in self.spacing)
        return f"{size} voxels at {spacing} mm (z, y, x)"

    def crop(self, box: Box) -> Grid:
        """Return the grid of the voxels in a box."""
        start_xyz = np.array(box.start[::-1]) * np.array(self.spacing[::-1])
        origin = np.array(self.origin) + np.array(self.direction) @ start_xyz
        return replace(self, shape=box.shape, origin=_triple(origin))

    def box_from(self, other: Grid, box: Box) -> Box:
        """Return the smallest box of this grid's voxels that holds a box of another grid, cut to this grid."""
        corners = np.array(list(itertools.product(*zip(box.start, box.stop, strict=True)))) - 0.5
        world = np.array(other.origin) + (corners[:, ::-1] * other.spacing[::-1]) @ np.array(other.direction).T
        index = ((world - self.origin) @ np.array(self.direction) / self.spacing[::-1])[:, ::-1] + 0.5
        start = np.clip(np.floor(index.min(axis=0) + GRID_TOLERANCE), 0, np.array(self.shape) - 1)
        stop = np.clip(np.ceil(index.max(axis=0) - GRID_TOLERANCE), start + 1, self.shape)
        return Box(_shape(start), _shape(stop))

    def difference(self, other: Grid) -> str:
        """Return what differs between two grids, or an empty string. Differences below 1e-3 voxels are none."""
        if self.shape != other.shape:
            return f"size {other.shape} (z, y, x) instead of {self.shape}"
        step = GRID_TOLERANCE * min(self.spacing)
        for name, tolerance in (("spacing", step), ("origin", step), ("direction", GRID_TOLERANCE)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(mine, theirs, rtol=0, atol=tolerance):
                return f"{name} {theirs} instead of {mine}"
        return ""


@dataclass(frozen=True)
class Volume:
    """An array (z, y, x) and the grid it lies on."""

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"an array of shape {self.array.shape} does not fit a grid of shape {self.grid.shape}")

    def crop(self, box: Box) -> Volume:
        """Return the voxels in a box, as a view."""
        return Volume(self.array[box.slices], self.grid.crop(box))


def uncrop(array: NDArray[Any], box: Box, shape: Shape) -> NDArray[Any]:
    """Return an array of zeros of `shape` (z, y, x) that holds `array` in `box`."""
    whole = np.zeros(shape, array.dtype)
    whole[box.slices] = array
    return whole


def check_resampled(shape: Shape, spacing: Triple) -> None:
    """Raise InputError where a volume would be too large at another spacing, both (z, y, x)."""
    if np.prod(shape, dtype=float) > MAX_VOXELS or max(shape) > MAX_SIDE:
        expected = f"at most {MAX_VOXELS} voxels, {MAX_SIDE} a side, at the model's spacing"
        raise InputError("volume", expected=expected, found=Grid(shape, spacing).describe())


def is_volume_file(path: Path) -> bool:
    """Tell by the name whether a file is a volume that can be read."""
    return path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES)


def volumes_in(folder: Path) -> list[Path]:
    """Return the volumes of a folder by name; hidden files, such as those that are being written, are none.

    Raises InputError for a folder that may not be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if is_volume_file(path) and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(folder, expected="a folder that can be read", found=found) from error


def mask_name(path: Path) -> str:
    """Return the name of a volume's mask: <case> in the volume's own format, `.mha` for the two files of an `.mhd`."""
    suffix = path.name[len(case_name(path)) :].lower()
    return case_name(path) + (".mha" if suffix == ".mhd" else suffix)


def case_name(path: Path) -> str:
    """Return a file's name without its volume suffix."""
    for suffix in VOLUME_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


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
        shape=_shape(array.shape),
        spacing=_triple(image.GetSpacing()[2::-1]),
        origin=_triple(image.GetOrigin()[:3]),
        direction=(_triple(direction[0]), _triple(direction[1]), _triple(direction[2])),
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
    event = Event("fourth_axis_dropped", f"size {claim.size} (x, y, z, t): the axis of length 1 was dropped")
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
        events.append(Event("non_finite_voxels", f"{bad} NaN or infinite voxels were set to the finite minimum"))
    if image.min() == image.max():
        events.append(Event("constant_image", f"every voxel has the value {image.flat[0]:g}"))
    return image, tuple(events)


def _reason(error: Exception) -> str:
    """Return what ITK's long messages say, without where in ITK it was said."""
    text = " ".join(str(error).split())
    reason = re.split(r"\bERROR: |\[nrrd\] |:\d+: ", text)[-1]
    return re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason) or type(error).__name__


def _shape(values: Iterable[Any]) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _triple(values: ArrayLike) -> Triple:
    a, b, c = (float(v) for v in np.asarray(values))
    return a, b, c
