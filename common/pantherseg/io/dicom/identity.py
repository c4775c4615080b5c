"""Who a source is of: names for its case that do not say it, and whether folders are of several patients."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pantherseg.errors import InputError
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.io.dicom.places import DIRECTORY, SUFFIX, ZIP_SUFFIX, dicom_files, first_dicom, is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

# What identifies the patient, and is looked for in the names of files and folders.
IDENTITY = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "PatientBirthName")
# Shorter parts of names are found in other words by chance.
_MIN_LETTERS = 3


def neutral_name(source: Path) -> str:
    """Return the name of a source's case: that of its file or folder, unless it contains the patient's name or number.

    In place of such a name it is `study-` and eight digits of the SHA-256 of the study's UID. Raises InputError and
    OSError.
    """
    folder = source.parent if source.name.upper() == DIRECTORY else source
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
            patients.add(str(header.get("PatientID") or header.get("PatientName") or ""))
        if len(patients) > 1:
            return True
    return False


def _first_header(source: Path) -> Dataset | None:
    """Return what identifies the patient and the study in the first DICOM file of a source; None if it is damaged."""
    place = first_dicom(source)
    if place is None:
        return None
    with quiet_pydicom(source):
        import pydicom

        for _, file in dicom_files([place]):
            try:
                tags = [*IDENTITY, "StudyInstanceUID"]
                header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=tags)
                header.decode()  # values are converted only now
                return header
            except Exception:  # of many types; reading the source says what is wrong with the file
                return None
    return None


def identifies(name: str, header: Dataset) -> bool:
    """Return whether a name or a description contains what a header has about the patient's identity."""
    values = [str(header.get(key) or "") for key in IDENTITY]
    words = {word for value in values for word in re.findall(r"\w+", value.casefold().replace("_", " "))}
    whole = {re.sub(r"\W|_", "", value.casefold()) for value in values}
    plain, letters = name.casefold(), re.sub(r"\W|_", "", name.casefold())
    return any(len(word) >= _MIN_LETTERS and word in plain for word in words) or any(
        len(value) >= _MIN_LETTERS and value in letters for value in whole
    )
