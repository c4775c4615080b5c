"""Which series of a study is taken, and that nothing but a DICOM object says who the patient is."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.uid import BasicTextSRStorage, MediaStorageDirectoryStorage

from conftest import valid_report
from dicom_files import (
    CORONAL,
    PATIENT,
    SPIN_ECHO,
    STUDY,
    header,
    save,
    some_volume,
    write_enhanced,
    write_slices,
    write_study,
)
from pantherseg.batch import run_batch
from pantherseg.cli import main
from pantherseg.errors import InputError
from pantherseg.grand_challenge.job import find_job
from pantherseg.io import case_name, input_name, read_image, source_files, write_volume
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.io.dicom.select import survey
from pantherseg.io.digest import source_sha256
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "study", STUDY)


def taken(folder: Path, choice: SeriesChoice) -> str | None:
    """Return the description of the series that is taken."""
    found = survey(folder, choice).taken
    return None if found is None else found.series.description


@pytest.mark.parametrize(("task", "description"), [(1, "t1_vibe_fs_tra_ART1"), (2, "t2_tse_fs_tra")])
def test_takes_the_series_of_the_task(study: Path, task: int, description: str) -> None:
    assert taken(study, load_recipe(task_recipe(task)).series) == description


def test_takes_none_where_several_may_be_meant(study: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_image(study, SeriesChoice(weighting="T1", plane="axial", min_slices=16))
    assert str(caught.value) == (
        f"{study}: expected one series, found 3 that may be meant: 1.2.3.5 (t1_vibe_fs_tra_nativ, 20 slices), 1.2.3.6 "
        "(t1_vibe_fs_tra_ART1, 20 slices), 1.2.3.7 (t1_vibe_fs_tra_portalvenous, 20 slices); choose one with --series "
        "UID; `pantherseg dicom list` shows them all"
    )


def test_says_why_none_can_be_meant(study: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_image(study, SeriesChoice(plane="sagittal", min_slices=16))
    assert str(caught.value).startswith(
        f"{study}: expected an MR series (sagittal, at least 16 slices), found none but 1.2.3.1 (localizer, 5 slices): "
        "fewer than 16 slices, 1.2.3.2 (t2_haste_cor, 20 slices): coronal slices, 1.2.3.3 "
    )


@pytest.mark.fault("dicom", "a study without the recipe's phase, but with two others", "an error that names them")
def test_guesses_no_phase(tmp_path: Path) -> None:
    write_study(tmp_path, [STUDY[4], STUDY[6]])
    assert taken(tmp_path, load_recipe(task_recipe(1)).series) is None


@pytest.mark.fault("dicom", "the recipe's series has missing slices, beside another", "an error; no other is taken")
def test_takes_no_other_series_for_an_incomplete_one(tmp_path: Path) -> None:
    write_study(tmp_path, [STUDY[5], STUDY[6]])
    next(iter(sorted((tmp_path / "1").iterdir())[10:])).unlink()
    with pytest.raises(InputError, match=r"19 slices 3 mm apart and 1 missing.*series 1\.2\.3\.1"):
        read_image(tmp_path, load_recipe(task_recipe(1)).series)


def test_an_incomplete_series_in_another_plane_cannot_be_meant(tmp_path: Path) -> None:
    write_study(tmp_path, [STUDY[5], ("t1_vibe_fs_cor_ART", CORONAL, 20, {})])
    next(iter(sorted((tmp_path / "2").iterdir())[10:])).unlink()
    assert taken(tmp_path, load_recipe(task_recipe(1)).series) == "t1_vibe_fs_tra_ART1"


@pytest.mark.parametrize(
    ("description", "tags", "weighting"),
    [
        ("T1 TSE tra", SPIN_ECHO, "T1"),
        ("Ax LAVA-Flex +C", {}, "T1"),
        ("Ax FRFSE T2", {}, "T2"),
        ("HASTE", {}, "T2"),
        ("3D MRCP", SPIN_ECHO, "other"),
        ("T2 DWI", {}, "other"),
        ("T1 T2 map", {}, "other"),
        ("abdomen", SPIN_ECHO, "T2"),
        ("abdomen", {}, "T1"),
        ("abdomen", {"ScanningSequence": "SE", "EchoTime": 30.0}, None),
    ],
)
def test_knows_the_contrast_by_description_and_times(
    tmp_path: Path, description: str, tags: dict[str, object], weighting: str | None
) -> None:
    write_slices(some_volume((2, 3, 3)), tmp_path, SeriesDescription=description, **tags)
    (series,) = survey(tmp_path, SeriesChoice()).scan.series
    assert series.weighting == weighting


def test_knows_the_contrast_of_enhanced_mr(tmp_path: Path) -> None:
    write_enhanced(some_volume(), tmp_path / "a", SeriesDescription="")
    assert survey(tmp_path, SeriesChoice()).scan.series[0].weighting == "T1"


def test_the_files_of_the_chosen_series_decide_the_fingerprint(study: Path) -> None:
    choices = (load_recipe(task_recipe(1)).series, SeriesChoice(uid="1.2.3.6"), SeriesChoice(uid="1.2.3.7"))
    digests = [source_sha256(study, source_files(study, choice)) for choice in choices]
    assert digests[0] == digests[1] != digests[2]


def test_lists_what_is_there_and_what_would_be_taken(study: Path) -> None:
    (study / "notes.txt").write_text("no image")
    result = CliRunner().invoke(main, ["dicom", "list", str(study), "--task", "1"])
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[0].split()[:2] == ["number", "slices"]
    assert lines[6].split() == [
        *("*", "6", "20", "4", "x", "4", "3", "1.25", "1.5", "axial", "T1", "t1_vibe_fs_tra_ART1", "1.2.3.6"),
    ]
    assert [line[0] for line in lines[1:9]] == [" "] * 5 + ["*"] + [" "] * 2
    assert lines[0].endswith("  left out because of")
    assert lines[1].endswith("  1.2.3.1     fewer than 16 slices")
    assert lines[2].endswith("  1.2.3.2     T2 contrast")
    assert lines[-1] == "files that are not DICOM: 1"
    listed = CliRunner().invoke(main, ["dicom", "list", str(study)]).output.splitlines()
    assert listed[-1].startswith(f"none is taken: {study}: expected one series, found 8 that may be meant: ")
    assert not any(line.startswith("*") for line in listed)


@pytest.mark.parametrize(
    "name", ["Musterfrau", "MUSTERFRAU_ERIKA", "erika musterfrau", "export_PID4711007", "pid-4711-007", "19430226 MR"]
)
@pytest.mark.fault("dicom", "a folder that is named after the patient", "a case with a neutral name")
def test_a_case_is_not_named_after_the_patient(tmp_path: Path, name: str) -> None:
    write_slices(some_volume(), tmp_path / name)
    assert case_name(tmp_path / name) == input_name(tmp_path / name) == "study-c47f5b18"


@pytest.mark.parametrize("before", ["DICOMDIR", "a report without a patient", "a damaged file"])
def test_what_lies_before_the_images_does_not_hide_the_patient(tmp_path: Path, before: str) -> None:
    folder = tmp_path / "Musterfrau_Erika_1943"
    write_slices(some_volume(), folder / "IMAGES")
    if before == "DICOMDIR":
        data = Dataset()
        data.SOPClassUID, data.DirectoryRecordSequence = MediaStorageDirectoryStorage, []
        save(data, folder / "DICOMDIR")
        assert case_name(folder / "DICOMDIR") == "study-c47f5b18"
    elif before == "a damaged file":
        (folder / "a.dcm").write_bytes(b"\x08\x00")
    else:
        empty = dict.fromkeys(PATIENT, "")
        save(header(SOPClassUID=BasicTextSRStorage, Modality="SR", **empty), folder / "A")
    assert case_name(folder) == input_name(folder) == "study-c47f5b18"


def test_a_description_that_names_the_patient_still_chooses(tmp_path: Path) -> None:
    write_study(tmp_path, [(f"{description} Erika", *rest) for description, *rest in STUDY])  # type: ignore[misc]
    for task, number in ((1, 6), (2, 3)):
        found = survey(tmp_path, load_recipe(task_recipe(task)).series)
        assert found.taken is not None
        assert (found.taken.series.number, found.taken.series.description) == (number, "(names the patient)")
        assert "Erika" not in repr(found)


def test_lists_what_is_there_and_takes_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    description = "t1_vibe_fs_tra_dynamic_pre_and_post_contrast_breathhold_iso_ART"
    paths = write_slices(some_volume((20, 4, 4)), tmp_path / "disc", SeriesDescription=description)
    data = Dataset()
    data.SOPClassUID, data.DirectoryRecordSequence = MediaStorageDirectoryStorage, []
    save(data, tmp_path / "disc" / "DICOMDIR")
    listed = CliRunner().invoke(main, ["dicom", "list", str(tmp_path), "--task", "1"]).output.splitlines()
    assert len(listed) == 2
    assert listed[1].split()[:2] == ["*", "4"]
    assert " t1_vibe_fs_tra_dyna ... _breathhold_iso_ART  " in listed[1]
    assert listed[1].endswith(" 1.2.3.4")
    assert len(listed[1]) < 120
    assert read_image(tmp_path)[1] == ()  # the DICOMDIR is not another series
    paths[7].unlink()
    listed = CliRunner().invoke(main, ["dicom", "list", str(tmp_path), "--task", "1"]).output.splitlines()
    assert not any(line.startswith("*") for line in listed)
    assert listed[-1].startswith(f"none is taken: {tmp_path}: expected MR slices of one volume at even distances")


def test_a_disc_without_its_files_is_named(tmp_path: Path) -> None:
    data = Dataset()
    data.SOPClassUID, data.DirectoryRecordSequence = MediaStorageDirectoryStorage, []
    save(data, tmp_path / "DICOMDIR")
    with pytest.raises(InputError, match="expected MR images, found no other DICOM file than a DICOMDIR"):
        read_image(tmp_path)


def marked(folder: Path) -> list[str]:
    """Return the files in a folder that contain, or are named after, what identifies the patient."""
    words = {word.casefold() for value in PATIENT.values() for word in value.split("^")}
    found = []
    for path in folder.rglob("*"):
        text = path.name + (path.read_bytes().decode("latin-1") if path.is_file() else "")
        found += [f"{path}: {word}" for word in words if word in text.casefold()]
    return found


@pytest.mark.slow
@pytest.mark.fault("dicom", "a study with a marked name, through predict with a page", "the mark is in no output")
def test_no_output_says_who_the_patient_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labelled_pancreas: tuple[Volume, Volume], one_fold: Recipe
) -> None:

    def quoted(data: Dataset, z: int) -> None:
        data.add(DataElement("PatientAge", "AS", "Musterfrau", validation_mode=IGNORE))  # pydicom quotes such values

    image, _ = labelled_pancreas
    volume = Volume(image.array.round().astype(np.int16), image.grid)
    folder = tmp_path / "Musterfrau^Erika"
    write_slices(volume, folder, PatientComments="Musterfrau", ReferringPhysicianName="Musterfrau")
    assert marked(folder)
    write_slices(volume, folder, SeriesInstanceUID="1.2.5", SeriesDescription="t1 of Musterfrau", change=quoted)
    with caplog.at_level(logging.DEBUG):
        arguments = ["predict", str(folder), str(tmp_path / "out"), "--task", "1", "--report", "--save-probabilities"]
        result = CliRunner().invoke(main, [*arguments, "--series", "1.2.5", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    listed = CliRunner().invoke(main, ["dicom", "list", str(folder)])
    assert "(names the patient)" in listed.output
    assert marked(tmp_path / "out") == []
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".html", ".json", ".mha", ".npz"]
    texts = result.output + listed.output + result.stderr + "\n".join(record.getMessage() for record in caplog.records)
    assert "musterfrau" not in texts.replace(str(folder), "").casefold()
    report = valid_report(tmp_path / "out" / "study-c47f5b18.json")
    assert report["input"] == "study-c47f5b18"


@pytest.mark.slow
def test_the_mask_is_that_of_the_same_volume_file(
    tmp_path: Path, labelled_pancreas: tuple[Volume, Volume], one_fold: Recipe
) -> None:
    image, _ = labelled_pancreas
    volume = Volume(image.array.round().astype(np.int16), image.grid)
    write_volume(volume, tmp_path / "file" / "scan.mha")
    write_enhanced(volume, tmp_path / "enhanced" / "scan" / "a")
    write_slices(Volume(volume.array[::-1], descending(volume)), tmp_path / "classic" / "scan")
    session = Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)
    masks = []
    for source in ("file/scan.mha", "enhanced/scan", "classic/scan"):
        run_batch(tmp_path / source, tmp_path / "out" / source, session)
        masks.append(read_image(tmp_path / "out" / source / "scan.mha")[0])
    assert masks[0].array.any()
    for mask in masks[1:]:
        assert masks[0].grid.difference(mask.grid) == ""
        assert np.array_equal(mask.array, masks[0].array)


def descending(volume: Volume) -> object:
    """Return the grid of the same voxels with the slices in the other order."""
    columns = np.array(volume.grid.direction)
    origin = np.array(volume.grid.origin) + columns[:, 2] * volume.grid.spacing[0] * (len(volume.array) - 1)
    rows = tuple(tuple(map(float, row)) for row in columns * (1, 1, -1))
    return type(volume.grid)(volume.grid.shape, volume.grid.spacing, tuple(map(float, origin)), rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("described", [True, False])
def test_a_job_may_have_an_image_set_of_dicom(tmp_path: Path, described: bool) -> None:
    recipe = load_recipe(task_recipe(1))
    folder = tmp_path / "images" / recipe.sockets.input
    for path in write_slices(some_volume(), folder):
        path.rename(path.with_suffix(".dcm"))
    if described:
        socket = f'{{"slug": "{recipe.sockets.input}", "relative_path": "images/{recipe.sockets.input}"}}'
        (tmp_path / "inputs.json").write_text(f'[{{"socket": {socket}, "image": {{"pk": "uuid"}}}}]')
    source, output = find_job(tmp_path, tmp_path / "out", recipe.sockets)
    assert source == folder
    assert output.mask.name == f"{recipe.sockets.input}.mha"
