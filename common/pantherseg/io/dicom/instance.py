"""One DICOM file as its header describes it, without pixels: what it is, and where its frames lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from pantherseg.io.dicom.identity import patient_of
from pantherseg.io.dicom.naming import IDENTITY, STUDY_NUMBER, identifies
from pantherseg.io.dicom.places import Place
from pantherseg.io.limits import MAX_ORIGIN_MM

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

# SOP classes: of MR, Enhanced MR and Legacy Converted Enhanced MR images (DICOM PS3.4, table B.5-1).
MR_IMAGES = frozenset(
    ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"),
)
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
# Tags by which frames at the same position differ, the most telling first, and what they are called.
DISCRIMINATORS = {
    "TemporalPositionIndex": "temporal position",
    "TemporalPositionIdentifier": "temporal position",
    "DiffusionBValue": "b-value",
    "ImageType": "image type",
    "FrameType": "image type",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "EchoNumbers": "echo",
    "InversionTime": "inversion time",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger time",
    "AcquisitionNumber": "acquisition",
    "AcquisitionTime": "acquisition time",
    "FrameAcquisitionDateTime": "acquisition time",
    "ContentTime": "content time",
}
# In the place of a description that contains the patient's name or number.
NAMED = "(names the patient)"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID", *IDENTITY, STUDY_NUMBER),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "InstanceNumber"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "BitsAllocated"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness"),
    *("RepetitionTime", "ScanningSequence", "AcquisitionContrast"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *DISCRIMINATORS,
)


@dataclass(frozen=True)
class Frame:
    """A frame of a file, counted from 0, and where it lies.

    position: of its first pixel's centre, mm (x, y, z). orientation: the directions of its rows and of its columns.
    spacing: mm between rows and between columns. distance, thickness: mm from slice to slice, and of a slice, as the
    header says. None where it lacks one. tags: those of DISCRIMINATORS.
    """

    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    distance: float | None
    thickness: float | None
    tags: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Instance:
    """What a file's header says. patient: a hash, by which patients are told apart."""

    place: Place
    sop_class: str
    uid: str
    modality: str
    patient: str = field(repr=False)
    study_uid: str
    series_uid: str
    series_number: int | None
    description: str = field(repr=False)
    """What the scanner or its operator called the series, by which one is chosen. It may name the patient."""
    shown: str = field(repr=False)
    """The description, or NAMED in the place of one that names the patient."""
    frame_of_reference: str
    size: tuple[int, int] | None
    """Rows and columns; None for an object that is not an image."""
    problem: str
    """Why it cannot be a part of an MR volume, or an empty text."""
    contrast: str
    """Of Enhanced MR: the acquisition contrast, such as T1; else empty."""
    times: tuple[float | None, float | None]
    """Repetition time and echo time in ms."""
    sequence: str
    """The scanning sequence, such as GR."""
    frames: tuple[Frame, ...] = field(repr=False)
    """Empty where there is a problem."""


class HeaderError(Exception):
    """A header that cannot be used, and why in words that may follow "found"."""


def read_instance(place: Place, file: BinaryIO) -> Instance:
    """Read a header. Raises HeaderError for a damaged one. Within `library.quiet_pydicom`."""
    try:
        import pydicom

        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
        return _instance(place, header)
    except (HeaderError, MemoryError):
        raise
    except Exception as error:  # pydicom raises errors of many types for damaged files, and quotes their values
        raise HeaderError(f"a header that cannot be read ({type(error).__name__})") from error


def _instance(place: Place, header: Dataset) -> Instance:
    stated = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    # A DICOMDIR has its class only in the information about the file.
    sop_class = header.get("SOPClassUID") or (stated if stated == DIRECTORY_CLASS else None)
    if sop_class is None:
        raise HeaderError("no SOP class, as in a truncated file or one of another format")
    if str(sop_class) in MR_IMAGES and not header.get("SeriesInstanceUID"):
        raise HeaderError("an MR image without a series, as in a truncated file")
    if str(stated or sop_class) != str(sop_class):
        raise HeaderError("two different SOP classes, as in a damaged file")
    size = (int(header.Rows), int(header.Columns)) if header.get("Rows") and header.get("Columns") else None
    if str(sop_class) in MR_IMAGES and size is None:
        raise HeaderError("an MR image without rows and columns, as in a truncated file")
    number = header.get("SeriesNumber")
    description = _text(header, "SeriesDescription") or _text(header, "ProtocolName")
    problem = _problem(header, sop_class, size)
    levels = [[header]] if problem else levels_of(header)
    return Instance(
        place=place,
        sop_class=str(sop_class),
        uid=_text(header, "SOPInstanceUID"),
        modality=_text(header, "Modality"),
        patient=patient_of(header),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        series_number=None if number is None else int(number),
        description=description,
        shown=NAMED if identifies(description, header) else description,
        frame_of_reference=_text(header, "FrameOfReferenceUID"),
        size=size,
        problem=problem,
        contrast=first_text(levels[0], "AcquisitionContrast") or "",
        times=(_number(levels[0], "RepetitionTime"), _number(levels[0], "EchoTime", "EffectiveEchoTime")),
        sequence=_text(header, "ScanningSequence"),
        frames=() if problem else tuple(_frame(k, levels[k]) for k in range(len(levels))),
    )


def _problem(header: Dataset, sop_class: UID, size: tuple[int, int] | None) -> str:
    modality = _text(header, "Modality")
    if size is None:
        return f"an object without pixels ({sop_class.name})"
    if modality and modality != "MR":
        return f"the modality {modality}, not MR"
    if str(sop_class) not in MR_IMAGES:
        return f"{sop_class.name}, not an MR image"
    colours, interpretation = header.get("SamplesPerPixel", 1), _text(header, "PhotometricInterpretation")
    if colours != 1 or interpretation not in ("", "MONOCHROME2"):
        return f"{interpretation}, not one grey value a pixel that grows with the signal (MONOCHROME2)"
    return ""


def levels_of(header: Dataset) -> list[list[Dataset]]:
    """Return, for each frame, the data sets in which its tags may be: the first that has a tag counts.

    These are the items of the frame's own functional groups, those of the groups that all frames share, and the header.
    Raises HeaderError where frames are described that are not there, or the other way round.
    """
    shared = [item for group in header.get("SharedFunctionalGroupsSequence") or () for item in _items(group)]
    own = [list(_items(group)) for group in header.get("PerFrameFunctionalGroupsSequence") or ()]
    count = int(header.get("NumberOfFrames") or 1)
    if len(own) not in (0, count):
        raise HeaderError(f"{count} frames, of which {len(own)} are described")
    return [[*(own[k] if own else ()), *shared, header] for k in range(count)]


def _items(group: Dataset) -> Iterator[Dataset]:
    for element in group:
        if element.VR == "SQ" and not element.tag.is_private and element.value:
            yield from element.value


def _frame(number: int, levels: Sequence[Dataset]) -> Frame:
    tags = {key: text for key in DISCRIMINATORS if (text := first_text(levels, key)) is not None}
    return Frame(
        number,
        position=_vector(levels, "ImagePositionPatient", 3),
        orientation=_vector(levels, "ImageOrientationPatient", 6),
        spacing=_vector(levels, "PixelSpacing", 2),
        distance=_number(levels, "SpacingBetweenSlices"),
        thickness=_number(levels, "SliceThickness"),
        tags=tags,
    )


def _vector(levels: Sequence[Dataset], key: str, length: int) -> tuple[float, ...] | None:
    for level in levels:
        values = level.get(key)
        if values:
            numbers = tuple(float(value) for value in values)
            if len(numbers) != length:
                raise HeaderError(f"{len(numbers)} numbers in {key} instead of {length}")
            if not all(abs(number) <= MAX_ORIGIN_MM for number in numbers):  # also false for NaN
                raise HeaderError(f"{numbers} in {key}")
            return numbers
    return None


def first_text(levels: Sequence[Dataset], key: str) -> str | None:
    """Return the first value of a tag as text, None where there is none. Numbers keep all their digits."""
    value: Any = next((level.get(key) for level in levels if level.get(key) not in (None, "")), None)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    return "\\".join(map(str, value)) if not isinstance(value, int) and hasattr(value, "__iter__") else str(value)


def _number(levels: Sequence[Dataset], *keys: str) -> float | None:
    """Return the first of some tags that is a finite number, None where none is."""
    for text in (first_text(levels, key) for key in keys):
        with suppress(ValueError):
            if text and math.isfinite(number := float(text)):
                return number
    return None


def _text(header: Dataset, key: str) -> str:
    value: Any = header.get(key)
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else " ".join(map(str, value))
