"""DICOM files, which are not read yet: every command says what they are and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from conftest import one_line_about
from pantherseg.batch import run_batch
from pantherseg.errors import InputError, JobError
from pantherseg.evaluation import evaluate
from pantherseg.grand_challenge import find_input
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.io.dicom.detect import MAX_FILES, is_dicom, refuse_dicom
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import Recipe, Sockets, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

HINT = "which are not read yet; convert the series, for example with dcm2niix or 3D Slicer"
SOCKETS = Sockets(input="abdominal-t1-mri", output="pancreatic-tumor-segmentation")
NAMES = ("IM0001", "IM0002", "IM0003", "IM0004")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(task_recipe(1))


@pytest.fixture
def volume() -> Volume:
    return Volume(np.ones((2, 3, 4), np.uint8), Grid((2, 3, 4), (2.0, 1.0, 1.0)))


def dicom_slice(path: Path) -> Path:
    """Write a slice as scanners do."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.Modality, data.Rows, data.Columns = "MR", 2, 2
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    assert pydicom.dcmread(path).Modality == "MR"
    return path


def series(folder: Path, *names: str) -> Path:
    for name in names or NAMES:
        dicom_slice(folder / name)
    return folder


def in_predict(path: Path, recipe: Recipe, output: Path) -> None:
    run_batch(path, output, Session(recipe, DEMO_WEIGHTS, device="cpu"))


@pytest.mark.fault("inputs", "a folder of DICOM slices instead of a volume", "an error that says what to do")
def test_names_a_folder_of_dicom_slices(tmp_path: Path, recipe: Recipe, volume: Volume) -> None:
    folder = series(tmp_path / "scans")
    write_volume(volume, tmp_path / "mask.mha")
    problem = f"{folder}: the folder contains DICOM slices (IM0001, IM0002, IM0003 and 1 more), {HINT}"
    for read in (
        lambda: in_predict(folder, recipe, tmp_path / "out"),
        lambda: evaluate(folder, tmp_path / "mask.mha"),
        lambda: evaluate(tmp_path / "mask.mha", folder),
        lambda: read_image(folder),  # as `report` does
        lambda: read_labels(folder),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert one_line_about(folder, caught.value) == problem
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("inputs", "a single DICOM file called {name} instead of a volume", "an error that says what to do")
@pytest.mark.parametrize("name", ["slice.dcm", "slice.DCM", "DICOMDIR", "IM0001", "1.2.840.113619"])
def test_names_a_single_dicom_file(tmp_path: Path, recipe: Recipe, name: str) -> None:
    path = dicom_slice(tmp_path / name)
    for read in (
        lambda: in_predict(path, recipe, tmp_path / "out"),
        lambda: evaluate(path, path),
        lambda: read_image(path),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert one_line_about(path, caught.value).startswith(f"{path}: this is a DICOM file, which is not read yet; ")


@pytest.mark.fault("inputs", "DICOM slices in folders below the given one", "an error that names some of them")
def test_looks_for_dicom_slices_in_folders_below(tmp_path: Path, recipe: Recipe) -> None:
    series(tmp_path / "patient/study/series", "1", "2")
    (tmp_path / "patient/notes.txt").write_text("no volume")
    with pytest.raises(InputError, match=rf"DICOM slices \(study/series/1, study/series/2\), {HINT}"):
        in_predict(tmp_path / "patient", recipe, tmp_path / "out")


@pytest.mark.fault("jobs", "a job whose input is a folder of DICOM slices", "an error that says what to do")
@pytest.mark.parametrize("described", [True, False])
def test_names_dicom_slices_in_a_job(tmp_path: Path, described: bool) -> None:
    folder = series(tmp_path / f"images/{SOCKETS.input}")
    if described:
        socket = f'{{"slug": "{SOCKETS.input}", "relative_path": "images/{SOCKETS.input}"}}'
        (tmp_path / "inputs.json").write_text(f'[{{"socket": {socket}, "image": {{"pk": "uuid"}}}}]')
    with pytest.raises(JobError, match=rf"DICOM slices \(.*IM0001, .*\), {HINT}") as caught:
        find_input(tmp_path, SOCKETS)
    one_line_about(folder if described else tmp_path / "images", caught.value)


def test_goes_on_with_the_volumes_beside_dicom_slices(tmp_path: Path, volume: Volume) -> None:
    folder = series(tmp_path / f"images/{SOCKETS.input}")
    write_volume(volume, folder / "scan.mha")
    assert find_input(tmp_path, SOCKETS) == folder / "scan.mha"
    assert evaluate(folder, folder).corrected.dice == 0  # a full mask scores as an empty one


def test_a_folder_without_dicom_is_refused_as_before(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x" * 128 + "DICOM")
    os.mkfifo(tmp_path / "text/pipe")  # opening it would wait for a writer
    (tmp_path / "text/dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match="the folder contains no volume"):
        in_predict(tmp_path / "text", recipe, tmp_path / "out")
    assert not is_dicom(tmp_path / "missing.dcm")


def test_looks_at_a_bounded_number_of_files(tmp_path: Path) -> None:
    for number in range(MAX_FILES):
        (tmp_path / f"{number:04}").touch()
    last = shutil.copy(dicom_slice(tmp_path / "z"), tmp_path / "zz")
    refuse_dicom(tmp_path)
    (tmp_path / "0000").unlink()
    with pytest.raises(InputError, match=r"DICOM slices \(z\)"):
        refuse_dicom(tmp_path)
    with pytest.raises(InputError, match="this is a DICOM file"):
        refuse_dicom(Path(last))
