"""DICOM files of scanners and archives, as packages ship them: each is read, or refused with a line that says why."""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from conftest import one_line_about
from pantherseg.errors import InputError
from pantherseg.io import read_image
from pantherseg.io.dicom.choice import SeriesChoice

FOLDERS = {
    "pydicom": "data/test_files",
    "nibabel": "nicom/tests/data",
    "pynetdicom": "tests/dicom_files",
}


def shipped(package: str) -> list[Path]:
    """Return the DICOM files of a package; skip the test where it has none."""
    folder = Path(str(importlib.import_module(package).__file__)).parent / FOLDERS[package]
    files = sorted(path for path in folder.rglob("*.dcm*") if path.is_file()) if folder.is_dir() else []
    if not files:
        pytest.skip(f"the installed {package} ships no DICOM files")
    return files


def unpacked(path: Path, folder: Path) -> Path:
    """Return a folder with a copy of a file, decompressed."""
    target = folder / path.name.removesuffix(".gz")
    folder.mkdir()
    target.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.fault("dicom", "every DICOM file that {package} ships", "a volume, or an error that says why not")
@pytest.mark.parametrize("package", FOLDERS)
def test_reads_or_refuses_what_packages_ship(tmp_path: Path, package: str) -> None:
    for number, path in enumerate(shipped(package)):
        folder = unpacked(path, tmp_path / str(number))
        try:
            read_image(folder)
        except InputError as error:
            problem = error
        else:
            assert "mprage" in path.name, "the only volume among them"
            continue
        damaged = folder / path.name.removesuffix(".gz")
        one_line_about(damaged if str(problem).startswith(f"{damaged}: ") else folder, problem)


def test_reads_the_oblique_multi_frame_volume_of_a_scanner(tmp_path: Path) -> None:
    paths = [path for path in shipped("nibabel") if path.name == "philips_mprage.dcm.gz"]
    folder = unpacked(paths[0], tmp_path / "scan")
    read, _ = read_image(folder)
    assert read.array.shape == (176, 256, 256)
    data = pydicom.dcmread(folder / "philips_mprage.dcm")
    rows, columns = np.array(read.grid.direction)[:, 0], np.array(read.grid.direction)[:, 1]
    normal = np.cross(rows, columns)
    for frame in (0, 60, 175):
        place = data.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient
        z = round(float((np.array(place, float) - read.grid.origin) @ normal / read.grid.spacing[0]))
        assert np.allclose(np.array(read.grid.origin) + normal * read.grid.spacing[0] * z, place, atol=1e-3)
    affine = highdicom.imread(folder / "philips_mprage.dcm").get_volume_geometry().affine
    assert np.allclose(np.abs(affine[:3, 0] @ normal), read.grid.spacing[0], atol=1e-4)
    assert np.allclose(affine[:3, 2] / read.grid.spacing[2], rows, atol=1e-4)


@pytest.mark.parametrize("given", ["", "DICOMDIR", "98892003"])
def test_names_what_is_in_a_disc_of_several_patients(given: str) -> None:
    folder = next(path for path in shipped("pydicom") if path.name == "MR_small.dcm").parent / "dicomdirtests"
    if not folder.is_dir():
        pytest.skip("the installed pydicom ships no DICOMDIR")
    with pytest.raises(InputError) as caught:
        read_image(folder / given)
    text = one_line_about(folder / given, caught.value)
    if given == "98892003":
        assert "FAST LOCALIZER, 1 slice): fewer than 2 slices" in text
    else:
        assert "expected the series of one patient, found 2 patients" in text
    # An MR localizer of three planes with too few slices in each.
    with pytest.raises(InputError, match=r"expected one series, found \d that may be meant"):
        read_image(folder, SeriesChoice(uid="1.3.6.1.4.1.5962.1.1.0.0.0.1196533885.18148.0.17"))
