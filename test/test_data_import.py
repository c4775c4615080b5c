"""Importing published data sets, against SimpleITK, nibabel and nnU-Net's own check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

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
from pantherseg.errors import InputError, OutputError
from pantherseg.io import read_labels, read_volume
from pantherseg.labels import LABEL_MAPS
from pantherseg.phantom import write_dataset
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


def test_a_raw_data_set_keeps_what_is_known_about_its_cases(tmp_path: Path) -> None:
    labels = Volume(TO_MSD[panther_labels()], Grid(SHAPE, (3.0, 1.25, 1.0)))
    crop = Crop(start=(1, 0, 2), stop=(7, 8, 12), shape=(9, 8, 13))
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
    crop = RawDataset.open(turned.dataset).cases["a"].crop or crop
    assert (crop.start, crop.stop, crop.shape) == ((1, 0, 1), (7, 8, 11), (9, 8, 13))


def test_a_data_set_of_nnunet_has_a_patient_for_each_case(tmp_path: Path) -> None:
    report = imported(tmp_path, Source("panther", write_panther(tmp_path / "panther", "1_1", "1_2")))
    assert {case.patient for case in RawDataset.open(report.dataset).cases.values()} == {"1"}
    (report.dataset / "cases.json").unlink()
    assert {case.patient for case in RawDataset.open(report.dataset).cases.values()} == {"1_1", "1_2"}


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


def test_refuses_sources_that_do_not_go_together(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    more = write_panther(tmp_path / "more", "10009_0001", labels=None)
    with pytest.raises(InputError, match="more: images without labels can only be imported into a data set of"):
        imported(tmp_path, Source("panther", source), Source("panther-unlabelled", more))
    with pytest.raises(InputError, match="expected the labels organs, found background, tumour, pancreas"):
        imported(tmp_path, Source("panther", source), labels="organs")
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


@pytest.mark.fault("data", "the disk is full while a data set is imported", "an error, and no data set")
def test_leaves_nothing_behind_on_a_full_disk(tmp_path: Path, small_disk: SmallDisk) -> None:
    source = write_panther(tmp_path / "panther", *(f"{number}_0001" for number in range(10000, 10020)), order="RAS")
    disk = small_disk(16384)
    with pytest.raises(OutputError, match=r"No space left|incomplete file"):
        import_data([Source("panther", source)], disk, 901, "TEST")
    assert list(disk.iterdir()) == []


def test_removes_what_a_killed_import_left_behind(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    left = tmp_path / "raw" / ".9999999.Dataset901_TEST" / "imagesTr"
    left.mkdir(parents=True)
    report = imported(tmp_path, Source("panther", source))
    assert list((tmp_path / "raw").iterdir()) == [report.dataset]


@pytest.mark.fault("data", "the original of a linked image was moved", "an error that names the link and the original")
def test_names_a_link_whose_original_was_moved(tmp_path: Path) -> None:
    source = write_panther(tmp_path / "panther", *NAMES)
    report = imported(tmp_path, Source("panther", source))
    shutil.move(source, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"found a link to .*/10000_0001_0000.mha, which does not exist"):
        RawDataset.open(report.dataset)


def test_a_layout_is_one_function_and_its_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.datasets.layouts.LAYOUTS", dict(LAYOUTS))
    with pytest.raises(ValueError, match="the layout 'panther' is registered already"):
        layout("panther")(LAYOUTS["panther"])

    from pantherseg.datasets import layouts

    @layout("tumour-first")
    def tumour_first(folder: Path) -> Found:
        return Found(layouts.find_cases("panther", folder).cases, {0: "background", 1: "pancreas", 2: "tumour"})

    source = write_panther(tmp_path / "panther", *NAMES)
    report = imported(tmp_path, Source("tumour-first", source))
    assert counts(report.dataset / "labelsTr" / f"{NAMES[0]}.mha")[1:] == [PANCREAS_VOXELS, TUMOUR_VOXELS]
    assert read_volume(report.dataset / "imagesTr" / f"{NAMES[0]}_0000.mha").array.dtype == np.float32
