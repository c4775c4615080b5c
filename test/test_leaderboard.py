"""Positions among the published test-phase teams."""

from __future__ import annotations

import pytest

from pantherseg.errors import PantherSegError
from pantherseg.evaluation import Totals, leaderboard_standings, leaderboard_table, published_teams, standings

PERFECT = Totals(dice=1, surface_dice_5mm=1, hd95_mm=0, masd_mm=0, volume_rmse_mm3=0)


def test_the_published_figures_are_there() -> None:
    task1, task2 = published_teams("task1"), published_teams("task2")
    assert (len(task1), len(task2)) == (9, 10)
    assert task1[0].totals == Totals(0.7265, 0.9204, 8.60, 1.67, 9338)
    assert task1[-1].totals == Totals(0.6420, 0.8050, 59.89, 38.44, 12649)
    assert task2[0].totals == Totals(0.5289, 0.6999, 23.01, 5.13, 17164)
    assert task2[-1].totals == Totals(0.0, 0.0149, 535.29, 509.86, 32657)


def test_task_2_has_the_published_order() -> None:
    teams = published_teams("task2")
    assert [s.team for s in standings(teams)] == list(teams)
    # Two teams share the mean position 2.4.
    assert [s.place for s in standings(teams)] == [1, 2, 2, 4, 5, 6, 7, 8, 9, 10]


def test_task_1_has_the_published_order_but_for_two_neighbours() -> None:
    # Published: DeepLearnAI before bulab; the five positions give 6.8 and 6.6.
    published = [team.name for team in published_teams("task1")]
    expected = [*published[:6], published[7], published[6], published[8]]
    ranking = standings(published_teams("task1"))
    assert [s.team.name for s in ranking] == expected
    assert [s.mean_position for s in ranking] == pytest.approx([1, 3.8, 4, 4.4, 5, 5.6, 6.6, 6.8, 7.8])


@pytest.mark.parametrize("task", ["task1", "task2"])
def test_a_published_teams_figures_get_its_positions(task: str) -> None:
    teams = published_teams(task)
    for published in standings(teams):
        mine, ranking = leaderboard_standings(published.team.totals, task=task)
        assert mine.positions == published.positions
        assert mine.mean_position == published.mean_position
        assert len(ranking) == len(teams) + 1


def test_a_perfect_result_leads_and_moves_the_others_down() -> None:
    mine, ranking = leaderboard_standings(PERFECT, task="task1")
    assert (mine.place, mine.mean_position) == (1, 1)
    assert ranking[0] is mine
    assert ranking[1].team.name == "MIC-DKFZ"
    assert set(ranking[1].positions.values()) == {2}


def test_a_result_in_the_middle() -> None:
    mine, _ = leaderboard_standings(Totals(0.70, 0.80, 20, 2, 9000), task="task1")
    assert mine.positions == {
        "dice": 2,
        "surface_dice_5mm": 10,
        "hd95_mm": 7,
        "masd_mm": 2,
        "volume_rmse_mm3": 1,
    }
    assert mine.mean_position == pytest.approx(22 / 5)


def test_the_table_marks_the_result_and_warns() -> None:
    table = leaderboard_table(PERFECT, task="task2", name="demo")
    assert any(line.startswith("> 1") and "demo" in line for line in table.splitlines())
    assert "place 1 of 11, mean position 1.0 on task2" in table
    assert "Official convention" in table


def test_an_unknown_task_is_an_error() -> None:
    with pytest.raises(PantherSegError, match="task1 or task2, found 'task3'"):
        published_teams("task3")
