"""From what the networks say about a case to the Dice to expect: the fit, its file, and the command that writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import one_line_about
from pantherseg.cli import main
from pantherseg.confidence.calibrate import MIN_CASES, calibrate, read_cohort
from pantherseg.confidence.figures import bins, figures, risks
from pantherseg.confidence.fit import fit_line, leave_one_out
from pantherseg.errors import InputError, ModelError
from pantherseg.events import Event, EventCode
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.io import write_volume
from pantherseg.machine.deadline import Deadline
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.calibration import (
    CALIBRATION,
    Calibration,
    Line,
    find_calibration,
    identity,
    read_calibrations,
    write_calibrations,
)
from pantherseg.models.find import ModelFolder, find_models
from pantherseg.packing.pack import pack_models
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.pipeline import segment
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.results import Confidence
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume
from test_results import REPORT
from verdicts import broken

GRID = Grid((2, 3, 5), (2.0, 1.0, 1.0))
SHARES = st.floats(0, 1, allow_subnormal=False)
CASES = st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=30)


def confidence_of(pairwise_dice: float | None, mean_entropy: float | None) -> Confidence:
    return Confidence(
        pairwise_dice=pairwise_dice, mean_entropy=mean_entropy, fold_volumes_ml=(1.0,), expected_dice=None
    )


def line_calibration(models: tuple[dict[str, str], ...], intercept: float = 1.0) -> Calibration:
    return Calibration(
        models=models,
        cases=20,
        empty_masks=0,
        line=Line(intercept=intercept, slopes={"mean_entropy": -1.0, "pairwise_dice": 0.25}),
        cross_validated=figures([0.5, 0.7], [0.4, 0.9]),
    )


# --- The line.


def test_finds_a_line_and_cuts_it() -> None:
    rng = np.random.default_rng(0)
    cases = [confidence_of(*values) for values in rng.random((20, 2))]
    dice = [0.3 + 0.4 * (one.pairwise_dice or 0) - 0.2 * (one.mean_entropy or 0) for one in cases]
    line = fit_line(cases, dice)
    assert line.intercept == pytest.approx(0.3, abs=1e-4)
    assert line.slopes == pytest.approx({"pairwise_dice": 0.4, "mean_entropy": -0.2}, abs=1e-4)
    assert [line.expected(one) for one in cases] == pytest.approx(dice, abs=1e-4)
    steep = Line(intercept=0.5, slopes={"mean_entropy": -3.0, "pairwise_dice": 2.0})
    assert steep.expected(confidence_of(1.0, 0.0)) == 1.0
    assert steep.expected(confidence_of(0.0, 1.0)) == 0.0


def test_expects_nothing_where_the_networks_mark_nothing() -> None:
    assert Line(intercept=0.9, slopes={}).expected(confidence_of(None, None)) == 0.0


@settings(max_examples=50, deadline=None)
@given(cases=st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=2, max_size=12), step=SHARES)
def test_more_doubt_never_raises_what_is_expected(cases: list[tuple[float, float, float]], step: float) -> None:
    line = fit_line([confidence_of(pair, entropy) for pair, entropy, _ in cases], [dice for *_, dice in cases])
    sure, unsure = confidence_of(0.5 + step / 2, 0.5 - step / 2), confidence_of(0.5 - step / 2, 0.5 + step / 2)
    assert line.expected(sure) >= line.expected(unsure)


def test_models_of_one_fold_have_only_the_entropy() -> None:
    entropies = np.linspace(0, 0.5, 12)
    line = fit_line([confidence_of(None, float(value)) for value in entropies], list(0.9 - entropies))
    assert line.slopes == {"mean_entropy": pytest.approx(-1, abs=1e-4)}
    assert line.expected(confidence_of(None, 0.2)) == pytest.approx(0.7, abs=1e-3)


def test_a_case_is_not_fitted_to_itself() -> None:
    cases = [confidence_of(None, value) for value in (0.0, 0.1, 0.2, 0.3)]
    dice = [0.9, 0.8, 0.7, 0.1]
    assert leave_one_out(cases, dice)[3] == pytest.approx(0.6, abs=1e-3), "the line of the first three"


# --- The figures.


def test_figures_of_an_example() -> None:
    found = figures([0.9, 0.5, 0.7], [0.8, 0.6, 0.4])
    assert found.mean_absolute_error == pytest.approx((0.1 + 0.1 + 0.3) / 3, abs=1e-4)
    assert found.aurc_random == pytest.approx(0.4, abs=1e-4)
    assert found.aurc == pytest.approx((0.2 + 0.8 / 2 + 1.2 / 3) / 3, abs=1e-4), "0.8 first, then 0.4, then 0.6"
    assert found.aurc_best == pytest.approx((0.2 + 0.6 / 2 + 1.2 / 3) / 3, abs=1e-4)
    assert found.spearman == pytest.approx(0.5)
    assert found.pearson == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(cases=CASES, seed=st.integers(0, 99))
def test_no_order_is_better_than_the_best(cases: list[tuple[float, float]], seed: int) -> None:
    expected, true = (np.array(values) for values in zip(*cases, strict=True))
    found = figures(expected, true)
    assert found.aurc >= found.aurc_best - 1e-4
    assert risks(expected, true)[-1] == pytest.approx(1 - true.mean())
    order = np.random.default_rng(seed).permutation(len(true))
    assert figures(expected[order], true[order]) == found, "the order of the cases means nothing"


def test_cases_of_the_same_expected_dice_are_in_any_order() -> None:
    found = figures([0.5] * 4, [0.2, 0.4, 0.6, 0.8])
    assert found.aurc == found.aurc_random == 0.5
    assert (found.pearson, found.spearman) == (None, None)


def test_scores_that_differ_by_rounding_have_no_correlation() -> None:
    assert figures([0.0, 1.0], [0.0, 3e-288]).pearson is None


@given(cases=CASES)
def test_bins_hold_every_case(cases: list[tuple[float, float]]) -> None:
    expected, true = zip(*cases, strict=True)
    found = bins(expected, true)
    assert sum(one.cases for one in found) == len(cases)
    for one in found:
        assert one.low - 1e-9 <= one.expected <= one.high + 1e-9
    assert sum(one.cases * one.true for one in found) == pytest.approx(sum(true))


# --- The command.


class Cases:
    """A folder of masks and reports, and one of references: Dice and entropy fall from case to case."""

    def __init__(self, folder: Path, count: int) -> None:
        self.predictions, self.references, self.models = folder / "masks", folder / "labels", folder / "models"
        self.models.mkdir(parents=True)
        for number in range(count):
            self.add(f"case{number:02d}", hits=30 - number, entropy=number / 60)

    def add(self, name: str, *, hits: int, entropy: float | None, **changes: object) -> None:
        reference = np.ones(GRID.shape, np.uint8)
        reference[0, 0, 0] = 2
        mask = reference.copy()
        mask.reshape(-1)[max(1, hits) :] = 0
        write_volume(Volume(mask, GRID), self.predictions / f"{name}.mha")
        write_volume(Volume(reference, GRID), self.references / f"{name}.mha")
        confidence = confidence_of(None if entropy is None else 1 - entropy, entropy)
        report = msgspec.structs.replace(REPORT, mask=f"{name}.mha", confidence=confidence, **changes)
        (self.predictions / f"{name}.json").write_text(report.as_text())

    def run(self) -> Result:
        arguments = ["calibrate", self.predictions, self.references, self.models]
        return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(tmp_path, 12)


def test_calibrates_and_keeps_other_recipes(cases: Cases) -> None:
    other = line_calibration(({"0": "b" * 64},))
    write_calibrations({"task1": other}, cases.models)
    result = cases.run()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{cases.models / CALIBRATION}: task2, 12 cases\nexpected Dice = ")
    found = read_calibrations(cases.models)
    assert found["task1"] == other
    made = found["task2"]
    assert made.models == ({"0": "a" * 64},)
    assert made.cross_validated.spearman == pytest.approx(1.0)
    assert made.line.expected(confidence_of(0.9, 0.1)) == pytest.approx(2 * 23 / 52, abs=0.02)
    assert cases.run().stdout == result.stdout, "a second run replaces the first"


def test_cases_without_a_tumour_in_the_fused_mask_are_not_fitted(cases: Cases) -> None:
    before = calibrate(read_cohort(cases.predictions, cases.references))
    cases.add("rescued", hits=2, entropy=None)
    after = calibrate(read_cohort(cases.predictions, cases.references))
    assert (after.line, after.cases, after.empty_masks) == (before.line, 12, 1)
    assert after.cross_validated.aurc_random > before.cross_validated.aurc_random


def without_report(cases: Cases) -> str:
    (cases.predictions / "case03.json").unlink()
    return "the report of a case (JSON), found No such file"


def with_damaged_report(cases: Cases) -> str:
    (cases.predictions / "case03.json").write_text("{")
    return "the report of a case (JSON), found Input data was truncated"


def without_mask(cases: Cases) -> str:
    (cases.predictions / "case03.mha").unlink()
    return "1 of 12 cases have no prediction"


def on_another_grid(cases: Cases) -> str:
    write_volume(Volume(np.ones((2, 3, 4), np.uint8), Grid((2, 3, 4), GRID.spacing)), cases.predictions / "case03.mha")
    return "expected a mask on the grid of its reference mask"


def without_reference_tumour(cases: Cases) -> str:
    write_volume(Volume(np.zeros(GRID.shape, np.uint8), GRID), cases.references / "case03.mha")
    return "expected a reference mask with a tumour"


def of_another_recipe(cases: Cases) -> str:
    cases.add("case03", hits=20, entropy=0.1, recipe="task1")
    return "of the recipe task1, or of other models or folds"


def of_other_folds(cases: Cases) -> str:
    used = msgspec.structs.replace(REPORT.models[0], folds=("1",), sha256={"1": "c" * 64})
    cases.add("case03", hits=20, entropy=0.1, models=(used,))
    return "or of other models or folds than most cases"


def without_all_tiles(cases: Cases) -> str:
    cases.add("case03", hits=20, entropy=0.1, events=(Event(EventCode.TILES_LEFT_OUT, "3 of 9 tiles"),))
    return "tiles or folds were left out"


def segmented_in_the_mode_fast(cases: Cases) -> str:
    used = msgspec.structs.replace(REPORT.models[0], tile_share=0.7)
    cases.add("case03", hits=20, entropy=0.1, models=(used,))
    return "tiles or folds were left out"


@pytest.mark.fault(
    "evaluation", "one of twelve cases to calibrate by is {damage}", "the case is named, and the others are used"
)
@pytest.mark.parametrize(
    "damage",
    [
        without_report,
        with_damaged_report,
        without_mask,
        on_another_grid,
        without_reference_tumour,
        of_another_recipe,
        of_other_folds,
        without_all_tiles,
        segmented_in_the_mode_fast,
    ],
)
def test_names_a_case_that_cannot_be_used(
    cases: Cases, damage: Callable[[Cases], str], caplog: pytest.LogCaptureFixture
) -> None:
    reason = damage(cases)
    result = cases.run()
    assert result.exit_code == 1
    assert reason in caplog.text
    assert "1 of 12 cases could not be used: case03" in caplog.messages[-1]
    assert read_calibrations(cases.models)["task2"].cases == 11


@pytest.mark.fault("evaluation", "too few cases to calibrate by", "an error that says how many are needed")
def test_refuses_too_few_cases(tmp_path: Path) -> None:
    few = Cases(tmp_path, MIN_CASES - 1)
    few.add("rescued", hits=2, entropy=None)
    result = few.run()
    assert result.exit_code == 1
    assert f"expected at least {MIN_CASES} cases in which the networks mark a tumour, found {MIN_CASES - 1}" in (
        result.stderr
    )
    assert not (few.models / CALIBRATION).exists()


@pytest.mark.fault("evaluation", "no case has a report of `pantherseg predict`", "an error that says so")
def test_refuses_masks_of_other_programs(cases: Cases) -> None:
    for path in cases.predictions.glob("*.json"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        read_cohort(cases.predictions, cases.references)
    assert "none of 12 cases can be used" in one_line_about(cases.predictions, caught.value)


def test_refuses_paths_that_are_no_folders(cases: Cases) -> None:
    single = cases.predictions / "case00.mha"
    with pytest.raises(InputError, match="expected a folder with the masks and reports of cases, found a file"):
        read_cohort(single, cases.references)
    shutil.rmtree(cases.models)
    assert "expected the folder of the models that made the masks, found no such folder" in cases.run().stderr
    assert not cases.models.exists()


# --- The file.


MODELS = ({"0": "a" * 64, "1": "b" * 64}, {"0": "c" * 64})


def damaged(folder: Path) -> None:
    path = folder / CALIBRATION
    path.write_bytes(path.read_bytes()[:-40])


def of_another_schema(folder: Path) -> None:
    content = json.loads((folder / CALIBRATION).read_text())
    (folder / CALIBRATION).write_text(json.dumps({**content, "schema": 2}))


def a_folder(folder: Path) -> None:
    (folder / CALIBRATION).unlink()
    (folder / CALIBRATION).mkdir()


def with_nan(folder: Path) -> None:
    text = (folder / CALIBRATION).read_text()
    (folder / CALIBRATION).write_text(text.replace('"intercept": 1.0', '"intercept": NaN'))


@pytest.mark.fault(
    "models", "the calibration beside them is {damage}", "no expected Dice, and a line of the log; the mask is as usual"
)
@pytest.mark.parametrize("damage", [damaged, of_another_schema, a_folder, with_nan])
def test_a_calibration_that_cannot_be_read_is_not_used(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    write_calibrations({"task1": line_calibration(MODELS)}, tmp_path)
    assert find_calibration(tmp_path, "task1", MODELS) == line_calibration(MODELS)
    assert find_calibration(tmp_path, "task2", MODELS) is None
    assert caplog.messages == []
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        read_calibrations(tmp_path)
    assert "a calibration of models" in one_line_about(tmp_path / CALIBRATION, caught.value)
    assert find_calibration(tmp_path, "task1", MODELS) is None
    assert caplog.messages == [f"no expected Dice: {caught.value}"]


@pytest.mark.fault(
    "models",
    "the calibration beside them is of models with another {difference}",
    "no expected Dice, and a line of the log",
)
@pytest.mark.parametrize(
    ("difference", "models"),
    [
        ("fold", ({"0": "a" * 64, "2": "b" * 64}, MODELS[1])),
        ("content of a fold", ({"0": "a" * 64, "1": "d" * 64}, MODELS[1])),
        ("number of folds", ({"0": "a" * 64}, MODELS[1])),
        ("localizer", (MODELS[0],)),
    ],
)
def test_a_calibration_of_other_models_is_not_used(
    tmp_path: Path, difference: str, models: tuple[dict[str, str], ...], caplog: pytest.LogCaptureFixture
) -> None:
    write_calibrations({"task1": line_calibration(MODELS)}, tmp_path)
    assert find_calibration(tmp_path, "task1", models) is None, difference
    (line,) = caplog.messages
    assert line == f"no expected Dice: {tmp_path / CALIBRATION} is of other models or folds than these"
    confidence = confidence_of(0.8, 0.2)
    assert line_calibration(MODELS).applied(confidence, models) == confidence


def test_the_expected_dice_is_that_of_the_line() -> None:
    found = line_calibration(MODELS, intercept=0.7).applied(confidence_of(0.8, 0.2), MODELS)
    assert found == msgspec.structs.replace(confidence_of(0.8, 0.2), expected_dice=0.7)
    assert line_calibration(MODELS).applied(confidence_of(0.0, None), MODELS).expected_dice == 0


def test_no_folder_and_no_file_are_no_calibration(tmp_path: Path) -> None:
    assert read_calibrations(tmp_path) == read_calibrations(tmp_path / "missing") == {}


# --- Beside the models.


@pytest.mark.parametrize("task", [1, 2])
def test_the_demo_models_have_a_calibration(task: int) -> None:
    recipe = load_recipe(task_recipe(task))
    bundles = [model for model in find_models(DEMO_WEIGHTS, recipe).all if isinstance(model, Bundle)]
    calibration = read_calibrations(DEMO_WEIGHTS)[recipe.name]
    assert calibration.models == identity(bundles), "run python -m bench.confidence after a change of the demo models"
    assert calibration.cross_validated.mean_absolute_error < 0.1


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """The demo models without Task 1's, with their calibration."""
    folder = tmp_path / "models"
    for role in ("task2", "localizer"):
        shutil.copytree(DEMO_WEIGHTS / role, folder / role)
    shutil.copyfile(DEMO_WEIGHTS / CALIBRATION, folder / CALIBRATION)
    return folder


RULE = f"{CALIBRATION} is of these models"
TASK2 = load_recipe(task_recipe(2))


def test_packing_copies_the_calibration_of_the_recipe(demo_copy: Path, tmp_path: Path) -> None:
    pack_models(demo_copy, tmp_path / "packed", TASK2)
    assert read_calibrations(tmp_path / "packed") == {"task2": read_calibrations(demo_copy)["task2"]}
    verdicts = check_model(tmp_path / "packed", TASK2)
    assert broken(verdicts) == {}
    assert verdicts[-1].rule == RULE


@pytest.mark.fault(
    "models", "the calibration beside models to pack is of others", "it is left out, with a line of the log"
)
def test_packing_leaves_out_a_calibration_of_other_models(
    demo_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(demo_copy / "localizer")
    (found,) = broken(check_model(demo_copy, TASK2)).items()
    assert found == (RULE, "other models or folds: no Dice would be expected")
    pack_models(demo_copy, tmp_path / "packed", TASK2)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["task2"]
    left_out = f"{demo_copy / CALIBRATION}: left out, because it is of other models or folds"
    assert left_out in caplog.messages


@pytest.mark.fault(
    "models", "the calibration beside models to pack is damaged", "an error that names it, and no bundle"
)
def test_packing_refuses_a_damaged_calibration(demo_copy: Path, tmp_path: Path) -> None:
    (demo_copy / CALIBRATION).write_text("{")
    (found,) = broken(check_model(demo_copy, TASK2)).items()
    assert found[0] == RULE
    assert f"{demo_copy / CALIBRATION}: expected a calibration of models" in found[1]
    with pytest.raises(ModelError) as caught:
        pack_models(demo_copy, tmp_path / "packed", TASK2)
    assert "truncated" in one_line_about(demo_copy / CALIBRATION, caught.value)
    assert not (tmp_path / "packed").exists()


def test_a_calibration_beside_an_nnunet_folder_is_compared_on_packing(demo_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "task1").symlink_to(demo_folder.path)
    write_calibrations({"task1": line_calibration(MODELS)}, tmp_path)
    verdicts = {verdict.rule: verdict for verdict in check_model(tmp_path, load_recipe(task_recipe(1)))}
    assert verdicts[RULE].found == "compared when the nnU-Net folders are packed"


# --- In a session.


@pytest.fixture
def calibrated(tmp_path: Path, one_fold: Recipe) -> tuple[Path, Recipe]:
    """Models with a calibration of two folds, and the recipe that uses these folds."""
    shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "models" / "task1")
    member = msgspec.structs.replace(one_fold.members[0], folds=[0, 1], min_folds=1)
    recipe = msgspec.structs.replace(one_fold, members=[member])
    models = identity([open_bundle(tmp_path / "models" / "task1", folds=[0, 1])])
    write_calibrations({"task1": line_calibration(models)}, tmp_path / "models")
    return tmp_path / "models", recipe


@pytest.mark.slow
def test_a_case_gets_its_expected_dice(calibrated: tuple[Path, Recipe], pancreas: Volume) -> None:
    folder, recipe = calibrated
    session = Session(recipe, folder, device="cpu")
    found = segment(pancreas, session)
    confidence = found.confidence
    assert confidence.mean_entropy is not None
    assert confidence.pairwise_dice is not None
    expected = min(1.0, 1 - confidence.mean_entropy + 0.25 * confidence.pairwise_dice)
    assert confidence.expected_dice == pytest.approx(expected, abs=1e-3)
    volume_ml = sum(confidence.fold_volumes_ml) / 2
    assert volume_ml == pytest.approx(found.tumour_ml, rel=0.2), "the folds agree about this tumour"
    without = segment(pancreas, Session(recipe, DEMO_WEIGHTS, device="cpu"))
    assert without.confidence == msgspec.structs.replace(confidence, expected_dice=None)
    np.testing.assert_array_equal(without.mask.array, found.mask.array)
    (folder / "task1" / "fold_1.safetensors").write_bytes(b"damaged")
    partial = segment(pancreas, Session(recipe, folder, device="cpu"))
    assert [event.code for event in partial.events] == [EventCode.FOLD_LEFT_OUT]
    assert (partial.confidence.pairwise_dice, partial.confidence.expected_dice) == (None, None)


@pytest.mark.slow
def test_what_was_left_out_for_time_has_no_expected_dice(calibrated: tuple[Path, Recipe], pancreas: Volume) -> None:
    folder, recipe = calibrated
    found = segment(pancreas, Session(recipe, folder, device="cpu"), deadline=Deadline.after(1e-3))
    assert found.confidence.expected_dice is None
    assert found.confidence.pairwise_dice is None
    assert len(found.confidence.fold_volumes_ml) == 1
