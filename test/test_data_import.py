"""Importing published data sets, against SimpleITK, nibabel and nnU-Net's own check."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from conftest import SmallDisk, one_line_about
from data_sets import (
    PANCREAS_VOXELS,
    SHAPE,
    TUMOUR_VOXELS,
    image_of,
    panther_labels,
    tumour_centre,
    voxels,
    write_itk,
    write_nibabel,
    write_panther,
)
from pantherseg.datasets.importing import REPORT, ImportReport, Source, import_data
from pantherseg.datasets.layouts import LAYOUTS, Found, layout
from pantherseg.datasets.raw import Crop, RawCase, RawDataset, new_dataset
from pantherseg.datasets.splits import read_splits, split_dataset
from pantherseg.errors import InputError, OutputError
from pantherseg.io import read_labels, read_volume
from pantherseg.labels import LABEL_MAPS
from pantherseg.phantom import write_dataset
from pantherseg.training.graph import DataSource
from pantherseg.volume import Grid, Volume

NAMES = ("10000_0001", "10001_0001")
TO_MSD = np.array([0, 2, 1], np.uint8)
Damage = Callable[[Path], object]


def imported(tmp_path: Path, *sources: Source, **options: object) -> ImportReport:
    return import_data(sources, tmp_path / "raw", 901, "TEST", **options)  # type: ignore[arg-type]


def counts(path: Path) -> list[int]:
    """Return how many voxels have each label, read with SimpleITK."""
    return np.bincount(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).ravel(), minlength=3).tolist()


def write_msd(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_nibabel(folder / "imagesTr" / f"{name}.nii.gz", voxels(number))
        write_nibabel(folder / "labelsTr" / f"{name}.nii.gz", TO_MSD[panther_labels()])
    return folder


@pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("ImagesTr", "LabelsTr")])
def test_imports_panther_with_links_to_the_images(tmp_path: Path, images: str, labels: str) -> None:
    source = write_panther(tmp_path / "panther", *NAMES, images=images, labels=labels)
    report = imported(tmp_path, Source("panther", source))
    assert (report.imported, report.linked, report.refused) == ([*NAMES], [*NAMES], [])
    dataset = RawDataset.open(tmp_path / "raw" / "Dataset901_TEST")
    assert dataset.folder == report.dataset
    assert [case.patient for case in dataset.cases.values()] == ["10000", "10001"]
    for name in NAMES:
        original = source / images / f"{name}_0000.mha"
        assert dataset.image_path(name).readlink() == original.resolve()
        assert dataset.cases[name].origin == str(original)
        label = read_labels(dataset.label_path(name))
        np.testing.assert_array_equal(label.array, panther_labels())
        assert label.array.dtype == np.uint8
    assert json.loads((report.dataset / "dataset.json").read_text()) == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "tumour": 1, "pancreas": 2},
        "numTraining": 2,
        "file_ending": ".mha",
        "orientation": "LPS",
    }
    assert json.loads((report.dataset / REPORT).read_text()) == {
        "sources": [f"panther={source}"],
        "labels": "tumour+pancreas",
        "imported": 2,
        "linked": 2,
        "refused": [],
        "changed": {},
        "label_names": {},
    }


def test_phantoms_come_in_the_layout_of_panther(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", task=2, cases=1, seed=3, size="small", organs=True)
    report = imported(tmp_path, Source("panther", tmp_path / "data"))
    assert report.linked == ["10003"]
    report = import_data([Source("panther-organs", tmp_path / "data")], tmp_path / "raw", 903, "O", labels="organs")
    dataset = RawDataset.open(report.dataset)
    assert dataset.labels == LABEL_MAPS["organs"]
    organs = read_labels(tmp_path / "data" / "organsTr" / "10003.mha")
    np.testing.assert_array_equal(read_labels(dataset.label_path("10003")).array, organs.array)


@pytest.mark.slow
@pytest.mark.parametrize("layout_name", ["panther", "msd"])
def test_nnunets_own_check_accepts_the_data_set(
    tmp_path: Path, layout_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if layout_name == "panther":
        source = write_panther(tmp_path / "source", NAMES[0])
        write_panther(tmp_path / "source", NAMES[1], order="SRA")
    else:
        source = write_msd(tmp_path / "source", "pancreas_001", "pancreas_004")
    report = imported(tmp_path, Source(layout_name, source))
    verify_dataset_integrity(str(report.dataset), num_processes=1)
    printed = "".join(capfd.readouterr()).lower()
    assert "done" in printed
    assert "warning" not in printed
    assert "error:" not in printed
    dataset = RawDataset.open(report.dataset)
    for name in dataset.cases:
        array, properties = SimpleITKIO().read_images([str(dataset.image_path(name))])
        np.testing.assert_array_equal(array[0], dataset.image(name).array)
        assert properties["spacing"] == pytest.approx([3.0, 1.25, 1.0])


@pytest.mark.parametrize("labels", ["tumour+pancreas", "tumour"])
def test_relabels_the_msd_to_the_order_of_panther(tmp_path: Path, labels: str) -> None:
    source = write_msd(tmp_path / "Task07_Pancreas", "pancreas_001", "pancreas_004")
    (source / "imagesTr" / "._pancreas_001.nii.gz").write_bytes(b"what macOS adds to archives")
    report = imported(tmp_path, Source("msd", source), labels=labels)
    assert (report.imported, report.refused) == (["pancreas_001", "pancreas_004"], [])
    assert RawDataset.open(report.dataset).cases["pancreas_004"].patient == "pancreas_004"
    path = report.dataset / "labelsTr" / "pancreas_001.nii.gz"
    assert counts(path)[1:] == [TUMOUR_VOXELS, PANCREAS_VOXELS if labels == "tumour+pancreas" else 0]
    np.testing.assert_allclose(
        tumour_centre(path), tumour_centre(source / "labelsTr" / "pancreas_001.nii.gz", number=2), atol=1e-3
    )


def test_relabels_panorama_and_prefers_label_maps_by_hand(tmp_path: Path) -> None:
    source = tmp_path / "panorama"
    by_hand = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 7
    for batch, name in (("batch_1", "100000_00001"), ("batch_2", "100001_00001")):
        write_nibabel(source / batch / f"{name}_0000.nii.gz", voxels(int(name[:6])))
        write_nibabel(source / "labels" / "automatic_labels" / f"{name}.nii.gz", np.full(SHAPE, 4, np.uint8))
    write_nibabel(source / "labels" / "manual_labels" / "100000_00001.nii.gz", by_hand)
    report = imported(tmp_path, Source("panorama", source), orientation="RAS")
    assert (report.imported, report.refused) == (["100000_00001", "100001_00001"], [])
    assert report.linked == report.imported, "the files are in the order RAS already"
    expected = np.array([0, 1, 0, 0, 2, 2, 0], np.uint8)[by_hand]
    stored = nib.load(report.dataset / "labelsTr" / "100000_00001.nii.gz")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), expected.transpose(2, 1, 0))
    assert counts(report.dataset / "labelsTr" / "100001_00001.nii.gz") == [0, 0, np.prod(SHAPE)]
    assert RawDataset.open(report.dataset).cases["100001_00001"].patient == "100001"
    with_tumour = import_data(
        [Source("panorama", source)], tmp_path / "raw", 902, "LESIONS", labels="tumour", require_tumour=True
    )
    assert (with_tumour.imported, [refusal.case for refusal in with_tumour.refused]) == (
        ["100000_00001"],
        ["100001_00001"],
    )


def test_a_case_without_a_tumour_is_imported_unless_a_tumour_is_required(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    write_itk(source / "labelsTr" / f"{NAMES[1]}.mha", np.where(panther_labels() == 2, 2, 0).astype(np.uint8))
    assert imported(tmp_path, Source("panther", source)).refused == []
    report = import_data([Source("panther", source)], tmp_path / "raw", 902, "T", require_tumour=True)
    assert report.imported == [NAMES[0]]
    assert report.refused[0].reason.endswith(f"{NAMES[1]}.mha: expected a tumour, found none")


@pytest.mark.parametrize(("image_order", "label_order"), [("RAS", "RAS"), ("SRA", "LPS"), ("LPS", "PIL")])
def test_turns_volumes_of_any_voxel_order(tmp_path: Path, image_order: str, label_order: str) -> None:
    source = tmp_path / "panther"
    write_itk(source / "imagesTr" / "10000_0001_0000.mha", voxels(1), image_order)
    write_itk(source / "labelsTr" / "10000_0001.mha", panther_labels(), label_order)
    report = imported(tmp_path, Source("panther", source))
    assert report.linked == ([] if image_order != "LPS" else ["10000_0001"])
    image = sitk.ReadImage(str(report.dataset / "imagesTr" / "10000_0001_0000.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels(1))
    assert image.GetPixelID() == sitk.sitkInt16, "whole numbers stay whole numbers"
    label = sitk.ReadImage(str(report.dataset / "labelsTr" / "10000_0001.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), panther_labels())
    for one in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(label, one)() == pytest.approx(getattr(image, one)())
    assert image.GetOrigin() == pytest.approx((-20, 30, 100))


def test_imports_the_images_without_labels(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", NAMES[0])
    write_panther(source, "10002_0001", labels=None)
    report = imported(tmp_path, Source("panther-unlabelled", source))
    assert report.imported == ["10002_0001"], "the other image has a label"
    dataset = RawDataset.open(report.dataset)
    assert not dataset.has_labels
    assert dataset.label("10002_0001") is None
    alone = write_panther(tmp_path / "alone", *NAMES, images="ImagesTr_unlabeled", labels=None)
    flat = alone / "ImagesTr_unlabeled"
    for number, folder in ((902, alone), (903, flat)):
        assert import_data([Source("panther-unlabelled", folder)], tmp_path / "raw", number, "U").linked == [*NAMES]


def test_a_case_name_in_two_sources_gets_the_layout_in_front(tmp_path: Path) -> None:
    first = write_panther(tmp_path / "first", "a_1", "b_1")
    second = tmp_path / "second"
    write_nibabel(second / "imagesTr" / "a_1.nii.gz", voxels(77))
    write_nibabel(second / "labelsTr" / "a_1.nii.gz", TO_MSD[panther_labels()])
    report = imported(tmp_path, Source("panther", first), Source("msd", second))
    assert report.imported == ["panther_a_1", "b_1", "msd_a_1"]
    assert RawDataset.open(report.dataset).file_ending == ".mha", "which most of the images have"
    again = import_data([Source("panther", first), Source("panther", first)], tmp_path / "raw", 902, "TWICE")
    assert again.imported == ["panther_a_1", "panther_b_1"]
    assert [refusal.case for refusal in again.refused] == ["panther_a_1", "panther_b_1"]
    assert "the name of this case is also that of" in again.refused[0].reason


def test_a_case_name_in_two_raw_data_sets_gets_their_names_in_front(tmp_path: Path) -> None:
    sources = []
    for number, name in ((1, "CT"), (2, "MR")):
        with new_dataset(
            tmp_path / "raw", number, name, labels=LABEL_MAPS["tumour+pancreas"], orientation="LPS", file_ending=".mha"
        ) as new:
            image = read_volume(write_itk(tmp_path / f"{name}.mha", voxels(number)))
            new.add("a_1", RawCase(patient=name), image, Volume(panther_labels(), image.grid))
        sources.append(Source("raw", new.target))
    assert imported(tmp_path, *sources).imported == ["CT_a_1", "MR_a_1"]


def test_a_case_that_cannot_be_used_leaves_its_name_to_another_source(tmp_path: Path) -> None:
    first = write_panther(tmp_path / "first", "1_1", "2_1")
    (first / "labelsTr" / "2_1.mha").unlink()
    second = write_panther(tmp_path / "second", "2_1", "3_1")
    report = imported(tmp_path, Source("panther", first), Source("panther", second))
    assert report.imported == ["1_1", "2_1", "3_1"]
    assert [refusal.case for refusal in report.refused] == ["2_1"]


@pytest.mark.fault("data", "a folder is imported in two layouts", "each image once")
def test_refuses_an_image_that_comes_in_by_two_layouts(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    report = imported(tmp_path, Source("panther", source), Source("msd", source))
    assert report.imported == [f"panther_{name}" for name in NAMES]
    assert all("this is the same image as" in refusal.reason for refusal in report.refused)


@pytest.mark.fault("data", "a pseudo-labelled copy of a case comes first", "the case with the label by an expert")
def test_prefers_the_label_of_an_expert_to_a_pseudo_label(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    with new_dataset(
        tmp_path / "raw", 5, "P", labels=LABEL_MAPS["tumour+pancreas"], orientation="LPS", file_ending=".mha"
    ) as new:
        image = read_volume(source / "imagesTr" / f"{NAMES[0]}_0000.mha")
        label = Volume(np.where(panther_labels() > 0, 2, 0).astype(np.uint8), image.grid)
        new.add("copy", RawCase(patient="10000", pseudo=True), image, label)
    report = imported(tmp_path, Source("raw", new.target), Source("panther", source))
    assert report.imported == [*NAMES]
    assert counts(report.dataset / "labelsTr" / f"{NAMES[0]}.mha")[1] == TUMOUR_VOXELS
    assert [refusal.case for refusal in report.refused] == ["copy"]


def raw_of_nnunet(folder: Path, labels: dict[str, int], *names: str) -> Path:
    """Write a raw data set as nnU-Net's users do, with the labels of PANTHER."""
    dataset = write_panther(folder / "Dataset050_NNUNET", *names)
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": len(names), "file_ending": ".mha"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    return dataset


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ({"background": 0, "Tumor": 1, "PANCREAS": 2}, ["tumour", "pancreas"]),
        ({"background": 0, "PDAC": 1, "pancreatic_parenchyma": 2}, ["tumour", "pancreas"]),
        ({"background": 0, "pancreas": 2, "liver lesion": 3, "tumour": 1}, ["tumour", "pancreas", "background"]),
        ({"background": 0, "pancreatic cancer": 1, "pancreas": 2, "vein": 3}, ["tumour", "pancreas", "background"]),
        ({"background": 0, "lesion": 1, "pancreas": 2, "pancreatic duct": 3}, ["tumour", "pancreas", "pancreas"]),
    ],
)
def test_takes_the_labels_of_a_raw_data_set_by_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: dict[str, int], taken: list[str]
) -> None:
    caplog.set_level("INFO")
    source = raw_of_nnunet(tmp_path, names, "1_1")
    array = panther_labels()
    array[4:6] = len(names) - 1
    write_itk(source / "labelsTr" / "1_1.mha", array)
    report = imported(tmp_path, Source("raw", source))
    numbers = LABEL_MAPS["tumour+pancreas"]
    expected = np.array([0, *(numbers[name] for name in taken)], np.uint8)[array]
    np.testing.assert_array_equal(read_labels(report.dataset / "labelsTr" / "1_1.mha").array, expected)
    mapping = dict(zip(sorted(names, key=names.__getitem__), ["background", *taken], strict=True))
    assert json.loads((report.dataset / REPORT).read_text())["label_names"] == {f"raw={source}": mapping}
    (line,) = [message for message in caplog.messages if "labels taken: " in message]
    assert all(f"{stated} as {name}" in line for stated, name in mapping.items())


@pytest.mark.fault("data", "a raw data set has a label 'ignore'", "an error: these voxels are not background")
def test_refuses_a_raw_data_set_with_voxels_to_ignore(tmp_path: Path) -> None:
    source = raw_of_nnunet(tmp_path, {"background": 0, "tumour": 1, "pancreas": 2, "ignore": 3}, "1_1")
    with pytest.raises(
        InputError, match=r"dataset.json: expected labels of voxels that are known, found 'ignore'; rem"
    ):
        imported(tmp_path, Source("raw", source))


def test_passes_on_the_splits_of_a_single_raw_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number}_1" for number in range(4)]
    source = raw_of_nnunet(tmp_path, {"background": 0, "tumour": 1, "pancreas": 2}, *names)
    splits = split_dataset(RawDataset.open(source), folds=4, seed=7)
    report = imported(tmp_path, Source("raw", source), keep_splits=True)
    assert read_splits(report.dataset / "splits_final.json") == splits
    other = Source("panther", write_panther(tmp_path / "panther", "9_1"))
    both = import_data([Source("raw", source), other], tmp_path / "raw", 902, "BOTH", keep_splits=True)
    assert not (both.dataset / "splits_final.json").exists()
    write_itk(source / "labelsTr" / "0_1.mha", np.zeros(SHAPE, np.uint8))
    fewer = import_data([Source("raw", source)], tmp_path / "raw", 903, "FEWER", keep_splits=True)
    assert fewer.imported == names[1:]
    assert not (fewer.dataset / "splits_final.json").exists()
    assert any(message.startswith("the splits are not kept, because of refused") for message in caplog.messages)
    (source / "splits_final.json").write_text('[{"train": ["0_1"], "val": ["7_1"]}]')
    with pytest.raises(
        InputError, match=r"splits_final.json: expected only cases of the data set in fold 0, found others: 7_1"
    ):
        import_data([Source("raw", source)], tmp_path / "raw", 904, "WRONG", keep_splits=True)


def test_a_raw_data_set_keeps_what_is_known_about_its_cases(tmp_path: Path) -> None:
    labels = Volume(TO_MSD[panther_labels()], Grid(SHAPE, (3.0, 1.25, 1.0)))
    crop = Crop(start=(1, 0, 2), stop=(7, 8, 12), shape=(9, 8, 13), by_reference=True)
    known = RawCase(patient="p7", origin="first.mha", pseudo=True, crop=crop, remark="by a model")
    names = {"background": 0, "pancreas": 1, "cancer": 2}
    with new_dataset(tmp_path / "raw", 5, "MSD", labels=names, orientation="LPS", file_ending=".nii.gz") as new:
        new.add("a", known, Volume(voxels(0).astype(np.float32), labels.grid), labels)
    source = Source("raw", tmp_path / "raw" / "Dataset005_MSD")
    same = imported(tmp_path, source)
    dataset = RawDataset.open(same.dataset)
    assert (dataset.cases, same.linked, dataset.labels) == ({"a": known}, ["a"], LABEL_MAPS["tumour+pancreas"])
    np.testing.assert_array_equal(read_labels(dataset.label_path("a")).array, panther_labels())
    turned = import_data([source], tmp_path / "raw", 902, "RAS", orientation="RAS")
    expected = Crop(start=(1, 0, 1), stop=(7, 8, 11), shape=(9, 8, 13), by_reference=True)
    assert RawDataset.open(turned.dataset).cases["a"].crop == expected


@pytest.mark.fault(
    "data",
    "a raw data set has several scans of a patient and no cases.json",
    "patients by the names of the cases, and a line that says so",
)
def test_assumes_the_patients_of_a_data_set_of_nnunet_by_the_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_panther(tmp_path / "panther", *NAMES, "10000_0002", "case_001", "case_002")
    report = imported(tmp_path, Source("panther", source))
    patients = {name: case.patient for name, case in RawDataset.open(report.dataset).cases.items()}
    assert set(patients.values()) == {"10000", "10001", "case_001", "case_002"}
    (report.dataset / "cases.json").unlink()
    again = import_data([Source("raw", report.dataset)], tmp_path / "raw", 902, "AGAIN")
    assert {name: case.patient for name, case in RawDataset.open(again.dataset).cases.items()} == patients
    assert f"{report.dataset} has no cases.json: its 5 cases are assumed to be of 4 patients" in caplog.messages
    for split in split_dataset(RawDataset.open(again.dataset), folds=2):
        assert {patients[name] for name in split["train"]}.isdisjoint(patients[name] for name in split["val"])


def test_an_image_that_must_be_corrected_is_written(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", NAMES[0])
    array = voxels(1).astype(np.float32)
    array[0, 0, 0] = np.nan
    write_itk(source / "imagesTr" / f"{NAMES[0]}_0000.mha", array)
    report = imported(tmp_path, Source("panther", source))
    assert (report.imported, report.linked) == ([NAMES[0]], [])
    assert "NaN" in report.changed[NAMES[0]][0]
    assert np.isfinite(
        sitk.GetArrayFromImage(sitk.ReadImage(str(RawDataset.open(report.dataset).image_path(NAMES[0]))))
    ).all()


def test_an_image_that_nnunets_reader_finds_elsewhere_is_written(tmp_path: Path) -> None:
    source = write_msd(tmp_path / "msd", "pancreas_001", "pancreas_002")
    for folder in ("imagesTr", "labelsTr"):
        path = source / folder / "pancreas_001.nii.gz"
        image = nib.load(path)
        image.set_qform(image.affine + 0.05 * np.eye(4, k=3), code=1)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    stored = source / "imagesTr" / "pancreas_001.nii.gz"
    found, wanted = sitk.ReadImage(str(stored)).GetOrigin(), np.array(nib.load(stored).affine[:3, 3]) * (-1, -1, 1)
    assert np.abs(found - wanted).max() > 0.01, "SimpleITK takes the qform"
    report = imported(tmp_path, Source("msd", source), orientation="RAS")
    assert report.linked == ["pancreas_002"]
    assert report.changed["pancreas_001"][0].startswith("SimpleITK, with which nnU-Net reads images, finds origin")
    written = sitk.ReadImage(str(report.dataset / "imagesTr" / "pancreas_001_0000.nii.gz"))
    np.testing.assert_allclose(written.GetOrigin(), wanted, atol=1e-4)


def test_an_image_in_which_nnunets_reader_adds_an_intercept_is_written(tmp_path: Path) -> None:
    source = write_msd(tmp_path / "msd", "pancreas_001", "pancreas_002")
    stored = source / "imagesTr" / "pancreas_001.nii.gz"
    content = bytearray(gzip.decompress(stored.read_bytes()))
    content[112:120] = struct.pack("<ff", 0.0, 5.0)  # scl_slope and scl_inter
    stored.write_bytes(gzip.compress(bytes(content)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(stored))), voxels(0) + 5.0)
    report = imported(tmp_path, Source("msd", source), orientation="RAS")
    assert report.linked == ["pancreas_002"]
    assert report.changed["pancreas_001"][0].endswith("finds voxels that are larger by 5, although scl_slope is 0")
    written = sitk.ReadImage(str(report.dataset / "imagesTr" / "pancreas_001_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), nib.load(stored).get_fdata().transpose(2, 1, 0))


def test_a_file_with_its_ending_in_upper_case_is_linked(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    image = source / "imagesTr" / f"{NAMES[1]}_0000.mha"
    image.rename(image.with_suffix(".MHA"))
    report = imported(tmp_path, Source("panther", source))
    assert (report.linked, report.changed) == ([*NAMES], {})
    link = report.dataset / "imagesTr" / f"{NAMES[1]}_0000.mha"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(link))), image_of(NAMES[1]))


def test_an_oblique_label_map_is_turned_as_its_image(tmp_path: Path) -> None:
    source = tmp_path / "panther"
    for angle, path, array in (
        (np.pi / 4 + 1e-4, "imagesTr/1_1_0000.mha", image_of("1_1")),
        (np.pi / 4 - 1e-4, "labelsTr/1_1.mha", panther_labels()),
    ):
        image = sitk.GetImageFromArray(array)
        sine, cosine = float(np.sin(angle)), float(np.cos(angle))
        image.SetDirection((cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0))
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(source / path))
    report = imported(tmp_path, Source("panther", source))
    assert report.imported == ["1_1"]
    written = sitk.ReadImage(str(report.dataset / "imagesTr" / "1_1_0000.mha"))
    values = sitk.GetArrayFromImage(written)[
        sitk.GetArrayFromImage(sitk.ReadImage(str(report.dataset / "labelsTr" / "1_1.mha"))) == 1
    ]
    assert sorted(values) == sorted(image_of("1_1")[panther_labels() == 1])


def test_takes_only_the_nearest_folder_for_automatic_labels(tmp_path: Path) -> None:
    source = tmp_path / "automatic_and_manual"
    name = "100000_00001"
    write_nibabel(source / "images" / f"{name}_0000.nii.gz", voxels(1))
    write_nibabel(source / "automatic" / "semiautomatic" / f"{name}.nii.gz", np.full(SHAPE, 4, np.uint8))
    write_nibabel(source / "automatic_labels" / f"{name}.nii.gz", np.full(SHAPE, 1, np.uint8))
    report = imported(tmp_path, Source("panorama", source))
    assert counts(report.dataset / "labelsTr" / f"{name}.nii.gz") == [0, 0, np.prod(SHAPE)]


def without(pattern: str) -> Damage:
    return lambda folder: (folder / pattern).unlink()


def with_labels(change: Callable[[np.ndarray], np.ndarray], **options: tuple[float, ...]) -> Damage:
    path = f"labelsTr/{NAMES[1]}.mha"
    return lambda folder: write_itk(folder / path, change(panther_labels()), **options)  # type: ignore[arg-type]


def with_image(array: np.ndarray) -> Damage:
    return lambda folder: write_itk(folder / f"imagesTr/{NAMES[1]}_0000.mha", array)


def four_dimensions(folder: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False)
    sitk.WriteImage(image, str(folder / f"imagesTr/{NAMES[1]}_0000.mha"))


def truncate(folder: Path) -> None:
    path = folder / f"imagesTr/{NAMES[1]}_0000.mha"
    path.write_bytes(path.read_bytes()[:-20])


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/a.mha")


REFUSED = {
    "an image has no label map": (without(f"labelsTr/{NAMES[1]}.mha"), "one label map of this case, found none"),
    "a label map has no image": (without(f"imagesTr/{NAMES[1]}_0000.mha"), "one image of this case, found none"),
    "a label map lies elsewhere than its image": (
        with_labels(lambda labels: labels, origin=(-20.0, 30.0, 103.0)),
        "expected the grid of its image, found origin",
    ),
    "a label map has fewer slices than its image": (
        with_labels(lambda labels: labels[:5]),
        "expected the grid of its image, found size (5, 8, 10) (z, y, x) instead of (6, 8, 10)",
    ),
    "a label map has an unknown value": (
        with_labels(lambda labels: np.where(labels == 1, 7, labels)),
        "expected the labels 0 background, 1 tumour, 2 pancreas, found 7",
    ),
    "a label map is empty": (with_labels(np.zeros_like), "expected at least one labelled voxel, found background only"),
    "an image is constant": (with_image(np.full(SHAPE, 3, np.int16)), "found the same value in every voxel"),
    "an image is the same as another": (with_image(image_of(NAMES[0])), "this is the same image as"),
    "an image has four dimensions": (four_dimensions, "expected a 3-D volume"),
    "an image is truncated": (truncate, "the file is truncated or damaged, copy it again"),
    "an image is a link to a file that does not exist": (
        lambda folder: dangling(folder / f"imagesTr/{NAMES[1]}_0000.mha"),
        f"{NAMES[1]}_0000.mha is a link to /nowhere/a.mha, which does not exist",
    ),
    "a label map is a link to a file that does not exist": (
        lambda folder: dangling(folder / f"labelsTr/{NAMES[1]}.mha"),
        f"{NAMES[1]}.mha is a link to /nowhere/a.mha, which does not exist",
    ),
    "a file has another name": (
        lambda folder: (folder / f"imagesTr/{NAMES[1]}_0000.mha").rename(folder / f"imagesTr/{NAMES[1]}.mha"),
        "expected a file name such as <case>_0000.mha",
    ),
}


@pytest.mark.fault("data", "{id}", "the other cases; a line and import.json name the one that was refused, and why")
@pytest.mark.parametrize(("damage", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_a_case_that_cannot_be_used(
    tmp_path: Path, damage: Damage, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    damage(source)
    report = imported(tmp_path, Source("panther", source))
    assert report.imported == [NAMES[0]]
    (refusal,) = report.refused
    assert refusal.case == NAMES[1]
    assert reason in refusal.reason
    assert refusal.reason.startswith(f"{source}/")
    assert len(refusal.reason.splitlines()) == 1
    assert caplog.messages == [f"refused: {refusal.reason}"]
    written = json.loads((report.dataset / REPORT).read_text())
    assert written["refused"] == [{"source": f"panther={source}", "case": NAMES[1], "reason": refusal.reason}]
    assert list(RawDataset.open(report.dataset).cases) == [NAMES[0]]


def test_the_same_image_in_another_voxel_order_is_refused(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", NAMES[0])
    write_itk(
        source / "imagesTr" / f"{NAMES[1]}_0000.mha",
        image_of(NAMES[0]),
        "PIR",
    )
    write_itk(source / "labelsTr" / f"{NAMES[1]}.mha", panther_labels())
    (refusal,) = imported(tmp_path, Source("panther", source)).refused
    assert "this is the same image as" in refusal.reason


def empty(folder: Path) -> None:
    for path in folder.rglob("*.mha"):
        path.unlink()


SOURCES = {
    "missing": (shutil.rmtree, "expected a folder, found no such folder"),
    "without labelsTr": (lambda folder: shutil.rmtree(folder / "labelsTr"), "a folder labelsTr in it, found none"),
    "without volumes": (empty, "expected cases in the layout panther, found none"),
    "with two folders for the images": (
        lambda folder: write_panther(folder, "7_1", images="ImagesTr"),
        "expected one folder imagesTr, found ImagesTr and imagesTr; import them one by one",
    ),
}


@pytest.mark.fault("data", "a folder to import is {id}", "an error that names the folder, and no data set")
@pytest.mark.parametrize(("damage", "reason"), SOURCES.values(), ids=SOURCES.keys())
def test_refuses_a_source_that_is_not_in_its_layout(tmp_path: Path, damage: Damage, reason: str) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    damage(source)
    with pytest.raises(InputError) as caught:
        imported(tmp_path, Source("panther", source))
    assert reason in one_line_about(source, caught.value)
    assert not (tmp_path / "raw").exists()


@pytest.mark.fault("data", "every case is refused, or one with --strict", "an error with the first reason; no data set")
@pytest.mark.parametrize("strict", [True, False])
def test_imports_nothing_if_no_case_is_left_or_if_strict(tmp_path: Path, strict: bool) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    for path in sorted((source / "labelsTr").iterdir())[: 1 if strict else 2]:
        write_itk(path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError) as caught:
        imported(tmp_path, Source("panther", source), strict=strict)
    text = one_line_about(tmp_path / "raw" / "Dataset901_TEST", caught.value)
    assert f"{1 if strict else 2} of 2 cases were refused, the first: {source}" in text
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("data", "a link in a raw data set without cases.json is broken", "an error that names the link")
def test_refuses_a_raw_data_set_with_a_broken_link(tmp_path: Path) -> None:
    source = raw_of_nnunet(tmp_path, {"background": 0, "tumour": 1, "pancreas": 2}, *NAMES)
    dangling(source / "imagesTr" / f"{NAMES[1]}_0000.mha")
    with pytest.raises(InputError, match=f"{NAMES[1]}_0000.mha: expected an image, found a link to /nowhere/a.mha"):
        imported(tmp_path, Source("raw", source))


def test_names_the_files_that_are_no_volumes_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    for name in ("imagesTr/a.dcm", "imagesTr/b.nii.bz2", "labelsTr/readme.txt", "labelsTr/x.csv", "labelsTr/.hidden"):
        (source / name).write_bytes(b"something")
    assert imported(tmp_path, Source("panther", source)).refused == []
    assert caplog.messages == [
        f"panther={source}: 4 files are no volumes and are left out: a.dcm, b.nii.bz2, readme.txt and 1 more"
    ]


# Without these capabilities, root may not read what others may not.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
FIND_CASES = """
import sys
from pathlib import Path
from pantherseg.datasets.layouts import find_cases
from pantherseg.errors import InputError
try:
    find_cases(sys.argv[1], Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(bool(BOUND) and shutil.which("setpriv") is None, reason="no setpriv")
@pytest.mark.fault("data", "a folder of a source may not be read", "an error that names the folder; no case is lost")
@pytest.mark.parametrize(("name", "folder"), [("panther", "imagesTr"), ("panorama", "batch_1"), ("panorama", ".")])
def test_refuses_folders_that_cannot_be_read(tmp_path: Path, name: str, folder: str) -> None:
    source = write_panther(tmp_path / "source", *NAMES)
    write_nibabel(source / "batch_1" / "100000_00001_0000.nii.gz", voxels(1))
    write_nibabel(source / "labels" / "100000_00001.nii.gz", np.full(SHAPE, 4, np.uint8))
    closed = source / folder
    closed.chmod(0)
    command = [*BOUND, sys.executable, "-c", FIND_CASES, name, str(source)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    closed.chmod(0o755)
    assert printed == f"{closed}: expected a file or folder that can be read, found Permission denied\n"


@pytest.mark.fault("data", "the new data set would lie in a folder to import", "an error before anything is read")
def test_refuses_to_write_into_a_source(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    with pytest.raises(OutputError, match=r"the new data set would be inside .*/panther, which is to be imported"):
        import_data([Source("panther", source)], source / "raw", 901, "TEST")


def test_refuses_sources_that_do_not_go_together(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    more = write_panther(tmp_path / "more", "10009_0001", labels=None)
    with pytest.raises(InputError, match="more: images without labels can only be imported into a data set of"):
        imported(tmp_path, Source("panther", source), Source("panther-unlabelled", more))
    with pytest.raises(InputError, match="expected the labels organs, found background, tumour, pancreas"):
        imported(tmp_path, Source("panther", source), labels="organs")
    with pytest.raises(InputError, match="expected labels of tumours, which are required, found images without labels"):
        imported(tmp_path, Source("panther-unlabelled", more), require_tumour=True)
    with pytest.raises(InputError, match=r"one of the layouts panther, .*, found 'other'"):
        imported(tmp_path, Source("other", source))


@pytest.mark.fault("data", "the number of the new data set is another one's", "an error before anything is read")
def test_refuses_a_data_set_that_exists_and_a_number_that_is_taken(tmp_path: Path) -> None:
    source = Source("panther", write_panther(tmp_path / "panther", *NAMES))
    imported(tmp_path, source)
    with pytest.raises(OutputError, match="Dataset901_TEST: expected a new folder, found an existing one; move"):
        imported(tmp_path, source)
    with pytest.raises(OutputError, match="Dataset901_B: the number 901 belongs to Dataset901_TEST"):
        import_data([source], tmp_path / "raw", 901, "B")
    with pytest.raises(OutputError, match="expected a number from 1 to 999 and a name of letters"):
        import_data([source], tmp_path / "raw", 902, "a/b")


@pytest.mark.fault("data", "the disk is full while a data set is imported", "an error with the case, and no data set")
def test_leaves_nothing_behind_on_a_full_disk(tmp_path: Path, small_disk: SmallDisk) -> None:
    source = write_panther(tmp_path / "panther", *(f"{number}_0001" for number in range(10000, 10020)), order="RAS")
    disk = small_disk(16384)
    with pytest.raises(OutputError, match=r"No space left|incomplete file") as caught:
        import_data([Source("panther", source)], disk, 901, "TEST")
    assert "failed to write the case 100" in one_line_about(disk / "Dataset901_TEST", caught.value)
    assert list(disk.iterdir()) == []


@pytest.mark.fault("data", "images do not fit on the disk", "an error with both sizes before anything is imported")
def test_checks_the_free_space_first(tmp_path: Path, small_disk: SmallDisk) -> None:
    source = write_panther(tmp_path / "panther", *(f"{number}_0001" for number in range(10000, 10020)), order="RAS")
    disk = small_disk(4096)
    with pytest.raises(
        OutputError, match=r"expected at least .* GB for images that must be written .*, found .* GB free"
    ):
        import_data([Source("panther", source)], disk, 901, "TEST")
    linked = import_data([Source("panther", source)], tmp_path / "raw", 902, "LINKED", orientation="RAS")
    assert len(linked.linked) == 20, "links need no space"


KILLED_IMPORT = """
import os, signal, sys
from pathlib import Path
from pantherseg.datasets.importing import Source, import_data
own, os.getpid = os.getpid(), lambda: 1  # as in a container
end = lambda _: os.kill(own, signal.SIGKILL)
import_data([Source("panther", Path(sys.argv[1]))], Path(sys.argv[2]), 901, "TEST", on_case=end)
"""


@pytest.mark.fault("data", "SIGKILL while a data set is imported", "no data set; the next import removes what is left")
def test_removes_what_a_killed_import_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, raw = write_panther(tmp_path / "panther", *NAMES), tmp_path / "raw"
    command = [sys.executable, "-c", KILLED_IMPORT, str(source), str(raw)]
    with subprocess.Popen(command) as killed:
        pass
    assert killed.returncode == -signal.SIGKILL
    (left,) = raw.iterdir()
    assert left.name.startswith(".")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    report = imported(tmp_path, Source("panther", source))
    assert list(raw.iterdir()) == [report.dataset]
    assert report.dataset.stat().st_mode & 0o777 == (tmp_path / "panther").stat().st_mode & 0o777


@pytest.mark.fault(
    "data", "two imports of the same name at once", "one complete data set; the other import is an error"
)
def test_two_imports_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = Source("panther", write_panther(tmp_path / "panther", *NAMES))
    other = Source("panther", write_panther(tmp_path / "other", "10005_0001"))

    def begin_another(case: str) -> None:
        if case == NAMES[0]:
            imported(tmp_path, other)

    with pytest.raises(OutputError, match="expected a new folder, found an existing one"):
        imported(tmp_path, source, on_case=begin_another)
    (folder,) = (tmp_path / "raw").iterdir()
    assert list(RawDataset.open(folder).cases) == ["10005_0001"]


def test_an_import_that_fails_leaves_another_one_alone(tmp_path: Path) -> None:
    source = Source("panther", write_panther(tmp_path / "panther", *NAMES))
    other = write_panther(tmp_path / "other", "10005_0001", "10006_0001")
    (other / "labelsTr" / "10006_0001.mha").unlink()

    def fail_another(case: str) -> None:
        if case == NAMES[1]:
            with pytest.raises(InputError, match="1 of 2 cases were refused"):
                imported(tmp_path, Source("panther", other), strict=True)

    report = imported(tmp_path, source, on_case=fail_another)
    assert sorted(path.name for path in (report.dataset / "labelsTr").iterdir()) == [f"{name}.mha" for name in NAMES]
    assert list((tmp_path / "raw").iterdir()) == [report.dataset]


@pytest.mark.fault("data", "files vanish while a data set is written", "an error with both numbers, and no data set")
def test_refuses_to_finish_a_data_set_that_lost_files(tmp_path: Path) -> None:
    def lose_labels(_: str) -> None:
        for path in (tmp_path / "raw").glob(".*/Dataset901_TEST/labelsTr/*"):
            path.unlink()

    source = Source("panther", write_panther(tmp_path / "panther", *NAMES))
    with pytest.raises(OutputError, match="expected the 2 files written to labelsTr, found 0"):
        imported(tmp_path, source, on_case=lose_labels)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("data", "the original of a linked image was moved", "an error that names the link and the original")
def test_names_a_link_whose_original_was_moved(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    report = imported(tmp_path, Source("panther", source))
    shutil.move(source, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"found a link to .*/10000_0001_0000.mha, which does not exist"):
        RawDataset.open(report.dataset)


def test_links_between_data_sets_hold_in_a_folder_that_is_moved(tmp_path: Path) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    turned, linked = (write_panther(tmp_path / order, f"{order}_1", order=order) for order in ("RAS", "LPS"))
    output = tmp_path / "output"
    first = import_data([Source("panther", turned), Source("panther", linked)], output / "raw", 1, "FIRST")
    source = Source("raw", first.dataset)
    beside = import_data([source], output / "raw", 2, "SECOND").dataset
    whole = import_data([source], output / "uncropped", 3, "WHOLE", root=output).dataset
    other = import_data([source], tmp_path / "elsewhere", 4, "OTHER").dataset
    image = Path("imagesTr/RAS_1_0000.mha")
    assert (beside / image).readlink() == Path("../../Dataset001_FIRST") / image
    assert (whole / image).readlink() == Path("../../../raw/Dataset001_FIRST") / image
    assert (other / image).readlink() == first.dataset / image
    original = linked / "imagesTr" / "LPS_1_0000.mha"
    assert {(folder / "imagesTr" / original.name).readlink() for folder in (beside, whole, other)} == {original}
    (tmp_path / "mounted").mkdir()
    shutil.move(output, tmp_path / "mounted")
    for folder in (beside, whole):
        moved = RawDataset.open(tmp_path / "mounted" / folder.relative_to(tmp_path))
        for name in ("RAS_1", "LPS_1"):
            array, _ = SimpleITKIO().read_images([str(moved.image_path(name))])
            np.testing.assert_array_equal(array[0], image_of(name))


@patch.dict(LAYOUTS)
def test_a_layout_is_one_function_and_its_registration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the layout 'panther' is registered already"):
        layout("panther")(LAYOUTS["panther"].find)

    from pantherseg.datasets import layouts

    @layout("tumour-first")
    def tumour_first(folder: Path) -> Found:
        return Found(layouts.find_cases("panther", folder).cases, {0: "background", 1: "pancreas", 2: "tumour"})

    @layout("flat", labelled=False)
    def flat(folder: Path) -> Found:
        return layouts.find_cases("panther-unlabelled", folder)

    assert [DataSource(layout=name, dataset_id=1).has_labels for name in ("tumour-first", "flat")] == [True, False]
    source = write_panther(tmp_path / "panther", *NAMES)
    report = imported(tmp_path, Source("tumour-first", source))
    assert counts(report.dataset / "labelsTr" / f"{NAMES[0]}.mha")[1:] == [PANCREAS_VOXELS, TUMOUR_VOXELS]
    assert read_volume(report.dataset / "imagesTr" / f"{NAMES[0]}_0000.mha").array.dtype == np.float32
