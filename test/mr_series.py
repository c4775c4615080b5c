"""Volumes written as series of MR images, as scanners do, for tests of results about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pantherseg.io.dicom.source import DicomSource
from pantherseg.volume import Volume

# What identifies the patient: every value has the mark, so that it is found wherever it goes.
MARK = "ZORRO"
IDENTITY = {
    "PatientName": f"{MARK}^DIEGO",
    "PatientID": f"{MARK}-7",
    "OtherPatientNames": f"{MARK}^ALIAS",
    "PatientAddress": f"{MARK} STREET 1",
    "PatientComments": f"{MARK} comments",
    "EthnicGroup": f"{MARK} group",
    "AccessionNumber": f"{MARK}1",
    "StudyID": f"{MARK}2",
    "StudyDescription": f"{MARK} study",
    "ReferringPhysicianName": f"{MARK}^DOCTOR",
    "InstitutionName": f"{MARK} hospital",
    "InstitutionAddress": f"{MARK} road",
    "StationName": f"{MARK}3",
    "DeviceSerialNumber": f"{MARK}4",
    "OperatorsName": f"{MARK}^OPERATOR",
    "AdmissionID": f"{MARK}5",
    "ProtocolName": f"{MARK} protocol",
    "SeriesDescription": f"{MARK} series",
    "ImageComments": f"{MARK} image",
}


def write_series(folder: Path, volume: Volume, **changes: object) -> DicomSource:
    """Write a volume (z, y, x) as a classic series, a file for each slice, and return its headers.

    changes: other values of attributes, or None to leave one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for z in range(volume.grid.shape[0]):
        instance = _described(MRImageStorage, study, series, frame_of_reference)
        direction = np.array(volume.grid.direction)
        position = np.array(volume.grid.origin) + direction[:, 2] * volume.grid.spacing[0] * z
        instance.ImageOrientationPatient = [f"{value:.10g}" for value in direction[:, :2].T.ravel()]
        instance.ImagePositionPatient = [f"{value:.10g}" for value in position]
        instance.PixelSpacing = [f"{value:.10g}" for value in volume.grid.spacing[1:]]
        instance.SliceThickness, instance.InstanceNumber = f"{volume.grid.spacing[0]:.10g}", z + 1
        _set_pixels(instance, volume.array[z])
        paths.append(_written(instance, folder / f"slice{z:03}.dcm", changes))
    headers = tuple(dcmread(path, stop_before_pixels=True) for path in paths)
    return DicomSource(str(series), headers, tuple((z, 0) for z in range(len(paths))))


def write_enhanced(path: Path, volume: Volume, **changes: object) -> DicomSource:
    """Write a volume (z, y, x) as one Enhanced MR object whose frames are in the opposite order."""
    instance = _described(EnhancedMRImageStorage, generate_uid(), generate_uid(), generate_uid())
    depth, direction = volume.grid.shape[0], np.array(volume.grid.direction)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    orientation = [f"{value:.10g}" for value in direction[:, :2].T.ravel()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence[0].PixelSpacing = [f"{value:.10g}" for value in volume.grid.spacing[1:]]
    shared.PixelMeasuresSequence[0].SliceThickness = f"{volume.grid.spacing[0]:.10g}"
    instance.SharedFunctionalGroupsSequence, instance.PerFrameFunctionalGroupsSequence = [shared], []
    for z in reversed(range(depth)):
        position = np.array(volume.grid.origin) + direction[:, 2] * volume.grid.spacing[0] * z
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.10g}" for value in position]
        instance.PerFrameFunctionalGroupsSequence.append(group)
    instance.NumberOfFrames = depth
    _set_pixels(instance, volume.array[::-1])
    header = dcmread(_written(instance, path, changes), stop_before_pixels=True)
    return DicomSource(header.SeriesInstanceUID, (header,), tuple((0, depth - 1 - z) for z in range(depth)))


def _described(sop_class: str, study: str, series: str, frame_of_reference: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    instance.SOPClassUID, instance.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
    instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = frame_of_reference, ""
    instance.Modality, instance.SeriesNumber, instance.Manufacturer = "MR", 3, "maker"
    instance.ImageType, instance.ScanningSequence, instance.SequenceVariant = ["ORIGINAL", "PRIMARY", "M"], "GR", "SP"
    instance.ScanOptions, instance.MRAcquisitionType, instance.EchoTrainLength = "", "3D", 1
    instance.EchoTime, instance.RepetitionTime = 2, 4
    instance.StudyDate, instance.StudyTime = "20240229", "101112"
    instance.SeriesDate, instance.PatientBirthDate, instance.PatientSex = "20240229", "19450304", "F"
    for keyword, value in IDENTITY.items():
        setattr(instance, keyword, value)
    return instance


def _set_pixels(instance: Dataset, array: object) -> None:
    pixels = np.asarray(array).astype(np.uint16)
    instance.Rows, instance.Columns = pixels.shape[-2:]
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated, instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 16, 16, 15, 0
    instance.PixelData = pixels.tobytes()


def _written(instance: FileDataset, path: Path, changes: dict[str, object]) -> Path:
    for keyword, value in changes.items():
        if value is None:
            delattr(instance, keyword)
        else:
            setattr(instance, keyword, value)
    instance.save_as(path, enforce_file_format=True)
    return path
