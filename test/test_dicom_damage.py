"""DICOM input that is damaged or odd in a way that must not be passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from conftest import one_line_about
from dicom_files import some_volume, write_slices
from pantherseg.batch import _sources
from pantherseg.errors import InputError
from pantherseg.io import read_image
from pantherseg.io.dicom.choice import SeriesChoice

VOLUME = some_volume((20, 9, 7))


def refusal(source: Path, where: Path | None = None) -> str:
    """Return why a source is refused, in one line about a file of it."""
    with pytest.raises(InputError) as caught:
        read_image(source)
    return one_line_about(where or source, caught.value).partition(f"{where or source}: ")[2]


def test_every_slice_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_slices(VOLUME, tmp_path, shuffled=False)[-1]
    content = path.read_bytes()
    for length in range(140, len(content), 20):  # a missing slice at an end would leave no gap
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=path.name):
            read_image(tmp_path)


def test_a_slice_of_two_classes_is_damaged(tmp_path: Path) -> None:
    path = write_slices(VOLUME, tmp_path, shuffled=False)[-1]
    data = pydicom.dcmread(path)
    data.SOPClassUID = CTImageStorage
    data.save_as(path)
    assert "found two different SOP classes" in refusal(tmp_path, path)


@pytest.mark.parametrize("differs", ["position", "pixels"])
def test_refuses_several_images_with_one_uid(tmp_path: Path, differs: str) -> None:
    paths = write_slices(VOLUME, tmp_path, shuffled=False)
    data = pydicom.dcmread(paths[-2])
    if differs == "position":
        data.ImagePositionPatient = pydicom.dcmread(paths[-1]).ImagePositionPatient
        paths[-1].unlink()
    else:
        data.PixelData = bytes(len(data.PixelData))
    data.save_as(tmp_path / "IM9999")
    assert "found several images with the same UID, also in IM0018" in refusal(tmp_path, tmp_path / "IM9999")


def test_names_no_other_folder_among_those_of_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_slices(VOLUME, tmp_path / name, PatientID=name)
    (tmp_path / "Delta_Dora").mkdir()
    assert len(_sources(tmp_path)[0]) == 2
    assert "1 files or folders" in caplog.text
    assert "Dora" not in caplog.text


@pytest.mark.parametrize("key", ["PatientID", "PatientName", "PatientBirthDate"])
def test_refuses_a_series_of_two_patients(tmp_path: Path, key: str) -> None:
    others = {"PatientID": "8", "PatientName": "Other^Name", "PatientBirthDate": "19500101"}

    def change(data: Dataset, z: int) -> None:
        if z == 5:
            setattr(data, key, others[key])

    write_slices(VOLUME, tmp_path, change=change)
    for uid in ("", "1.2.3.4"):
        with pytest.raises(InputError, match="expected the series of one patient, found 2 patients"):
            read_image(tmp_path, SeriesChoice(uid=uid))


def test_a_name_may_be_written_in_capitals(tmp_path: Path) -> None:
    names = ("Musterfrau^Erika", "MUSTERFRAU^ERIKA^^^")
    write_slices(VOLUME, tmp_path, change=lambda data, z: setattr(data, "PatientName", names[z % 2]))
    assert read_image(tmp_path)[0].array.shape == VOLUME.array.shape
