"""DICOM input that is damaged or odd in a way that must not be passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import CTImageStorage

from conftest import one_line_about
from dicom_files import some_volume, write_slices
from pantherseg.errors import InputError
from pantherseg.io import read_image

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
