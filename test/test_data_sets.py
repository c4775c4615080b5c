"""Raw data sets once they are there: their splits, their check, their crops, and the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from conftest import one_line_about
from data_sets import SHAPE, image_of, panther_labels, voxels, write_itk, write_panther
from pantherseg.cli import main
from pantherseg.datasets.check import check_dataset
from pantherseg.datasets.crops import crop_dataset, load_localizer
from pantherseg.datasets.importing import Source, import_data
from pantherseg.datasets.raw import Crop, RawCase, RawDataset, new_dataset
from pantherseg.datasets.splits import check_splits, make_splits, read_splits, split_dataset
from pantherseg.errors import InputError, ModelError, OutputError, RecipeError
from pantherseg.io import read_labels
from pantherseg.labels import tumour_of
from pantherseg.localize import Located
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.volume import Box, Shape, Volume
from verdicts import broken, only_fault

EXPERT = {f"{number}_{scan}": RawCase(patient=str(number)) for number in range(100, 107) for scan in (1, 2)}
# One patient of these has labels by an expert too.
PSEUDO = {name: RawCase(patient=name.partition("_")[0], pseudo=True) for name in ("100_9", "200_1", "201_1")}
WHERE = Path("somewhere")
Change = Callable[[Path], object]


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    """Six cases of three patients."""
    source = write_panther(tmp_path / "panther", *(f"{number}_{scan}" for number in (1, 2, 3) for scan in (1, 2)))
    return RawDataset.open(import_data([Source("panther", source)], tmp_path / "raw", 901, "TEST").dataset)


def run(*arguments: object) -> str:
    """Run a command in this process and return what it prints."""
    return CliRunner().invoke(main, ["data", *map(str, arguments)], catch_exceptions=False).output


def test_splits_have_every_case_once_in_val_and_each_patient_on_one_side() -> None:
    cases = EXPERT | PSEUDO
    splits = make_splits(WHERE, cases, folds=3)
    check_splits(WHERE, splits, cases)
    assert sorted(name for split in splits for name in split["val"]) == sorted(EXPERT)
    for split in splits:
        held_out = {cases[name].patient for name in split["val"]}
        assert held_out.isdisjoint(cases[name].patient for name in split["train"])
        assert {"200_1", "201_1"} <= set(split["train"])
        assert ("100_9" in split["train"]) == ("100" not in held_out)


def test_splits_are_those_of_nnunet_where_each_patient_has_one_case() -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = {f"case_{number:02d}": RawCase(patient=f"case_{number:02d}") for number in range(13)}
    assert make_splits(WHERE, cases) == generate_crossval_split(sorted(cases), seed=12345, n_splits=5)


def test_splits_depend_on_nothing_but_patients_folds_and_seed() -> None:
    splits = make_splits(WHERE, EXPERT, folds=3)
    others = make_splits(WHERE, dict(reversed(EXPERT.items())) | PSEUDO, folds=3)
    assert [set(split["val"]) for split in splits] == [set(split["val"]) for split in others]
    assert make_splits(WHERE, EXPERT, folds=3, seed=1) != splits


@pytest.mark.fault("data", "there are more folds than patients", "an error with both numbers")
def test_refuses_more_folds_than_patients() -> None:
    with pytest.raises(InputError, match="somewhere: expected at least one patient for each of 8 folds, found 7"):
        make_splits(WHERE, EXPERT, folds=8)


def test_writes_splits_once_in_nnunets_own_form(dataset: RawDataset) -> None:
    splits = split_dataset(dataset, folds=3)
    path = dataset.folder / "splits_final.json"
    assert json.loads(path.read_text()) == splits
    assert sorted(len(split["val"]) for split in splits) == [2, 2, 2]
    before = path.stat().st_mtime_ns
    assert split_dataset(dataset, folds=3) == splits
    assert path.stat().st_mtime_ns == before
    with pytest.raises(OutputError) as caught:
        split_dataset(dataset, folds=2)
    assert "there are other splits already" in one_line_about(path, caught.value)
    with pytest.raises(InputError, match="expected a data set with labels, found images alone"):
        split_dataset(replace(dataset, has_labels=False))


GOOD = [
    {"train": ["1_1", "1_2", "2_1", "2_2"], "val": ["3_1", "3_2"]},
    {"train": ["3_1"], "val": ["1_1", "1_2", "2_1", "2_2"]},
]
WRONG = {
    "has a patient in train and val": (
        [{"train": ["1_1", "2_1"], "val": ["1_2", "2_2"]}],
        "expected each patient in either train or val of fold 0, found in both: 1, 2; move all cases",
    ),
    "names an unknown case": (
        [{"train": ["1_1"], "val": ["9_9"]}],
        "expected only cases of the data set in fold 0, found others: 9_9; remove their names",
    ),
    "has no fold": ([], "expected at least one fold, found none; list train and val"),
    "has a case in no val": (GOOD[:1], "in the val of one fold, found in none: 1_1, 1_2, 2_1, 2_2; add each"),
    "has a case in val twice": ([*GOOD, GOOD[0]], "in the val of one fold, found in more than one: 3_1, 3_2; leave"),
    "has a fold without cases to train on": (
        [{"train": [], "val": ["1_1"]}],
        "expected cases in train and in val of fold 0, found none in train; add cases",
    ),
    "has a case twice in a list": (
        [{"train": ["1_1", "1_1"], "val": ["2_1"]}],
        "expected each case once in fold 0, found more than once: 1_1; remove the repeated",
    ),
    "has another form": ({"train": []}, "invalid content: Expected `array`, got `object`"),
    "has a fold without val": ([{"train": ["1_1"]}], "expected train and val in each fold, found train in fold 0"),
}


@pytest.mark.fault("data", "a published split {id}", "an error that names the file and the cases or patients")
@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses_a_given_split(dataset: RawDataset, tmp_path: Path, content: object, message: str) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        split_dataset(dataset, given=given)
    assert message in one_line_about(given, caught.value)
    assert not (dataset.folder / "splits_final.json").exists()


@pytest.mark.fault("data", "a published split has another number of folds than `--folds`", "an error with both numbers")
def test_refuses_a_given_split_with_another_number_of_folds(dataset: RawDataset, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(GOOD))
    arguments = ["data", "split", str(dataset.folder), "--given", str(given), "--folds"]
    result = CliRunner().invoke(main, [*arguments, "3"])
    assert result.exit_code == 1
    assert f"{given}: expected 3 folds, found 2; give other splits" in result.output
    assert not (dataset.folder / "splits_final.json").exists()
    assert CliRunner().invoke(main, [*arguments, "2"]).exit_code == 0
    assert json.loads((dataset.folder / "splits_final.json").read_text()) == GOOD


def test_warns_about_cases_that_a_given_split_does_not_use(
    dataset: RawDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(GOOD))
    split_dataset(dataset, given=given)
    assert caplog.messages == [f"{given}: fold 1 has these cases in neither train nor val: 3_2"]


def test_takes_a_given_split_and_adds_the_pseudo_labelled_cases(dataset: RawDataset, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(GOOD))
    pseudo = {"1_9": RawCase(patient="1", pseudo=True), "5_1": RawCase(patient="5", pseudo=True)}
    splits = split_dataset(replace(dataset, cases={**dataset.cases, **pseudo}), given=given)
    assert splits == [
        {"train": [*GOOD[0]["train"], "1_9", "5_1"], "val": GOOD[0]["val"]},
        {"train": [*GOOD[1]["train"], "5_1"], "val": GOOD[1]["val"]},
    ]
    with pytest.raises(InputError, match="in val of fold 0, found pseudo-labelled ones: 5_1; move them to train"):
        check_splits(WHERE, [{"train": ["1_1"], "val": ["5_1"]}], {**dataset.cases, **pseudo})
    with pytest.raises(InputError, match="failed to read this file: No such file"):
        read_splits(tmp_path / "none.json")


def test_a_good_data_set_keeps_every_rule(dataset: RawDataset) -> None:
    split_dataset(dataset, folds=3)
    done: list[str] = []
    verdicts = check_dataset(dataset.folder, on_case=done.append)
    assert broken(verdicts) == {}
    assert done == list(dataset.cases)
    assert [verdict.found for verdict in verdicts] == [
        "6 cases of 3 patients",
        "Dataset901_TEST",
        "6 stated, 6 cases",
        "0 background, 1 tumour, 2 pancreas",
        "6 pairs",
        "none",
        "6 cases",
        "all",
        "LPS",
        "all",
        "all",
        "all",
        "all",
        "all",
        "3 folds",
    ]


def changed_json(name: str, **entries: object) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | entries))

    return change


def replaced_image(array: np.ndarray, order: str = "LPS") -> Change:
    def change(folder: Path) -> None:
        path = folder / "imagesTr" / "2_1_0000.mha"
        path.unlink()
        write_itk(path, array, order)

    return change


def replaced_label(array: np.ndarray, order: str = "LPS") -> Change:
    return lambda folder: write_itk(folder / "labelsTr" / "2_1.mha", array, order)


FAULTS: dict[str, tuple[Change, str, str]] = {
    "dataset.json is missing": (
        lambda folder: (folder / "dataset.json").unlink(),
        "dataset.json, cases",
        "failed to read",
    ),
    "dataset.json has regions": (
        changed_json("dataset.json", labels={"a": [1, 2]}),
        "dataset.json, cases",
        "invalid content",
    ),
    "dataset.json has two channels": (
        changed_json("dataset.json", channel_names={"0": "MR", "1": "MR"}),
        "dataset.json, cases",
        "expected one channel, in imagesTr and labelsTr, found 2 channels",
    ),
    "imagesTr has a hidden file": (
        lambda folder: (folder / "imagesTr" / "._1_1_0000.mha").write_bytes(b"of macOS"),
        "no stray or hidden volumes",
        "imagesTr/._1_1_0000.mha",
    ),
    "imagesTr has a second channel of a case": (
        lambda folder: (folder / "imagesTr" / "1_1_0001.mha").write_bytes(b"stray"),
        "no stray or hidden volumes",
        "imagesTr/1_1_0001.mha",
    ),
    "labelsTr has a hidden file": (
        lambda folder: (folder / "labelsTr" / "._1_1.mha").write_bytes(b"of macOS"),
        "no stray or hidden volumes",
        "labelsTr/._1_1.mha",
    ),
    "cases.json lacks a case": (
        changed_json("cases.json", cases={}),
        "dataset.json, cases",
        "expected each case in cases.json and imagesTr, found only in imagesTr",
    ),
    "numTraining is another number": (changed_json("dataset.json", numTraining=7), "numTraining", "7"),
    "labels are not numbered in order": (
        changed_json("dataset.json", labels={"background": 0, "tumour": 1, "pancreas": 2, "vein": 4}),
        "labels are numbered",
        "4 vein",
    ),
    "the number of the data set is there twice": (
        lambda folder: (folder.parent / "Dataset901_B").mkdir(),
        "name and number",
        "Dataset901_B, Dataset901_TEST",
    ),
    "a label map is missing": (lambda folder: (folder / "labelsTr" / "2_1.mha").unlink(), "", "no label map of 2_1"),
    "an image is missing": (
        lambda folder: write_itk(folder / "labelsTr" / "9_9.mha", panther_labels()),
        "pairs of image and label map",
        "no image of 9_9",
    ),
    "an image is damaged": (
        lambda folder: (folder / "imagesTr" / "2_1_0000.mha").resolve().write_bytes(b"ObjectType = Image"),
        "volumes that can be read",
        "2_1_0000.mha: ",
    ),
    "an image has NaN": (
        replaced_image(np.where(voxels(5) < 20, np.nan, voxels(5)).astype(np.float32)),
        "images that are read without a correction",
        "2_1: ",
    ),
    "an image is stored in another voxel order than stated": (
        replaced_image(image_of("2_1"), "RAS"),
        "volumes in one orientation",
        "the image of 2_1 is stored in another",
    ),
    "a label map is stored in another voxel order than its image": (
        replaced_label(panther_labels(), "SRA"),
        "volumes in one orientation",
        "the label map of 2_1 is stored in another",
    ),
    "an image is constant": (replaced_image(np.ones(SHAPE, np.int16)), "images with more than one", "the same value"),
    "a label map has another grid": (
        replaced_label(panther_labels()[1:]),
        "label maps on the grid",
        "found size (5, 8, 10)",
    ),
    "a label map has an unknown value": (replaced_label(panther_labels() * 2), "label maps with known", "found 4"),
    "a label map is empty": (replaced_label(np.zeros(SHAPE, np.uint8)), "label maps that are not", "background only"),
    "two cases have the same image": (
        replaced_image(image_of("1_1")),
        "each image once",
        "1_1 and 2_1 have the same image",
    ),
    "a patient is on both sides of a split": (
        lambda folder: (folder / "splits_final.json").write_text('[{"train": ["1_1"], "val": ["1_2"]}]'),
        "splits_final.json",
        "expected each patient in either train or val of fold 0, found in both: 1",
    ),
}


def test_refuses_cases_of_another_schema(dataset: RawDataset) -> None:
    changed_json("cases.json", schema=2)(dataset.folder)
    with pytest.raises(InputError, match=r"cases.json: expected schema 1, found 2; import the data again"):
        RawDataset.open(dataset.folder)


@pytest.mark.fault("data", "in a raw data set, {id}", "`data check` names the rule that is broken, and the case")
@pytest.mark.parametrize(("change", "rule", "found"), FAULTS.values(), ids=FAULTS.keys())
def test_the_check_names_what_is_wrong(dataset: RawDataset, change: Change, rule: str, found: str) -> None:
    change(dataset.folder)
    verdicts = check_dataset(dataset.folder)
    if rule:
        assert found in only_fault(verdicts, rule)
    else:  # a missing file breaks more than one rule
        assert found in " ".join(broken(verdicts).values())


def test_the_check_takes_the_orientation_of_the_first_image_where_none_is_stated(dataset: RawDataset) -> None:
    content = json.loads((dataset.folder / "dataset.json").read_text())
    del content["orientation"]
    (dataset.folder / "dataset.json").write_text(json.dumps(content))
    assert broken(check_dataset(dataset.folder)) == {}
    replaced_image(image_of("2_1"), "RAS")(dataset.folder)
    assert only_fault(check_dataset(dataset.folder), "volumes in one") == "the image of 2_1 is stored in another"


def test_commands_import_check_and_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_panther(tmp_path / "panther", "1_1", "2_1", "3_1")
    (source / "labelsTr" / "3_1.mha").unlink()
    raw = tmp_path / "raw"
    run("import", raw, "--id", 7, "--name", "CLI", "--from", f"panther={source}", "--labels", "tumour")
    dataset = raw / "Dataset007_CLI"
    assert any(line.endswith("2 cases imported (2 images linked), 1 refused") for line in caplog.messages)
    run("split", dataset, "--folds", 2)
    assert len(read_splits(dataset / "splits_final.json")) == 2
    lines = run("check", dataset).splitlines()
    assert lines[0] == "ok      dataset.json, cases.json and imagesTr agree: 2 cases of 2 patients"
    assert all(line.startswith("ok") for line in lines)
    assert all(verdict["kept"] for verdict in json.loads(run("check", dataset, "--json")))
    (dataset / "labelsTr" / "1_1.mha").unlink()
    result = CliRunner().invoke(main, ["data", "check", str(dataset)])
    assert (result.exit_code, "BROKEN" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("split", "D", "--given", "F", "--seed", 0), "--given brings its own folds: leave out --seed"),
        (("import", "--labels", "organs", "--require-tumour", "--from", "raw=D"), "--labels organs has none"),
        (
            ("import", "--labels", "tumour", "--from", "panther-unlabelled=D"),
            "--labels has no effect on images without",
        ),
        (("import", "--require-tumour", "--from", "panther-unlabelled=D"), "--require-tumour has no effect on images"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments: tuple[object, ...], message: str) -> None:
    command, *options = map(str, arguments)
    required = ["RAW", "--id", "1", "--name", "A"] if command == "import" else []
    result = CliRunner().invoke(main, ["data", command, *required, *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("source", ["nothing", "other=folder", "panther="])
def test_an_unknown_layout_is_a_usage_error(tmp_path: Path, source: str) -> None:
    result = CliRunner().invoke(main, ["data", "import", str(tmp_path), "--id", "1", "--name", "A", "--from", source])
    assert result.exit_code == 2
    assert "expected LAYOUT=FOLDER with one of the layouts panther" in " ".join(result.output.split())


@pytest.mark.slow
def test_crops_cases_by_the_recipes_localizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path / "data", task=2, cases=2, seed=5003, size="small")
    raw = tmp_path / "raw"
    whole = RawDataset.open(import_data([Source("panther", tmp_path / "data")], raw, 902, "WHOLE").dataset)
    splits = split_dataset(whole, folds=2)
    run("crop", whole.folder, raw, "--id", 903, "--name", "CROPS", "--task", 2, "--device", "cpu")
    crops = RawDataset.open(raw / "Dataset903_CROPS")
    assert broken(check_dataset(crops.folder)) == {}
    assert list(crops.cases) == list(whole.cases)
    assert read_splits(crops.folder / "splits_final.json") == splits
    for name, case in crops.cases.items():
        assert case.crop is not None
        assert (case.remark, case.crop.shape) == ("", whole.image(name).grid.shape)
        image = whole.image(name).crop(case.crop.box)
        np.testing.assert_array_equal(crops.image(name).array, image.array)
        assert not crops.image(name).grid.difference(image.grid)
        label = read_labels(whole.label_path(name))
        assert tumour_of(read_labels(crops.label_path(name)).array).sum() == tumour_of(label.array).sum()
        assert image.array.size < 0.7 * label.array.size
    assert any(line.endswith("Dataset903_CROPS: 2 cases") for line in caplog.messages)
    printed = run("crop", crops.folder, raw, "--id", 904, "--name", "AGAIN", "--task", 2, "--device", "cpu")
    assert "cases.json: expected whole volumes, found the crops of " in printed


@pytest.mark.fault(
    "data",
    "the localizer finds no pancreas in a training case",
    "a crop around the label map, and a remark",
)
def test_crops_around_the_label_map_where_the_localizer_finds_nothing(dataset: RawDataset, tmp_path: Path) -> None:
    localizer, settings = load_localizer(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    settings = msgspec.structs.replace(settings, margin_mm=1.0)
    crops = crop_dataset(dataset, tmp_path / "raw", 905, "CROPS", localizer=localizer, settings=settings)
    around = Box.around(panther_labels() > 0)
    assert around is not None
    box = around.expanded(1.0, dataset.image("1_1").grid)
    for name, case in crops.cases.items():
        assert case.crop == Crop(start=box.start, stop=box.stop, shape=SHAPE, by_reference=True)
        assert re.fullmatch(r"the localizer(?:'s)? [^;_]*: cropped to the label map with the margin", case.remark)
        np.testing.assert_array_equal(read_labels(crops.label_path(name)).array, panther_labels()[box.slices])
    alone = crop_dataset(
        replace(dataset, has_labels=False), tmp_path / "raw", 906, "ALONE", localizer=localizer, settings=settings
    )
    assert alone.cases["1_1"].crop == Crop(start=(0, 0, 0), stop=SHAPE, shape=SHAPE)
    assert re.fullmatch(r"the localizer(?:'s)? [^;_]*: not cropped", alone.cases["1_1"].remark)


CROP_FAULTS: dict[str, tuple[Change, str]] = {
    "a label map has fewer slices than its image": (replaced_label(panther_labels()[2:]), "the grid of its image"),
    "a label map has the value 257": (
        replaced_label(np.array([0, 257, 2], np.uint16)[panther_labels()]),
        "expected the labels 0 background, 1 tumour, 2 pancreas, found 257",
    ),
    "an image is stored in another voxel order than stated": (
        replaced_image(image_of("2_1"), "RAS"),
        "expected the orientation LPS, as stated, found another one",
    ),
}


@pytest.mark.fault("data", "in a data set to crop, {id}", "an error that names the file, and no data set")
@pytest.mark.parametrize(("change", "message"), CROP_FAULTS.values(), ids=CROP_FAULTS.keys())
def test_refuses_to_crop_a_case_that_breaks_a_rule(
    dataset: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, message: str
) -> None:
    localizer, settings = load_localizer(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    monkeypatch.setattr("pantherseg.datasets.crops.localize", lambda *_: Located(Box((0, 0, 0), (3, 5, 7)), ()))
    change(dataset.folder)
    with pytest.raises(InputError) as caught:
        crop_dataset(dataset, tmp_path / "crops", 905, "CROPS", localizer=localizer, settings=settings)
    assert message in str(caught.value)
    assert "/2_1" in str(caught.value)
    assert list((tmp_path / "crops").iterdir()) == []


def test_crops_a_label_map_that_is_stored_in_another_voxel_order(
    dataset: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    localizer, settings = load_localizer(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    box = Box((0, 0, 0), (3, 5, 7))
    monkeypatch.setattr("pantherseg.datasets.crops.localize", lambda *_: Located(box, ()))
    replaced_label(panther_labels(), "RAS")(dataset.folder)
    crops = crop_dataset(dataset, tmp_path / "crops", 905, "CROPS", localizer=localizer, settings=settings)
    np.testing.assert_array_equal(read_labels(crops.label_path("2_1")).array, panther_labels()[box.slices])


def test_a_new_data_set_takes_no_label_map_that_does_not_fit(dataset: RawDataset, tmp_path: Path) -> None:
    image, label = dataset.image("1_1"), dataset.label("1_1")
    assert label is not None
    with (
        pytest.raises(ValueError, match=r"the label map of a has \[3\], which are not labels of the data set"),
        new_dataset(tmp_path, 5, "A", labels=dataset.labels, orientation="LPS", file_ending=".mha") as new,
    ):
        new.add("a", RawCase(patient="a"), image, Volume(label.array + 1, label.grid))
    with (
        pytest.raises(ValueError, match=r"the label map of a has another grid than its image: size"),
        new_dataset(tmp_path, 5, "A", labels=dataset.labels, orientation="LPS", file_ending=".mha") as new,
    ):
        new.add("a", RawCase(patient="a"), image, label.crop(Box((1, 0, 0), SHAPE)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("imagesTr/._1_1_0000.mha", True),
        ("imagesTr/1_1_0001.mha", True),
        ("imagesTr/zz.mha", True),
        ("imagesTr/yy_0000.nii.gz", False),
    ],
)
def test_the_check_refuses_the_same_stray_files_as_nnunet(dataset: RawDataset, name: str, refused: bool) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    (dataset.folder / name).write_bytes(b"stray")
    assert bool(broken(check_dataset(dataset.folder))) == refused
    if not refused:
        verify_dataset_integrity(str(dataset.folder), num_processes=1)
        return
    with pytest.raises((AssertionError, RuntimeError)):
        verify_dataset_integrity(str(dataset.folder), num_processes=1)


@pytest.mark.parametrize(
    ("stop", "remark"),
    [
        ((3, 5, 7), ""),
        ((3, 5, 6), "the localizer's box leaves out 6 of 24 labelled voxels"),
        (
            (2, 3, 7),
            "the localizer's box leaves out 20 of 24 labelled voxels: cropped to the label map with the margin",
        ),
    ],
)
def test_remarks_on_a_box_that_leaves_labelled_voxels_out(
    dataset: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Shape, remark: str
) -> None:
    localizer, settings = load_localizer(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    settings = msgspec.structs.replace(settings, margin_mm=0.0)
    monkeypatch.setattr("pantherseg.datasets.crops.localize", lambda *_: Located(Box((0, 0, 0), stop), ()))
    crops = crop_dataset(dataset, tmp_path / "raw", 905, "CROPS", localizer=localizer, settings=settings)
    case = crops.cases["1_1"]
    assert case.remark == remark
    around = remark.endswith("margin")
    expected = ((1, 2, 3), (3, 5, 7)) if around else ((0, 0, 0), stop)
    assert case.crop == Crop(start=expected[0], stop=expected[1], shape=SHAPE, by_reference=around)


def test_refuses_to_crop_without_a_localizer_or_an_orientation(dataset: RawDataset, tmp_path: Path) -> None:
    recipe = load_recipe(task_recipe(2))
    with pytest.raises(RecipeError, match="expected a recipe with a localizer to crop by, found none"):
        load_localizer(load_recipe(task_recipe(1)), DEMO_WEIGHTS)
    with pytest.raises(ModelError, match="expected the localizer 'localizer', found none"):
        load_localizer(recipe, tmp_path)
    localizer, settings = load_localizer(recipe, DEMO_WEIGHTS, device="cpu")
    with pytest.raises(
        InputError, match=r"expected the orientation of the volumes, found none; import it with --from raw="
    ):
        crop_dataset(
            replace(dataset, orientation=None), tmp_path / "raw", 907, "C", localizer=localizer, settings=settings
        )
