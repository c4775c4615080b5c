"""What a case must be like so that a network can be trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError, first_few
from pantherseg.events import Event, EventCode
from pantherseg.io import read_image, read_labels
from pantherseg.io.itk import grid_in_itk, intercept_in_itk
from pantherseg.labels import BACKGROUND, BACKGROUND_NAME
from pantherseg.orientation import NO_TURN, Orientation, Turn
from pantherseg.volume import Volume


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case, turned to one orientation.

    turn, label_turn: from the volumes as they are stored; events: of reading the image; label: None in a data set
    without labels; values: the numbers that labels may have, and their names.
    """

    image_path: Path
    image: Volume
    turn: Turn
    events: tuple[Event, ...]
    label_path: Path | None
    label: Volume | None
    label_turn: Turn
    values: Mapping[int, str]

    @property
    def corrections(self) -> list[str]:
        """In what the image in memory differs from what nnU-Net would read from the file."""
        messages = [event.message for event in self.events if event.code is not EventCode.CONSTANT_IMAGE]
        if messages:
            return messages
        with _as_linked(self.image_path) as path:
            seen = grid_in_itk(path)
            if seen is None:
                return ["SimpleITK, with which nnU-Net reads images, cannot read this file"]
            added = intercept_in_itk(path)
        difference = self.image.grid.difference(seen.turned(self.turn))
        found = [difference] if difference else []
        found += [f"voxels that are larger by {added:g}, although scl_slope is 0"] if added else []
        return [f"SimpleITK, with which nnU-Net reads images, finds {what}" for what in found]

    @property
    def digest(self) -> str:
        """Checksum of the image's voxels, which is the same in every file format and voxel order."""
        shape = str(self.image.array.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.image.array).tobytes()).hexdigest()


@contextmanager
def _as_linked(path: Path) -> Iterator[Path]:
    """Yield an image's path, or a link to it with a name in lower case: SimpleITK takes no .MHA, but such a link."""
    name = path.name.lower()
    if name == path.name or not path.is_file():
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / name
        link.symlink_to(path.resolve())
        yield link


def read_case(
    image_path: Path, label_path: Path | None, *, values: Mapping[int, str], orientation: Orientation | None
) -> CaseVolumes:
    """Read the volumes of a case and turn them to an orientation, None for that of the image.

    A label map on the grid of its image is turned as that, also where the axes are so oblique that a rounding error
    decides to which side they run. Raises InputError for files that cannot be read.
    """
    image, events = read_image(image_path)
    orientation = orientation or image.grid.orientation
    turn = image.grid.turn_to(orientation)
    label, label_turn = None, NO_TURN
    if label_path is not None:
        stored = read_labels(label_path)
        label_turn = stored.grid.turn_to(orientation) if image.grid.difference(stored.grid) else turn
        label = stored.turned(label_turn)
    return CaseVolumes(image_path, image.turned(turn), turn, events, label_path, label, label_turn, values)


def _check_intensities(case: CaseVolumes) -> None:
    if any(event.code is EventCode.CONSTANT_IMAGE for event in case.events):
        raise InputError(case.image_path, expected="an image", found="the same value in every voxel")


def _check_grid(case: CaseVolumes) -> None:
    if case.label is not None and (difference := case.image.grid.difference(case.label.grid)):
        raise InputError(case.label_path or "", expected="the grid of its image", found=difference)


def _check_values(case: CaseVolumes) -> None:
    if case.label is None:
        return
    unknown = [f"{value:g}" for value in np.unique(case.label.array) if value not in case.values]
    if unknown:
        known = ", ".join(f"{value} {name}" for value, name in sorted(case.values.items()))
        raise InputError(case.label_path or "", expected=f"the labels {known}", found=first_few(unknown))


def _check_not_empty(case: CaseVolumes) -> None:
    if case.label is None:
        return
    foreground = [value for value, name in case.values.items() if name != BACKGROUND_NAME]
    if not np.isin(case.label.array, foreground).any():
        raise InputError(case.label_path or "", expected="at least one labelled voxel", found="background only")


# The rules in the order in which they are checked.
CHECKS: Mapping[str, Callable[[CaseVolumes], None]] = {
    "images with more than one value": _check_intensities,
    "label maps on the grid of their images": _check_grid,
    "label maps with known values": _check_values,
    "label maps that are not empty": _check_not_empty,
}


def relabelled(label: NDArray[Any], values: Mapping[int, str], target: Mapping[str, int]) -> NDArray[np.uint8]:
    """Return a label map, of any shape, in other numbers: each value by its name, and background where that is missing.

    values: the names of the values; target: the new numbers of names.
    """
    result = np.full(label.shape, BACKGROUND, np.uint8)
    for value, name in values.items():
        if number := target.get(name, BACKGROUND):
            result[label == value] = number
    return result
