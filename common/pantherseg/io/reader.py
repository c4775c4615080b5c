"""Readers of volumes, in an ordered list, and what is done with a volume whatever its format.

A source is a file or a folder that holds one volume. The first reader that accepts a source reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError, OutputError, os_reason
from pantherseg.events import Event, EventCode
from pantherseg.files import written_beside
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.io.dicom.places import is_zip
from pantherseg.io.dicom.reader import DicomReader
from pantherseg.io.dicom.source import DicomSource
from pantherseg.io.file_format import FileFormat
from pantherseg.io.itk import ItkReader
from pantherseg.io.limits import DAMAGED, LABEL_TOLERANCE, LARGEST_VALUE, MAX_INFINITE_FRACTION, MAX_NAN_FRACTION
from pantherseg.io.metaimage import check_metaimage
from pantherseg.io.nifti import NiftiReader
from pantherseg.io.nrrd import check_nrrd
from pantherseg.volume import Grid, Volume

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads the volumes of one format."""

    def accepts(self, source: Path) -> bool:
        """Return whether a source has this format, as told by a file's name or by the content of a folder."""

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume with its voxels as stored, and the events of reading it. Raises InputError and OSError."""

    def case_name(self, source: Path) -> str:
        """Return the name of the case: the source's name, without a suffix."""

    def mask_suffix(self, source: Path) -> str:
        """Return the suffix, in lower case, of the file that the mask of this source is written to."""


FORMATS: tuple[FileFormat, ...] = (
    ItkReader((".mha", ".mhd"), "MetaImageIO", check_metaimage),
    NiftiReader((".nii", ".nii.gz")),
    ItkReader((".nrrd",), "NrrdImageIO", check_nrrd),
)
VOLUME_SUFFIXES = tuple(suffix for file_format in FORMATS for suffix in file_format.suffixes)
READERS: list[Reader] = [*FORMATS, DicomReader(VOLUME_SUFFIXES)]


def register_reader(reader: Reader) -> None:
    """Put a reader at the head of READERS: it is asked before the others."""
    READERS.insert(0, reader)


def find_sources(path: Path, *, dangling: bool = False) -> list[Path]:
    """Return a path that is a source itself, or else the sources in a folder, sorted by name.

    Where there are volume files, DICOM beside them is left out: it may be what they were converted from. So are hidden
    files, such as those that are being written. A path that does not exist has no sources. dangling: also return links
    to files that do not exist, so that a volume that was moved away is named when it is read. Raises InputError for a
    folder that cannot be read.
    """

    def wanted(child: Path) -> bool:
        return _is_source(child) or (dangling and child.is_symlink() and not child.exists() and _is_accepted(child))

    with _unreadable_as_input_error(path):
        if _is_source(path):
            return [path]
        children = path.iterdir() if path.is_dir() else ()
        sources = sorted(child for child in children if not child.name.startswith(".") and wanted(child))
        volumes = [source for source in sources if not isinstance(_reader_of(source), DicomReader)]
        return volumes or sources


def read_image(source: Path, series: SeriesChoice = ANY_SERIES) -> tuple[Volume, tuple[Event, ...]]:
    """Read an MR volume as float32, with an event for everything that was changed.

    series: which one is read of a DICOM study. Raises InputError for a source that is missing, damaged, not a 3-D
    scalar volume, beyond the limits of `io.limits` or of the memory, or has more than 99 % of NaN voxels, or more than
    1 % of infinite or too large ones.
    """
    volume, events = _read(source, series)
    try:
        image, more = _finite(source, volume.array)
    except MemoryError as error:
        raise InputError(source, expected="a volume that fits into memory", found=volume.grid.describe()) from error
    return Volume(image, volume.grid), events + more


def read_grid(source: Path) -> Grid | None:
    """Return the grid of a volume file by its header alone, None for other sources. Raises InputError."""
    with _unreadable_as_input_error(source):
        return next((file_format.grid(source) for file_format in FORMATS if file_format.accepts(source)), None)


def read_volume(source: Path, series: SeriesChoice = ANY_SERIES) -> Volume:
    """Read an MR volume as `read_image` does, and log its events as warnings, for callers that do not list them."""
    volume, events = read_image(source, series)
    _log_events(source, events)
    return volume


def read_labels(source: Path) -> Volume:
    """Read a label map in its stored type; values within 0.001 of a whole number are rounded.

    Logs a warning for everything that was corrected. Raises InputError, also for other values that are not whole
    numbers, such as probabilities.
    """
    with _unreadable_as_input_error(source):
        if isinstance(_reader_of(source), DicomReader):
            hint = "convert the mask, for example with 3D Slicer"
            raise InputError(source, expected="a mask in a volume file", found="DICOM", hint=hint)
    volume, events = _read(source, ANY_SERIES)
    _log_events(source, events)
    array = volume.array
    if array.dtype.kind != "f":
        return volume
    labels = np.rint(array)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        whole = np.abs(array - labels) <= LABEL_TOLERANCE
    if not whole.all():
        found, hint = f"the value {array[~whole][0]}", ""
        if array.min() >= 0 and array.max() <= 1:
            found, hint = f"probabilities, such as {array[~whole][0]:.3g}", "give the mask, not the probabilities"
        raise InputError(source, expected="whole numbers as labels", found=found, hint=hint)
    return Volume(labels, volume.grid)


def source_datasets(source: Path, series: SeriesChoice = ANY_SERIES) -> DicomSource | None:
    """Return the headers of the DICOM series that `read_image` reads of a source; None for a source of another format.

    series: the same as for `read_image`. Raises InputError.
    """
    with _unreadable_as_input_error(source):
        reader = _reader_of(source)
        return reader.choosing(series).datasets(source) if isinstance(reader, DicomReader) else None


def source_files(source: Path, series: SeriesChoice = ANY_SERIES) -> list[Path] | None:
    """Return the files of the DICOM series that `read_image` reads of a source; None for a source of another format.

    Raises InputError.
    """
    with _unreadable_as_input_error(source):
        reader = _reader_of(source)
        return reader.choosing(series).files(source) if isinstance(reader, DicomReader) else None


def input_name(source: Path) -> str:
    """Return the name by which logs and reports call a source: never one with a patient's name. Raises InputError."""
    with _unreadable_as_input_error(source):
        return case_name(source) if isinstance(_reader_of(source), DicomReader) else source.name


def write_volume(volume: Volume, path: Path, *, like: Path | None = None) -> None:
    """Write a volume in the format of the path's suffix, compressed except for `.nii`. Raises OutputError.

    The file is written beside its final name and then renamed. like: where this file has the same format and grid, the
    geometry is stored exactly as it is there, so that every program sees both files at the same place.
    """
    for file_format in FORMATS:
        if file_format.has_suffix(path):
            with written_beside(path) as beside:
                file_format.write(volume, beside, like=like)
            return
    expected = f"a file name that ends with one of {' '.join(VOLUME_SUFFIXES)}"
    raise OutputError(path, expected=expected, found=path.name)


def case_name(source: Path) -> str:
    """Return the name of a source's case. Raises InputError if no reader accepts the source."""
    with _unreadable_as_input_error(source):
        return _reader_of(source).case_name(source)


def mask_name(source: Path, case: str = "") -> str:
    """Return the file name of a source's mask. Raises InputError if no reader accepts the source.

    case: the name of the case, by default that of the source.
    """
    return (case or case_name(source)) + _reader_of(source).mask_suffix(source)


def _is_source(path: Path) -> bool:
    return (path.is_file() or path.is_dir()) and _is_accepted(path)


def _is_accepted(path: Path) -> bool:
    return any(reader.accepts(path) for reader in READERS)


def _reader_of(source: Path) -> Reader:
    with _unreadable_as_input_error(source):
        for reader in READERS:
            if reader.accepts(source):
                return reader
        found = "a folder" if source.is_dir() else f"the suffix {source.suffix}" if source.suffix else "no suffix"
        if not source.exists():
            found = "no such file or folder"
        elif is_zip(source):
            found = "a zip archive that is damaged or has no DICOM file"
    formats = f"a volume in one of the formats {' '.join(VOLUME_SUFFIXES)}, or DICOM"
    raise InputError(source, expected=formats, found=found)


def _read(source: Path, series: SeriesChoice) -> tuple[Volume, tuple[Event, ...]]:
    with _unreadable_as_input_error(source):
        reader = _reader_of(source)
        return (reader.choosing(series) if isinstance(reader, DicomReader) else reader).read(source)


@contextmanager
def _unreadable_as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        expected, found = "a file or folder that can be read", os_reason(error)
        raise InputError(path, expected=expected, found=found) from error


def _log_events(source: Path, events: Iterable[Event]) -> None:
    for event in events:
        logger.warning("%s: %s", source, event)


def _finite(source: Path, array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[Event, ...]]:
    """Return the voxels as float32; those that are NaN, infinite or too large get the minimum of the others."""
    with np.errstate(over="ignore"):
        image = array.astype(np.float32)
    events: list[Event] = []
    finite = np.abs(image) < LARGEST_VALUE  # False for NaN
    bad = image.size - int(finite.sum())
    nan = int(np.isnan(image).sum()) if bad else 0
    if bad - nan > MAX_INFINITE_FRACTION * image.size:
        expected = f"at most {MAX_INFINITE_FRACTION:.0%} of the voxels infinite or beyond {LARGEST_VALUE:g}"
        raise InputError(source, expected=expected, found=f"{bad - nan} of {image.size}", hint=DAMAGED)
    if bad > MAX_NAN_FRACTION * image.size:
        kinds = "NaN" if bad == nan else "NaN, infinite or too large"
        expected = f"at most {MAX_NAN_FRACTION:.0%} {kinds} voxels"
        raise InputError(source, expected=expected, found=f"{bad} of {image.size}")
    if bad:
        image[~finite] = image[finite].min()
        counts = {"NaN": nan, "infinite or too large": bad - nan}
        which = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        message = f"{which} voxels (of {image.size}) were set to the smallest other value"
        events.append(Event(EventCode.NON_FINITE_VOXELS, message))
    if image.min() == image.max():
        events.append(Event(EventCode.CONSTANT_IMAGE, f"every voxel has the value {image.flat[0]:g}"))
    return image, tuple(events)
