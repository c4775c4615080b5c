"""The headers of a series as objects about it refer to them: complete where input lacks values, and of one geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings
from pydicom.config import RAISE, settings
from pydicom.valuerep import DA, DT, TM, DSfloat, validate_value

from pantherseg.errors import OptionError
from pantherseg.io.dicom.source import DicomSource
from pantherseg.volume import Grid

# What an object about a series needs of it. Where the patient's identity is removed, nothing else is carried over: all
# other attributes, listed in PS3.15, table E.1-1 or not. The UIDs stay (its Retain UIDs Option), as otherwise
# the object would not refer to the series any more.
NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "ImageType", "SliceThickness"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
# Attributes that must be there, if empty (type 2 in PS3.3), and that anonymised images often lack.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
# By these an archive finds the patient: they stay as they are, even where DICOM does not allow them.
WHOSE = ("PatientID", "PatientName")
SEXES = ("M", "F", "O")
# Value representations of text, of which pydicom checks the form; and those that also have to be a moment.
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI", "UR")
MOMENTS: dict[str, Callable[[str], object]] = {"DA": DA, "TM": TM, "DT": DT}
UTF_8 = "ISO_IR 192"
# Frames of a multi-frame object that were not read are put here, so that nothing refers to them.
FAR_AWAY_MM = 1e6


@dataclass(frozen=True)
class Headers:
    """datasets: of the instances; positions: of the first pixel of each slice in mm, (z, 3), as they are stored."""

    datasets: tuple[Dataset, ...]
    positions: NDArray[np.float64]

    @property
    def first(self) -> Dataset:
        """The first instance, in which all agree about patient and study."""
        return self.datasets[0]


def headers_of(source: DicomSource, grid: Grid, *, anonymous: bool) -> Headers:
    """Return the headers of a series whose slices are those of a grid.

    Texts are in UTF-8, whatever the series has: highdicom does not take all character sets that DICOM allows. Values
    that DICOM does not allow are left out. Raises OptionError for a series without a frame of reference, and for texts
    in an unknown character set.
    """
    orientation = _decimals(np.array(grid.direction)[:, :2].T.ravel())
    spacing = _decimals(grid.spacing[1:])
    positions = [_position(source.datasets[instance], frame) for instance, frame in source.frames]
    headers = []
    for number, dataset in enumerate(source.datasets):
        if not dataset.get("FrameOfReferenceUID"):
            hint = "choose another output format, such as mha"
            expected, found = "a frame of reference (UID), to which DICOM results refer", "none"
            raise OptionError(f"series {source.series_uid}", expected=expected, found=found, hint=hint)
        header = _without_invalid(_only(dataset, NEEDED) if anonymous else dataset)
        if not anonymous:
            _check_character_set(source, dataset)
            _set_utf_8(header)
        header.file_meta = dataset.file_meta
        _complete(header)
        if source.is_multi_frame:
            read = {frame: positions[z] for z, (instance, frame) in enumerate(source.frames) if instance == number}
            _set_groups(header, orientation, spacing, grid, read)
        else:
            header.ImageOrientationPatient, header.PixelSpacing = orientation, spacing
            header.ImagePositionPatient = dataset.ImagePositionPatient
        headers.append(header)
    return Headers(tuple(headers), np.array(positions, float))


def _check_character_set(source: DicomSource, header: Dataset) -> None:
    values = header.get("SpecificCharacterSet") or []
    mode = settings.reading_validation_mode
    settings.reading_validation_mode = RAISE  # else an unknown one is taken for another
    try:
        convert_encodings([values] if isinstance(values, str) else list(values))
    except (LookupError, ValueError) as error:
        expected, hint = (
            "texts in a character set of DICOM",
            "choose another output format, such as mha, or --anonymous",
        )
        where = f"series {source.series_uid}"
        raise OptionError(where, expected=expected, found="an unknown one", hint=hint) from error
    finally:
        settings.reading_validation_mode = mode


def _set_utf_8(header: Dataset) -> None:
    for element in [one for one in header if one.VR == "PN" and one.value]:
        names = [str(name) for name in (element.value if element.VM > 1 else [element.value])]
        header[element.tag] = DataElement(element.tag, "PN", names)  # pydicom keeps the bytes of those that were read
    header.SpecificCharacterSet = UTF_8


def _position(dataset: Dataset, frame: int) -> Sequence[Any]:
    """Return the position of a frame as it is stored."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:  # a classic image may say that it has 1 frame
        return list(dataset.ImagePositionPatient)
    groups = dataset.PerFrameFunctionalGroupsSequence[frame]
    if "PlanePositionSequence" not in groups:
        groups = dataset.SharedFunctionalGroupsSequence[0]
    return list(groups.PlanePositionSequence[0].ImagePositionPatient)


def _only(dataset: Dataset, keywords: Sequence[str]) -> Dataset:
    """Return a dataset with some of the attributes."""
    kept = Dataset()
    for keyword in keywords:
        if keyword in dataset:
            kept.add(dataset[keyword])
    return kept


def _without_invalid(dataset: Dataset) -> Dataset:
    """Return a copy of a data set without values that DICOM does not allow for their type, and items that have such."""
    kept = Dataset()
    for element in dataset:
        if element.VR == "SQ" and element.value:
            if items := [item for item in element.value if all(map(_is_valid, item))]:
                kept.add(DataElement(element.tag, "SQ", items))
        elif element.keyword in (*NEEDED, *WHOSE) or _is_valid(element):
            kept.add(copy(element))  # whose value will be set, here only
    return kept


def _is_valid(element: DataElement) -> bool:
    if element.VR == "SQ":
        return all(_is_valid(one) for item in element.value or () for one in item)
    values = element.value if element.VM > 1 else [element.value]
    try:
        for text in [str(value) for value in values if value not in (None, "") and element.VR in TEXTS]:
            validate_value(element.VR, text, RAISE)
            MOMENTS.get(element.VR, str)(text)  # an impossible date may look like one
    except (ValueError, TypeError):
        return False
    return True


def _complete(header: Dataset) -> None:
    """Empty what must be there and is not, and an unknown sex."""
    for keyword in MAY_BE_EMPTY:
        if keyword not in header or header[keyword].value is None:
            setattr(header, keyword, "")
    if header.PatientSex not in SEXES:
        header.PatientSex = ""


def _set_groups(
    header: Dataset, orientation: list[DSfloat], spacing: list[DSfloat], grid: Grid, read: dict[int, Sequence[Any]]
) -> None:
    """Replace the functional groups by those of the grid. read: the positions of the frames that were read."""
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence[0].PixelSpacing = spacing
    shared.PixelMeasuresSequence[0].SliceThickness = _decimals(grid.spacing[:1])[0]
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in range(int(header.NumberOfFrames)):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = read.get(number, [FAR_AWAY_MM] * 3)
        frames.append(group)
    header.PerFrameFunctionalGroupsSequence = frames


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[DSfloat]:
    """Return numbers as decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]
