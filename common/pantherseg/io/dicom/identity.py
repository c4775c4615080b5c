"""Who a source is of: names for its case that do not say it, and whether folders are of several patients."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pantherseg.errors import InputError
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.io.dicom.naming import IDENTITY, STUDY_NUMBER, identifies
from pantherseg.io.dicom.places import (
    SUFFIX,
    ZIP_SUFFIX,
    Place,
    dicom_files,
    first_dicom,
    is_dicom,
    is_zip,
    places_in,
    without_directory,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# Modalities of results about a series, which may be anonymous ones of the same patient.
RESULTS = ("SEG", "RTSTRUCT")
# How many DICOM files are looked at for one that names the patient.
_MAX_HEADERS = 1000


def neutral_name(source: Path) -> str:
    """Return the name of a source's case: that of its file or folder, unless it contains the patient's name or number.

    In place of such a name it is `study-` and eight digits of the SHA-256 of the study's UID. Raises InputError and
    OSError.
    """
    folder = without_directory(source)
    name = folder.resolve().name
    for suffix in (ZIP_SUFFIX, SUFFIX):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    header = _first_header(source)
    if header is None or not identifies(name, header):
        return name
    return f"study-{hashlib.sha256(str(header.get('StudyInstanceUID', '')).encode()).hexdigest()[:8]}"


def is_of_many_patients(folder: Path) -> bool:
    """Return whether a folder has no DICOM files but subfolders that are of several patients.

    False where pydicom is not installed: reading says so.
    """
    if not folder.is_dir() or any(is_dicom(child) for child in folder.iterdir()):
        return False
    patients: set[str] = set()
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        try:
            header = _first_header(child)
        except InputError:
            return False
        if header is not None:
            patients.add(patient_of(header))
        if len(patients) > 1:
            return True
    return False


def patient_of(header: Dataset) -> str:
    """Return a hash of number, name and birth date, by which patients are told apart."""
    values = [str(header.get(key) or "") for key in ("PatientID", "PatientName", "PatientBirthDate")]
    # The same name may be written in capitals, and with empty parts at its end.
    return hashlib.sha256("\0".join(value.casefold().rstrip("^= ") for value in values).encode()).hexdigest()


def _first_header(source: Path) -> Dataset | None:
    """Return what identifies the patient and the study in the first DICOM file of a source that names a patient.

    A DICOMDIR, and objects such as reports, may name none: where all are so, it is the first with a study, apart from
    RESULTS. None if none can be read. At most _MAX_HEADERS DICOM files are looked at.
    """
    folder = without_directory(source)
    if first_dicom(folder) is None:
        return None
    places = places_in(folder) if folder.is_dir() or is_zip(folder) else [Place(folder)]
    without = None
    with quiet_pydicom(source):
        for _, file in islice(dicom_files(places), _MAX_HEADERS):
            header = _header(file)
            if header is not None and any(header.get(key) for key in IDENTITY):
                return header
            if header is not None and header.get("StudyInstanceUID") and header.get("Modality") not in RESULTS:
                without = without or header
    return without


def _header(file: BinaryIO) -> Dataset | None:
    """Return what identifies the patient and the study in a file; None if it is damaged, which reading it says."""
    import pydicom

    try:
        tags = [*IDENTITY, STUDY_NUMBER, "StudyInstanceUID", "Modality"]
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=tags)
        header.decode()  # values are converted only now
    except Exception:  # of many types
        return None
    return header
