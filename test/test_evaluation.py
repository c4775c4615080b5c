"""Metrics of simple and of real masks, the matching of files, and the files and tables that are written."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pantherseg.cli import main as pantherseg
from pantherseg.errors import InputError, OutputError
from pantherseg.evaluation import evaluate, evaluation_table, lesion_table, write_csv, write_json
from pantherseg.evaluation.metrics import METRICS, Totals, score_case, totals
from pantherseg.io import read_labels, write_volume
from pantherseg.volume import Grid, Triple, Volume

SHAPE = (9, 11, 13)
# (z, y, x). In the wrong order, distances along z are halved and those along x doubled.
SPACING = (4.0, 1.0, 2.0)
CORRECTED_DIAGONAL = math.hypot(9 * 4, 11 * 1, 13 * 2)
OFFICIAL_DIAGONAL = math.hypot(9 * 2, 11 * 1, 13 * 4)


def volume(array: NDArray[Any], spacing: Triple = SPACING, origin: Triple = (0.0, 0.0, 0.0)) -> Volume:
    return Volume(array, Grid(array.shape, spacing, origin))


def block(start: tuple[int, int, int], size: tuple[int, int, int] = (1, 1, 1), label: int = 1) -> Volume:
    array = np.zeros(SHAPE, np.uint8)
    array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = label
    return volume(array)


REFERENCE = block((2, 5, 5))


def random_mask(seed: int) -> NDArray[np.uint8]:
    """Return a random mask with at least one voxel of tumour and of background."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((4, 5, 6)) < rng.uniform(0.02, 0.9)).astype(np.uint8)
    mask[0, 0, 0], mask[3, 4, 5] = 1, 0
    return mask


def test_corrected_distances_use_the_spacing_of_each_axis_and_official_ones_swap_x_and_z() -> None:
    # Two voxels, three slices apart: four corners of each are 2 and four are 3 slices away from the other voxel.
    scores = score_case(block((5, 5, 5)), REFERENCE)
    assert scores.corrected.hd95_mm == pytest.approx(12)
    assert scores.corrected.masd_mm == pytest.approx(10)
    assert scores.corrected.surface_dice_5mm == 0
    assert scores.official.hd95_mm == pytest.approx(6)
    assert scores.official.masd_mm == pytest.approx(5)
    assert scores.official.surface_dice_5mm == pytest.approx(0.5)


def test_dice_and_volume_are_the_same_in_both_conventions() -> None:
    scores = score_case(block((2, 3, 4), (4, 4, 6)), block((2, 3, 3), (4, 4, 4)))
    for metrics in (scores.official, scores.corrected):
        assert metrics.dice == pytest.approx(2 * 48 / (96 + 64))
        volumes = (metrics.predicted_volume_mm3, metrics.reference_volume_mm3, metrics.volume_error_mm3)
        assert volumes == pytest.approx((96 * 8, 64 * 8, 32 * 8))
        assert not metrics.missing


@pytest.mark.parametrize("prediction", [None, block((0, 0, 0), label=0), block((0, 0, 0), SHAPE)])
def test_scores_missing_empty_and_full_masks_as_the_published_evaluator(prediction: Volume | None) -> None:
    scores = score_case(prediction, REFERENCE)
    for metrics, diagonal in ((scores.official, OFFICIAL_DIAGONAL), (scores.corrected, CORRECTED_DIAGONAL)):
        assert (metrics.dice, metrics.surface_dice_5mm) == (0, 0)
        assert metrics.hd95_mm == metrics.masd_mm == pytest.approx(diagonal)
        assert (metrics.predicted_volume_mm3, metrics.volume_error_mm3) == (0, -8)
    assert scores.missing is (prediction is None)


def test_ignores_the_pancreas_label() -> None:
    with_pancreas, other_pancreas = REFERENCE.array.copy(), REFERENCE.array.copy()
    with_pancreas[6:8, 2:9, 2:9] = other_pancreas[0:2] = 2
    assert score_case(volume(other_pancreas), volume(with_pancreas)) == score_case(REFERENCE, REFERENCE)


def test_warns_about_a_mask_with_other_labels_only(caplog: pytest.LogCaptureFixture) -> None:
    assert score_case(block((2, 5, 5), label=255), REFERENCE, name="a.mha").official.dice == 0
    assert "a.mha" in caplog.text
    assert "255" in caplog.text


def test_refuses_a_reference_without_tumour() -> None:
    with pytest.raises(InputError, match=r"ref\.mha.*label 1.*no voxel"):
        score_case(REFERENCE, block((0, 0, 0), label=2), reference_name="ref.mha")


@pytest.mark.parametrize(
    ("prediction", "difference"),
    [
        (volume(np.ones((9, 11, 12), np.uint8)), "size"),
        (volume(REFERENCE.array, (4.0, 1.0, 2.1)), "spacing"),
        (volume(REFERENCE.array, origin=(0.0, 3.0, 0.0)), "origin"),
    ],
)
def test_refuses_a_prediction_on_another_grid(prediction: Volume, difference: str) -> None:
    with pytest.raises(InputError, match=rf"pred\.mha.*{difference}.*instead of"):
        score_case(prediction, REFERENCE, name="pred.mha")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_identical_masks_have_perfect_scores(seed: int) -> None:
    mask = volume(random_mask(seed))
    scores = score_case(mask, mask)
    assert scores.official.as_totals() == scores.corrected.as_totals() == Totals(1, 1, 0, 0, 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.5, 3))
def test_conventions_agree_for_isotropic_spacing(seed_a: int, seed_b: int, mm: float) -> None:
    spacing = (mm, mm, mm)
    scores = score_case(volume(random_mask(seed_a), spacing), volume(random_mask(seed_b), spacing))
    assert scores.official == scores.corrected


def test_metrics_of_a_shifted_spleen_with_thick_slices(real_data: Callable[[str], Path]) -> None:
    labels = read_labels(real_data("chaos/label_1.nii.gz"))
    spleen = (labels.array == 4).astype(np.uint8)
    scores = score_case(Volume(np.roll(spleen, 1, 0), labels.grid), Volume(spleen, labels.grid))
    corrected, official = scores.corrected, scores.official
    assert corrected.dice == official.dice == pytest.approx(0.8475, abs=5e-5)
    assert corrected.masd_mm == pytest.approx(1.2308, abs=5e-5)
    assert (corrected.hd95_mm, official.hd95_mm) == pytest.approx((6.7315, 1.25), abs=5e-5)
    assert (corrected.surface_dice_5mm, official.surface_dice_5mm) == pytest.approx((0.9303, 1.0), abs=5e-5)


def test_totals_are_means_and_the_volume_rmse() -> None:
    cases = [score_case(block((2, 5, 5), (1, 1, n)), REFERENCE).official for n in (1, 2, 4)]
    result = totals(cases)
    assert result.dice == pytest.approx((1 + 2 / 3 + 2 / 5) / 3)
    assert result.volume_rmse_mm3 == pytest.approx(8 * math.sqrt((0 + 1 + 9) / 3))
    with pytest.raises(ValueError, match="at least one case"):
        totals([])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of two PANTHER cases; one prediction is named after its image."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write_volume(REFERENCE, predictions / "10000_0001.mha")
    write_volume(block((2, 5, 6)), predictions / "10001_0001_0000.nii.gz")
    for name in ("10000_0001.mha", "10001_0001.mha"):
        write_volume(REFERENCE, references / name)
    return predictions, references


def test_matches_files_by_case(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders)
    assert {name: case.official.dice for name, case in result.cases.items()} == {"10000_0001": 1, "10001_0001": 0}
    assert result.missing == ()


def test_warns_about_a_missing_prediction_and_one_without_reference(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (folders[0] / "10001_0001_0000.nii.gz").rename(folders[0] / "unknown.nii.gz")
    result = evaluate(*folders)
    assert list(result.cases) == ["10000_0001", "10001_0001"]
    assert result.missing == ("10001_0001",)
    assert result.corrected.dice == pytest.approx(0.5)
    assert result.corrected.hd95_mm == pytest.approx(CORRECTED_DIAGONAL / 2)
    assert "10001_0001" in caplog.text
    assert "unknown.nii.gz" in caplog.text


@pytest.mark.parametrize(
    ("prediction", "reference", "case"),
    [
        ("10001_0001_0000.nii.gz", "", "10001_0001"),
        ("", "10000_0001.mha", "10000_0001"),
        ("10001_0001_0000.nii.gz", "10000_0001.mha", "10000_0001"),
    ],
)
def test_a_single_file_selects_its_case(
    folders: tuple[Path, Path], prediction: str, reference: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, references = folders
    assert list(evaluate(predictions / prediction, references / reference).cases) == [case]
    assert not caplog.text


def test_refuses_two_predictions_of_a_case(folders: tuple[Path, Path]) -> None:
    write_volume(REFERENCE, folders[0] / "10000_0001_0000.mha")
    with pytest.raises(InputError, match=r"one file for case 10000_0001.*10000_0001\.mha and 10000_0001_0000\.mha"):
        evaluate(*folders)


def test_refuses_paths_without_matching_volumes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty: expected at least one volume, found a folder without volumes"):
        evaluate(folders[0], empty)
    with pytest.raises(InputError, match=r"nowhere: .*no such file"):
        evaluate(folders[0], tmp_path / "nowhere")
    (empty / "10000_0001.npz").touch()
    with pytest.raises(InputError, match=r"empty: .*found probabilities \(\.npz\); give the folder of the masks"):
        evaluate(empty, folders[1])
    write_volume(REFERENCE, empty / "another.mha")
    with pytest.raises(InputError, match=r"e\.g\. 10000_0001\.mha, found another\.mha"):
        evaluate(empty, folders[1])


def test_a_single_case_that_cannot_be_scored_is_an_error_that_names_its_file(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "10000_0001.mha"
    write_volume(volume(REFERENCE.array, (1.0, 1.0, 1.0)), path)
    with pytest.raises(InputError, match=rf"{path}.*spacing"):
        evaluate(path, folders[1])


def test_an_error_is_raised_where_no_case_can_be_scored(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for path in folders[1].iterdir():
        write_volume(block((0, 0, 0), label=2), path)
    with pytest.raises(InputError, match="predictions: none of 2 cases could be scored"):
        evaluate(*folders)
    for name in ("10000_0001", "10001_0001"):
        assert f"{name}.mha: expected a reference mask with a tumour" in caplog.text


def without_tumour(predictions: Path, references: Path) -> Path:
    path = references / "10001_0001.mha"
    write_volume(block((0, 0, 0), label=2), path)
    return path


def damaged_reference(predictions: Path, references: Path) -> Path:
    path = references / "10001_0001.mha"
    path.write_bytes(path.read_bytes()[:-9])
    return path


def damaged_prediction(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return path


def another_grid(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(REFERENCE.array, origin=(0.0, 3.0, 0.0)), path)
    return path


def fractional_labels(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(REFERENCE.array.astype(np.float32) * 1.5), path)
    return path


def probabilities(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(REFERENCE.array.astype(np.float32) * 0.3), path)
    return path


def probabilities_of_8_bits(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(np.arange(math.prod(SHAPE)).reshape(SHAPE).astype(np.uint8)), path)
    return path


def image(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(np.arange(math.prod(SHAPE)).reshape(SHAPE).astype(np.int16)), path)
    return path


def image_below_zero(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    write_volume(volume(1 - np.arange(math.prod(SHAPE)).reshape(SHAPE).astype(np.int16)), path)
    return path


def link_to_nowhere(predictions: Path, references: Path) -> Path:
    path = predictions / "10001_0001_0000.nii.gz"
    path.unlink()
    path.symlink_to(predictions / "moved.nii.gz")
    return path


BAD_CASES = {
    without_tumour: "expected a reference mask with a tumour (label 1), found no voxel with label 1",
    damaged_reference: "the file is truncated or damaged",
    damaged_prediction: "the file is truncated or damaged",
    another_grid: "expected a mask on the grid of its reference mask, found origin",
    fractional_labels: "expected whole numbers as labels, found the value 1.5",
    probabilities: "expected whole numbers as labels, found probabilities, such as 0.3; give the mask",
    probabilities_of_8_bits: "expected a mask with a few labels, found 256 values, as an image or probabilities have",
    image: "expected a mask with a few labels, found 1287 values, as an image or probabilities have",
    image_below_zero: "expected a mask with a few labels, found 1287 values, as an image or probabilities have",
    link_to_nowhere: "expected a volume, found no such file",
}


@pytest.mark.fault(
    "inputs",
    "one of two cases cannot be scored by `evaluate`: {damage}",
    "the scores of the other, the reason, and exit code 1",
)
@pytest.mark.parametrize("damage", BAD_CASES)
def test_one_case_that_cannot_be_scored_leaves_the_others_their_scores(
    folders: tuple[Path, Path], tmp_path: Path, damage: Callable[[Path, Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    alone = evaluate(folders[0] / "10000_0001.mha", folders[1])
    path = damage(*folders)
    result = evaluate(*folders)
    assert dict(result.cases) == dict(alone.cases)
    assert (result.official, result.corrected) == (alone.official, alone.corrected)
    assert list(result.failed) == ["10001_0001"]
    reason = result.failed["10001_0001"]
    assert reason.startswith(f"{path}: ")
    assert BAD_CASES[damage] in reason
    assert [record.message for record in caplog.records] == [f"error: {reason}"]

    table = evaluation_table(result).splitlines()
    assert table[3].split() == ["10001_0001", "(failed)", *"--------"]
    assert table[5].startswith("1 of 2 cases")
    assert f"    10001_0001: {reason}" in table
    write_json(result, tmp_path / "scores.json")
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["failed"] == {"10001_0001": reason}
    assert list(written["cases"]) == ["10000_0001"]
    assert written["official"]["dice"] == 1
    write_csv(result, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"10000_0001"}


def test_the_command_says_which_cases_could_not_be_scored(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, references = folders
    others = tmp_path / "others"
    for name in ("10000_0001.mha", "10001_0001.mha", "10002_0001.mha"):
        write_volume(REFERENCE, references / name)
        write_volume(block((2, 5, 6)), others / name)
    write_volume(REFERENCE, predictions / "10002_0001.mha")
    bad = [without_tumour(*folders), others / "10002_0001.mha"]
    write_volume(volume(np.ones((2, 3, 4), np.uint8)), bad[1])
    command = ["evaluate", str(predictions), str(references)]
    files = ["--json", str(tmp_path / "scores.json"), "--csv", str(tmp_path / "scores.csv")]
    done = CliRunner().invoke(pantherseg, [*command, *files])
    assert done.exit_code == 1
    first, last = caplog.messages
    assert first.startswith(f"error: {bad[0]}: expected a reference mask with a tumour")
    assert last == "error: 1 of 3 cases could not be scored and are in no total: 10001_0001"
    assert "2 of 3 cases" in done.stdout
    assert list(json.loads((tmp_path / "scores.json").read_text())["cases"]) == ["10000_0001", "10002_0001"]
    assert (tmp_path / "scores.csv").read_text().count("10002_0001") == 2

    caplog.clear()
    done = CliRunner().invoke(pantherseg, [*command, "--compare", str(others)])
    assert done.exit_code == 1
    assert [message.partition(": expected")[0] for message in caplog.messages] == [
        f"error: {bad[0]}",
        f"error: {bad[0]}",
        f"error: {bad[1]}",
        "error: 2 of 3 cases could not be scored and are in no total: 10001_0001, 10002_0001",
    ]
    assert f"B: {others}\nA: {predictions}\n1 cases that both have" in done.stdout


# The voxel order of PANTHER's masks, of most NIfTI files, and others: flipped, permuted, and both.
ORDERS = ("LPS", "RAS", "RPI", "PLS", "SAR", "ILA")


@pytest.mark.fault(
    "inputs",
    "`evaluate`: a prediction stored as {order} in a {suffix}, its reference as LPS",
    "the scores of two masks in LPS",
)
@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
@pytest.mark.parametrize("order", ORDERS)
def test_scores_do_not_depend_on_the_voxel_order_of_a_prediction(tmp_path: Path, order: str, suffix: str) -> None:
    turned, stored = tmp_path / f"turned{suffix}", tmp_path / "reference.mha"
    write_volume(block((5, 5, 5), (2, 3, 4)).turned_to(order), turned)
    write_volume(REFERENCE, stored)
    assert read_labels(turned).grid.orientation == order
    assert evaluate(turned, stored).cases["reference"] == score_case(block((5, 5, 5), (2, 3, 4)), REFERENCE)


@pytest.mark.parametrize("order", ["LPS", "RAI", "SPL", "PLS", "LSP"])
def test_official_distances_are_those_of_masks_in_lps_whatever_the_stored_order(tmp_path: Path, order: str) -> None:
    # Three slices apart. The official convention swaps the spacings of the axes z and x.
    write_volume(REFERENCE.turned_to(order), tmp_path / "reference.nii.gz")
    write_volume(block((5, 5, 5)), tmp_path / "prediction.mha")
    case = evaluate(tmp_path / "prediction.mha", tmp_path / "reference.nii.gz").cases["reference"]
    assert case.corrected.hd95_mm == pytest.approx(12)
    assert case.official.hd95_mm == pytest.approx(6)


def test_a_prediction_in_another_voxel_order_must_still_lie_on_the_grid() -> None:
    elsewhere = volume(REFERENCE.array, origin=(0.0, 3.0, 0.0)).turned_to("RAS")
    with pytest.raises(InputError, match="on the grid of its reference mask, found origin"):
        score_case(elsewhere, REFERENCE)


def test_writes_json(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "out" / "scores.json"
    write_json(evaluate(*folders), path)
    result = json.loads(path.read_text())
    totals = {"official", "official_interval", "corrected", "corrected_interval", "bootstrap", "lesions"}
    assert set(result) == {"cases", "failed", "missing", "empty", *totals, "not_for_clinical_use"}
    assert result["failed"] == {}
    for convention in ("official", "corrected"):
        for metric, (low, high) in result[f"{convention}_interval"].items():
            assert low <= result[convention][metric] <= high
    assert (result["lesions"]["all"]["reference"], result["lesions"]["all"]["found"]) == (2, 1)
    case = result["cases"]["10001_0001"]
    volumes = {"predicted_volume_mm3", "reference_volume_mm3", "volume_error_mm3"}
    assert set(case) == {"official", "corrected", *volumes, "missing", "empty", "lesions"}
    assert [lesion["false_positive"] for lesion in case["lesions"]["predicted"]] == [True]
    for scores in (result["official"], result["corrected"], case["official"], case["corrected"]):
        assert set(scores) == set(METRICS)
    assert case["missing"] is False
    with pytest.raises(OutputError, match=str(path)):
        write_json(evaluate(*folders), path / "scores.json")


def test_writes_csv_with_a_row_per_case_and_convention(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "10000_0001.mha").unlink()
    path = tmp_path / "scores.csv"
    write_csv(evaluate(*folders), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["convention"], row["missing"]) for row in rows] == [
        ("10000_0001", "official", "true"),
        ("10000_0001", "corrected", "true"),
        ("10001_0001", "official", "false"),
        ("10001_0001", "corrected", "false"),
    ]
    assert float(rows[0]["volume_error_mm3"]) == -8
    assert float(rows[0]["hd95_mm"]) == pytest.approx(OFFICIAL_DIAGONAL)
    assert [rows[2][key] for key in ("lesions", "lesions_found", "lesions_predicted", "false_positives")] == list(
        "1011"
    )


def test_table_explains_conventions_and_missing_and_empty_cases(folders: tuple[Path, Path]) -> None:
    (folders[0] / "10000_0001.mha").unlink()
    write_volume(block((0, 0, 0), label=0), folders[0] / "10001_0001_0000.nii.gz")
    result = evaluate(*folders)
    assert (result.missing, result.empty) == (("10000_0001",), ("10001_0001",))
    table = evaluation_table(result)
    for text in ("10000_0001 (missing)", "10001_0001 (empty)", "official: ", "corrected: ", "Not for clinical use"):
        assert text in table
    lines = table.splitlines()
    assert lines[4] == lines[1]
    assert [line.split("  ")[0] for line in lines[5:8]] == ["2 cases", "95 % from", "to"]
    assert len(lines[0]) == len(lines[2]) == len(lines[5]) == len(lines[7])


def test_a_single_case_has_no_interval(folders: tuple[Path, Path]) -> None:
    result = evaluate(folders[0] / "10000_0001.mha", folders[1])
    assert result.official_interval is result.corrected_interval is result.detection_interval is None
    assert "95 %" not in evaluation_table(result) + lesion_table(result)


def test_the_table_of_lesions_has_a_row_for_each_class_of_volume(folders: tuple[Path, Path]) -> None:
    lines = lesion_table(evaluate(*folders)).splitlines()
    assert lines[2].split() == ["0", "to", "0.52", "2", "1", "0.500", "2", "1", "0.50"]
    assert lines[7].split() == ["all", "in", "2", "cases", "2", "1", "0.500", "2", "1", "0.50"]
    assert lines[8].split() == ["95", "%", "from", "0.000", "0.000"]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_cases_keep_their_order_whatever_the_number_of_workers(folders: tuple[Path, Path], workers: int) -> None:
    for number in range(9, 1, -1):
        write_volume(REFERENCE, folders[1] / f"{number}.mha")
    calls = []
    result = evaluate(*folders, workers=workers, on_case=lambda *counts: calls.append(counts))
    assert list(result.cases) == ["10000_0001", "10001_0001", *map(str, range(2, 10))]
    assert calls == [(number, 10) for number in range(1, 11)]


def many_cases(tmp_path: Path, number: int) -> tuple[Path, Path]:
    """Return folders with links to one prediction and one reference."""
    write_volume(block((2, 5, 6)), tmp_path / "prediction.mha")
    write_volume(REFERENCE, tmp_path / "reference.mha")
    folders = tmp_path / "many", tmp_path / "references"
    for folder, source in zip(folders, ("prediction.mha", "reference.mha"), strict=True):
        folder.mkdir()
        for case in range(number):
            (folder / f"{case:04d}.mha").hardlink_to(tmp_path / source)
    return folders


@pytest.mark.fault(
    "inputs", "`evaluate`: one of 60 predictions is damaged", "the scores of the other 59, and the reason"
)
def test_one_unreadable_file_among_60_does_not_stop_the_rest(tmp_path: Path) -> None:
    predictions, references = many_cases(tmp_path, 60)
    (predictions / "0042.mha").unlink()
    (predictions / "0042.mha").write_bytes(b"no volume")
    result = evaluate(predictions, references)
    assert len(result.cases) == 59
    assert list(result.failed) == ["0042"]
    assert str(predictions / "0042.mha") in result.failed["0042"]


@pytest.mark.slow
@pytest.mark.fault("inputs", "`evaluate`: 1,000 cases", "the scores of all, in memory that does not grow with them")
def test_a_thousand_cases_take_the_memory_of_a_few(tmp_path: Path) -> None:
    predictions, references = many_cases(tmp_path, 1000)
    script = (
        "import resource, sys; from pathlib import Path; from pantherseg.evaluation import evaluate;"
        "memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "count = lambda done, _: before.append(memory()) if done == 100 else None; before = [];"
        "result = evaluate(Path(sys.argv[1]), Path(sys.argv[2]), on_case=count);"
        "print(len(result.cases), memory() - before[0])"
    )
    command = [sys.executable, "-c", script, predictions, references]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cases, growth_mb = done.stdout.split()
    assert int(cases) == 1000
    assert float(growth_mb) < 20


@pytest.mark.fault(
    "inputs",
    "`evaluate`: pixdim of a NIfTI contradicts its sform",
    "the scores, and a line of the log that names the file and what was used",
)
def test_logs_what_was_corrected_in_a_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_volume(REFERENCE, tmp_path / "a.nii")
    image = nibabel.load(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:92] = np.full(3, 2.8, image.header["pixdim"].dtype).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    write_volume(REFERENCE, tmp_path / "b.mha")
    assert evaluate(tmp_path / "a.nii", tmp_path / "b.mha").official.dice == 1
    assert f"{tmp_path / 'a.nii'}: pixdim_contradicts_sform: pixdim states a spacing of 2.8 2.8 2.8 mm" in caplog.text
