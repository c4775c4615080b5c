"""Positions of a result among the published teams of the test phase."""

from __future__ import annotations

import pytest

from pantherseg.errors import PantherSegError
from pantherseg.evaluation import leaderboard_table
from pantherseg.evaluation.leaderboard import leaderboard_standings, published_teams, standings
from pantherseg.evaluation.metrics import Totals

PERFECT = Totals(dice=1, surface_dice_5mm=1, hd95_mm=0, masd_mm=0, volume_rmse_mm3=0)


def test_ranks_task_2_as_published() -> None:
    teams = published_teams("task2")
    assert [s.team for s in standings(teams)] == list(teams)
    # Two teams share the mean position 2.4.
    assert [s.place for s in standings(teams)] == [1, 2, 2, 4, 5, 6, 7, 8, 9, 10]


def test_ranks_task_1_as_published_except_for_two_neighbours() -> None:
    # Published is DeepLearnAI before bulab, but the means of their positions are 6.8 and 6.6.
    published = [team.name for team in published_teams("task1")]
    expected = [*published[:6], published[7], published[6], published[8]]
    ranking = standings(published_teams("task1"))
    assert [s.team.name for s in ranking] == expected
    assert [s.mean_position for s in ranking] == pytest.approx([1, 3.8, 4, 4.4, 5, 5.6, 6.6, 6.8, 7.8])


@pytest.mark.parametrize("task", ["task1", "task2"])
def test_the_metrics_of_a_published_team_get_its_positions(task: str) -> None:
    teams = published_teams(task)
    for published in standings(teams):
        mine, ranking = leaderboard_standings(published.team.totals, task=task)
        assert (mine.positions, mine.mean_position) == (published.positions, published.mean_position)
        assert len(ranking) == len(teams) + 1


def test_a_perfect_result_is_first_and_moves_the_others_down() -> None:
    mine, ranking = leaderboard_standings(PERFECT, task="task1")
    assert (mine.place, mine.mean_position) == (1, 1)
    assert ranking[0] is mine
    assert ranking[1].team.name == "MIC-DKFZ"
    assert set(ranking[1].positions.values()) == {2}


def test_counts_the_better_teams_for_each_metric() -> None:
    mine, _ = leaderboard_standings(Totals(0.70, 0.80, 20, 2, 9000), task="task1")
    assert list(mine.positions.values()) == [2, 10, 7, 2, 1]
    assert mine.mean_position == pytest.approx(22 / 5)


def test_the_table_marks_the_result() -> None:
    table = leaderboard_table(PERFECT, task="task2", name="demo")
    assert any(line.startswith("> 1") and "demo" in line for line in table.splitlines())
    assert "place 1 of 11, mean position 1.0 on task2" in table


def test_refuses_an_unknown_task() -> None:
    with pytest.raises(PantherSegError, match="task1 or task2, found 'task3'"):
        published_teams("task3")
