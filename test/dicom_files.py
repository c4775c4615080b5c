"""Volumes written as DICOM, as scanners and archives do: a file for each slice, or one of all frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from pantherseg.io import source_datasets
from pantherseg.io.dicom.source import DicomSource
from pantherseg.volume import Grid, Volume

# Marks that must not be found in anything but DICOM objects.
PATIENT = {"PatientName": "Musterfrau^Erika", "PatientID": "PID4711007", "PatientBirthDate": "19430226"}
# What identifies another patient in all that images say: every value but the dates has the mark.
MARK = "ZORRO"
IDENTITY = {
    **{"PatientName": f"{MARK}^DIEGO", "PatientID": f"{MARK}-7", "OtherPatientNames": f"{MARK}^ALIAS"},
    **{"PatientBirthDate": "19450304", "StudyDate": "20240229", "StudyTime": "101112", "SeriesDate": "20240229"},
    **{"PatientAddress": f"{MARK} STREET 1", "PatientComments": f"{MARK} comments", "EthnicGroup": f"{MARK} group"},
    **{"AccessionNumber": f"{MARK}1", "StudyID": f"{MARK}2", "StudyDescription": f"{MARK} study"},
    **{"ReferringPhysicianName": f"{MARK}^DOCTOR", "OperatorsName": f"{MARK}^OPERATOR", "AdmissionID": f"{MARK}5"},
    **{"InstitutionName": f"{MARK} hospital", "InstitutionAddress": f"{MARK} road", "StationName": f"{MARK}3"},
    **{"DeviceSerialNumber": f"{MARK}4", "ProtocolName": f"{MARK} protocol"},
    **{"SeriesDescription": f"{MARK} series", "ImageComments": f"{MARK} image"},
}

CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
SPIN_ECHO = {"ScanningSequence": "SE", "EchoTime": 90.0}
# A liver protocol: description, the slices' axes, how many, and other tags.
STUDY: list[tuple[str, object, int, dict[str, object]]] = [
    ("localizer", None, 5, {}),
    ("t2_haste_cor", CORONAL, 20, SPIN_ECHO),
    ("t2_tse_fs_tra", None, 20, SPIN_ECHO),
    ("ep2d_diff_b50_400_800_ADC", None, 20, SPIN_ECHO),
    ("t1_vibe_fs_tra_nativ", None, 20, {}),
    ("t1_vibe_fs_tra_ART1", None, 20, {}),
    ("t1_vibe_fs_tra_portalvenous", None, 20, {}),
    ("t1_vibe_fs_cor_late", CORONAL, 20, {}),
]


def some_volume(shape: tuple[int, int, int] = (6, 9, 7), direction: NDArray[np.float64] | None = None) -> Volume:
    """Return a volume of different voxels. direction: by default that of axial slices from feet to head."""
    axes = np.eye(3) if direction is None else direction
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    rows = tuple(tuple(map(float, row)) for row in axes)
    return Volume(array, Grid(shape, (3.0, 1.25, 1.5), (-40.0, 25.5, 7.25), rows))  # type: ignore[arg-type]


def header(**tags: Any) -> Dataset:
    """Return what every image of a patient has. tags: in the place of these, or None to leave one out."""
    data = Dataset()
    values = {
        **PATIENT,
        **{"PatientSex": "F", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SeriesNumber": 4},
        **{"Modality": "MR", "SOPClassUID": MRImageStorage, "FrameOfReferenceUID": "1.2.3.9", "StudyID": "1"},
        **{"StudyDate": "20260101", "StudyTime": "120000", "AccessionNumber": "7", "ReferringPhysicianName": ""},
        **{"Manufacturer": "Maker", "SeriesDescription": "t1_vibe_tra", "ImageType": ["ORIGINAL", "PRIMARY", "M"]},
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16},
        **{
            "HighBit": 15,
            "ScanningSequence": "GR",
            "SequenceVariant": "SP",
            "ScanOptions": "",
            "MRAcquisitionType": "3D",
        },
        **{"RepetitionTime": 4.0, "EchoTime": 2.0, "EchoTrainLength": 1},
        **{"InstanceNumber": 1, "PatientPosition": "HFS"},
        **{"SliceThickness": 3.0, "ContentDate": "20260101", "ContentTime": "120000", "PositionReferenceIndicator": ""},
        **tags,
    }
    for key, value in values.items():
        if value is not None:
            setattr(data, key, value)
    return data


def save(data: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write an object with a new UID, unless it has one."""
    if "SOPInstanceUID" not in data:
        data.SOPInstanceUID = generate_uid()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def pixels(data: Dataset, array: NDArray[Any]) -> None:
    """Put an array, of a slice or of all frames, into an object."""
    data.Rows, data.Columns = array.shape[-2:]
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()


def position(grid: Grid, z: int) -> list[float]:
    """Return the position of the first pixel of a slice."""
    corner = np.array(grid.origin) + np.array(grid.direction)[:, 2] * grid.spacing[0] * z
    return [round(float(mm), 6) for mm in corner]


def orientation(grid: Grid) -> list[float]:
    """Return the directions of the rows and of the columns of all slices."""
    return [round(float(cosine), 9) for cosine in np.array(grid.direction).T[:2].ravel()]


def write_slices(
    volume: Volume,
    folder: Path,
    *,
    shuffled: bool = True,
    change: Callable[[Dataset, int], object] = lambda data, z: None,
    **tags: Any,
) -> list[Path]:
    """Write a file for each slice, and return their paths in the order of the slices.

    shuffled: whether file names and instance numbers say nothing about the order. change: is called with the object and
    the number of a slice before it is written. tags: in the place of those of `header`.
    """
    count = len(volume.array)
    order = np.random.default_rng(0).permutation(count) if shuffled else np.arange(count)
    paths = []
    for z in range(count):
        data = header(**tags, InstanceNumber=int(order[z]) + 1)
        data.ImagePositionPatient = position(volume.grid, z)
        data.ImageOrientationPatient = orientation(volume.grid)
        data.PixelSpacing = list(volume.grid.spacing[1:])
        pixels(data, volume.array[z])
        change(data, z)
        paths.append(save(data, folder / f"IM{order[z]:04}"))
    return paths


def write_enhanced(volume: Volume, path: Path, *, order: Sequence[int] | None = None, **tags: Any) -> Path:
    """Write an Enhanced MR object. order: that of the frames, by default shuffled."""
    count = len(volume.array)
    frames = list(np.random.default_rng(1).permutation(count) if order is None else order)
    data = header(SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=len(frames), **tags)
    for key in ("EchoTime", "RepetitionTime", "SliceThickness"):
        delattr(data, key)
    shared, measures, plane, contrast = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(volume.grid.spacing[1:]), volume.grid.spacing[0]
    plane.ImageOrientationPatient = orientation(volume.grid)
    contrast.AcquisitionContrast, contrast.FrameType = "T1", ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.MRImageFrameTypeSequence = [contrast]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z in frames:
        group, where = Dataset(), Dataset()
        where.ImagePositionPatient = position(volume.grid, z)
        group.PlanePositionSequence = [where]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    pixels(data, volume.array[frames])
    return save(data, path)


def marked_series(path: Path, volume: Volume, *, enhanced: bool = False, **tags: Any) -> DicomSource:
    """Write a series of the patient of IDENTITY with 16-bit pixels, and return its headers.

    path: of the folder of slices, or of an Enhanced MR object whose frames are in the opposite order.
    """
    stored = Volume(np.asarray(volume.array, np.uint16), volume.grid)
    if enhanced:
        write_enhanced(stored, path, order=range(len(stored.array))[::-1], **{**IDENTITY, **tags})
    else:
        write_slices(stored, path, shuffled=False, **{**IDENTITY, "SliceThickness": volume.grid.spacing[0], **tags})
    found = source_datasets(path)
    assert found is not None
    return found


def write_legacy_enhanced(volume: Volume, path: Path) -> Path:
    """Write a Legacy Converted Enhanced MR object, which highdicom makes of the slices."""
    slices = [dcmread(one) for one in write_slices(volume, path.parent / "slices")]
    made = LegacyConvertedEnhancedMRImage(slices, generate_uid(), 5, generate_uid(), 1)
    made.save_as(path)
    for one in (path.parent / "slices").iterdir():
        one.unlink()
    (path.parent / "slices").rmdir()
    return path


def write_study(folder: Path, study: list[tuple[str, object, int, dict[str, object]]]) -> Path:
    """Write a study, a folder for each series, and return its folder."""
    for number, (description, direction, count, tags) in enumerate(study, start=1):
        volume = some_volume((count, 4, 4), direction)  # type: ignore[arg-type]
        own = {"SeriesInstanceUID": f"1.2.3.{number}", "SeriesNumber": number, "SeriesDescription": description}
        write_slices(volume, folder / str(number), **own, **tags)
    return folder
