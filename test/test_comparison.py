"""Comparison of two sets of masks: counts, tests, intervals, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from pantherseg.cli import main as pantherseg
from pantherseg.errors import OutputError, PantherSegError
from pantherseg.evaluation import Comparison, Evaluation, compare, comparison_table, draw_differences
from pantherseg.evaluation.comparison import holm
from pantherseg.evaluation.difference_plot import BETTER, FOOT, HEAD, SAME, WIDTH, WORSE, Colour
from pantherseg.evaluation.metrics import METRICS, CaseMetrics, CaseScores
from pantherseg.io import write_volume
from pantherseg.volume import Grid, Volume


def case(dice: float, hd95: float, error: float = 10.0) -> CaseScores:
    metrics = CaseMetrics(dice, dice, hd95, hd95 / 3, error, 100 + error, 100)
    return CaseScores(metrics, metrics)


def evaluation(*cases: CaseScores) -> Evaluation:
    return Evaluation({f"c{number}": each for number, each in enumerate(cases)}, {})


def random_pair(cases: int) -> tuple[Evaluation, Evaluation]:
    random = np.random.default_rng(0)
    a = random.random((cases, 2))
    b = a + random.normal(0.05, 0.1, a.shape)
    return evaluation(*(case(d, 10 * h) for d, h in a)), evaluation(*(case(d, 10 * h) for d, h in b))


def test_comparison_counts_better_and_worse_cases() -> None:
    result = compare(evaluation(case(0.5, 4), case(0.7, 4)), evaluation(case(0.6, 6), case(0.6, 4)))
    assert result.cases == ("c0", "c1")
    dice = result.official["dice"]
    assert (dice.better, dice.worse, dice.equal) == (1, 1, 0)
    assert dice.mean_difference == pytest.approx(0, abs=1e-12)
    assert dice.values == pytest.approx((0.1, -0.1))
    assert dice.interval == pytest.approx((-0.1, 0.1))
    assert dice.p_value == pytest.approx(1)
    hd95 = result.corrected["hd95_mm"]
    assert (hd95.better, hd95.worse, hd95.equal) == (0, 1, 1)
    assert hd95.mean_difference == pytest.approx(1)
    assert result.corrected["volume_rmse_mm3"].equal == 2
    table = comparison_table(result, name_a="one", name_b="other")
    assert table.startswith("B: other\nA: one\n2 cases that both have")


def test_volumes_are_compared_by_their_absolute_error() -> None:
    result = compare(evaluation(case(0.5, 4, -30)), evaluation(case(0.5, 4, 10)))
    volume = result.official["volume_rmse_mm3"]
    assert (volume.mean_a, volume.mean_b, volume.better) == (30, 10, 1)
    assert volume.interval is None


def test_equal_evaluations_do_not_differ() -> None:
    one = evaluation(case(0.5, 4), case(0.7, 4))
    for difference in compare(one, one).corrected.values():
        assert (difference.better, difference.worse, difference.equal) == (0, 0, 2)
        assert difference.p_value == difference.p_holm == 1


def test_comparison_is_significant_for_a_consistent_difference() -> None:
    result = compare(evaluation(*[case(0.5, 9)] * 8), evaluation(*[case(0.6, 7)] * 8))
    # All eight differences have the same sign: this and its opposite are 2 of 2**8 equally likely outcomes.
    assert result.official["dice"].p_value == pytest.approx(2 / 2**8)
    # Four metrics have this p-value, and the volume's is 1.
    assert result.official["dice"].p_holm == pytest.approx(5 * 2 / 2**8)
    assert result.official["volume_rmse_mm3"].p_holm == 1
    assert result.official["hd95_mm"].better == 8


def test_p_values_are_those_of_wilcoxons_test() -> None:
    a, b = random_pair(20)
    found = compare(a, b).official["dice"]
    pairs = [[each.official.dice for each in evaluation.cases.values()] for evaluation in (a, b)]
    assert found.p_value == pytest.approx(stats.wilcoxon(*pairs).pvalue)
    assert found.p_value < 0.05


def test_equal_differences_are_ties_of_the_test_whatever_their_rounding() -> None:
    voxels, mm3 = np.array([-44, -27, -55, -302, -10, -567, 27, -573, -8, -53, -2, 41]), 1.1875 * 1.1875 * 3.1
    errors = 1000 + np.abs(voxels)
    pairs = [evaluation(*(case(0.5, 4, float(n) * mm3) for n in sizes)) for sizes in (errors, errors + voxels)]
    found = compare(*pairs).official["volume_rmse_mm3"]
    assert found.p_value == pytest.approx(stats.wilcoxon(voxels).pvalue)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        # Holm's own procedure by hand: 3 x 0.01, 2 x 0.02, 1 x 0.03 but not below the one before.
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.03, 0.01, 0.02], [0.04, 0.03, 0.04]),
        # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6, 1.0], [1.0, 1.0, 1.0]),
        ([0.2], [0.2]),
    ],
)
def test_p_values_are_corrected_by_holms_method(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


def test_refuses_to_compare_evaluations_without_common_cases() -> None:
    one = evaluation(case(0.5, 4))
    with pytest.raises(PantherSegError, match="none of them in both"):
        compare(Evaluation({"other": case(0.5, 4)}, {}), one)


def dots(path: Path) -> set[Colour]:
    """Return the colours of the dots in a picture, without its legend."""
    picture = Image.open(path)
    assert picture.width == WIDTH
    colours = picture.crop((0, HEAD, WIDTH, picture.height - FOOT)).getcolors(WIDTH * picture.height)
    assert colours is not None
    # A dot has about fifty pixels.
    found = {colour for count, colour in colours if count > 20}
    return {colour for colour in (BETTER, WORSE, SAME) if colour in found}


def draw(comparison: Comparison, folder: Path) -> set[Colour]:
    path = folder / "plots" / "differences.png"
    draw_differences(comparison, path, name_a="a", name_b="b" * 300)
    return dots(path)


def test_the_picture_has_dots_in_the_colours_of_the_cases(tmp_path: Path) -> None:
    a, b = random_pair(30)
    # The volume errors are equal.
    assert draw(compare(a, b), tmp_path) == {BETTER, WORSE, SAME}


def test_the_picture_of_one_case_and_of_equal_cases(tmp_path: Path) -> None:
    better = compare(evaluation(case(0.5, 9, 20)), evaluation(case(0.6, 7, 10)))
    assert draw(better, tmp_path) == {BETTER}
    equal = compare(evaluation(*[case(0.5, 9)] * 40), evaluation(*[case(0.5, 9)] * 40))
    assert draw(equal, tmp_path) == {SAME}


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    a, b = random_pair(3)
    with pytest.raises(OutputError, match=r"file/plot\.png"):
        draw_differences(compare(a, b), tmp_path / "file" / "plot.png", name_a="a", name_b="b")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two sets of predictions of three cases, and their references."""
    grid = Grid((6, 8, 9), (3.0, 1.0, 1.0))
    names = tmp_path / "a", tmp_path / "b", tmp_path / "references"
    for number in range(3):
        for folder, shift in zip(names, (2, 1, 0), strict=True):
            array = np.zeros(grid.shape, np.uint8)
            array[1:4, 2:5, number + shift : number + shift + 3] = 1
            write_volume(Volume(array, grid), folder / f"{number}.mha")
    return names


def test_the_command_compares_draws_and_writes_both(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, references = map(str, folders)
    files = {"--plot": tmp_path / "d.png", "--json": tmp_path / "d.json"}
    options = [str(word) for pair in files.items() for word in pair]
    command = ["evaluate", a, references, "--compare", b, "--leaderboard", "task1", "--workers", "2", *options]
    done = CliRunner().invoke(pantherseg, command)
    assert done.exit_code == 0, done.output
    assert "p Holm" in done.stdout
    assert "false positives" in done.stdout
    assert BETTER in dots(files["--plot"])
    written = json.loads(files["--json"].read_text())
    assert set(written["comparison"]["official"]) == set(METRICS)
    assert written["comparison"]["official"]["dice"]["better"] == 3
    assert written["leaderboard"]["teams"] == 10
    assert set(written["leaderboard"]["positions"]) == set(METRICS)
    assert "other cases" in written["leaderboard"]["caution"]


def test_a_plot_needs_a_comparison_and_does_not_replace_an_input(folders: tuple[Path, Path, Path]) -> None:
    a, b, references = map(str, folders)
    done = CliRunner().invoke(pantherseg, ["evaluate", a, references, "--plot", "d.png"])
    assert done.exit_code == 2
    assert "--compare" in done.output
    done = CliRunner().invoke(pantherseg, ["evaluate", a, references, "--compare", b, "--plot", "d.jpg"])
    assert done.exit_code == 2
    assert "expected a name that ends with .png" in done.output
    mask = f"{a}/0.mha"
    done = CliRunner().invoke(pantherseg, ["evaluate", mask, references, "--compare", b, "--json", mask])
    assert done.exit_code == 1
