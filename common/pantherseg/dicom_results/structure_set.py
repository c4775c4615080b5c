"""DICOM structure sets (RTSTRUCT) of masks: closed contours along the edges of voxels, slice by slice."""

from __future__ import annotations

import numpy as np
from highdicom.base import SOPClass
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from pydicom.valuerep import DA, TM, format_number_as_ds

from pantherseg.contours import Point, polygons
from pantherseg.dicom_results.making import (
    PANCREAS_TYPE,
    TUMOUR_TYPE,
    Found,
    Making,
    as_item,
    stated,
)
from pantherseg.dicom_results.segmentation import COLOURS
from pantherseg.labels import TUMOUR_NAME
from pantherseg.volume import Volume

SERIES = 9003
LABEL = "NOT CLINICAL USE"  # as long as it may be
# The SOP class of a study, which is retired and still what a structure set names it by (PS3.3, C.8.8.5).
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
# Defined terms of the RT ROI Interpreted Type: the gross tumour volume, and an organ.
TUMOUR_ROLE, PANCREAS_ROLE = "GTV", "ORGAN"


def structure_set(found: Found, making: Making) -> Dataset:
    """Return the masks as a structure set: 1 the tumour, 2 the pancreas.

    A contour runs along the outer edges of a component's voxels in the plane of its slice, and holes are cut in by
    keyholes (`contours.polygons`). A tumour of which nothing was found is a structure without contours whose
    description says so.
    """
    made = _empty(making)
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for number, (name, mask) in enumerate(found.masks.items(), start=1):
        made.StructureSetROISequence.append(_structure(number, name, mask, made.FrameOfReferenceUID))
        made.ROIContourSequence.append(_contours(number, name, mask, making))
        made.RTROIObservationsSequence.append(_observation(number, name))
    return making.finish(made)


def _empty(making: Making) -> SOPClass:
    """Return a structure set without structures."""
    first = making.headers.first
    identification = making.identification("tumour contours", SERIES)
    made = SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_id=first.PatientID,
        patient_name=first.PatientName,
        patient_birth_date=first.PatientBirthDate,
        patient_sex=first.PatientSex,
        accession_number=first.AccessionNumber,
        study_id=first.StudyID,
        study_date=first.StudyDate,
        study_time=first.StudyTime,
        referring_physician_name=first.ReferringPhysicianName,
        specific_character_set=first.get("SpecificCharacterSet"),
        **identification,
    )
    made.copy_patient_and_study_information(first)
    made.OperatorsName = ""
    made.StructureSetLabel, made.StructureSetName = LABEL, identification["series_description"]
    made.StructureSetDescription = identification["series_description"]
    day, moment = making.moment
    made.StructureSetDate, made.StructureSetTime = DA(day), TM(moment)
    made.ApprovalStatus = "UNAPPROVED"
    made.FrameOfReferenceUID = first.FrameOfReferenceUID
    made.PositionReferenceIndicator = ""
    made.ReferencedFrameOfReferenceSequence = [_referenced(making)]
    return made


def _referenced(making: Making) -> Dataset:
    """Return the frame of reference with the study, the series and its instances."""
    first = making.headers.first
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_image(making, z) for z in range(len(making.source.frames))]
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(making: Making, z: int) -> Dataset:
    """Return the reference to a slice."""
    instance, frame = making.source.frames[z]
    header = making.headers.datasets[instance]
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if making.source.is_multi_frame:
        image.ReferencedFrameNumber = frame + 1
    return image


def _structure(number: int, name: str, mask: Volume, frame_of_reference: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, frame_of_reference
    roi.ROIName, roi.ROIDescription = name, stated(name, mask)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _observation(number: int, name: str) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = TUMOUR_ROLE if name == TUMOUR_NAME else PANCREAS_ROLE
    observation.RTROIIdentificationCodeSequence = [as_item(TUMOUR_TYPE if name == TUMOUR_NAME else PANCREAS_TYPE)]
    observation.ROIInterpreter = ""
    return observation


def _contours(number: int, name: str, mask: Volume, making: Making) -> Dataset:
    """Return the contours of a mask, in the planes of the slices."""
    roi = Dataset()
    roi.ReferencedROINumber, roi.ROIDisplayColor = number, list(COLOURS[name])
    marked = mask.array > 0
    contours = [
        _contour(polygon, making, int(z))
        for z in np.flatnonzero(marked.any(axis=(1, 2)))
        for polygon in polygons(marked[z])
    ]
    for count, contour in enumerate(contours, start=1):
        contour.ContourNumber = count
    if contours:
        roi.ContourSequence = contours
    return roi


def _contour(polygon: list[Point], making: Making, z: int) -> Dataset:
    """Return a polygon of corners (row, column) of voxels as a contour in mm.

    The first corner of a voxel lies half a voxel before its middle, which its position means.
    """
    steps = np.array(making.grid.direction)[:, 1::-1] * making.grid.spacing[1:]  # of a row and of a column, (x, y, z)
    points = making.headers.positions[z] + (np.array(polygon) - 0.5) @ steps.T
    contour = Dataset()
    contour.ContourImageSequence = [_image(making, z)]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
    contour.ContourData = [format_number_as_ds(float(value)) for value in points.ravel()]
    return contour
