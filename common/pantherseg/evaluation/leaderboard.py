"""The rank that a result would have on the published test-phase leaderboards.

The challenge ranks teams by the mean of their positions on the five metrics. A position is one plus the number of teams
that are strictly better, so teams with equal values share the better position.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pantherseg.errors import PantherSegError
from pantherseg.evaluation.metrics import METRICS, Totals
from pantherseg.evaluation.tables import HEADINGS, aligned, totals_cells

YOURS = "this result"
CAUTION = (
    "The published values are means over 30 hidden test cases. A result on other cases, which may be easier or harder,",
    "is not comparable with them: the place is where these figures would stand, not where this method would.",
)


@dataclass(frozen=True)
class Team:
    """A team's name and its five official metrics."""

    name: str
    totals: Totals


@dataclass(frozen=True)
class Standing:
    """A team's positions on the five metrics, their mean, and its place in the ranking."""

    team: Team
    positions: dict[str, int]
    mean_position: float
    place: int


def published_teams(task: str) -> tuple[Team, ...]:
    """Return the teams of `task1` or `task2` in published order. Raises PantherSegError for another name."""
    source = resources.files("pantherseg.evaluation").joinpath("leaderboard.toml")
    boards = tomllib.loads(source.read_text(encoding="utf-8"))
    if task not in boards:
        raise PantherSegError("leaderboard", expected=" or ".join(boards), found=repr(task))
    return tuple(Team(row["team"], Totals(*(float(row[metric]) for metric in METRICS))) for row in boards[task])


def standings(teams: Sequence[Team]) -> tuple[Standing, ...]:
    """Rank teams as the challenge does, best first. Teams with the same mean share a place and keep their order."""
    positions = [
        {metric: 1 + sum(_better(other, team, metric) for other in teams) for metric in METRICS} for team in teams
    ]
    means = [sum(p.values()) / len(METRICS) for p in positions]
    ranked = [
        Standing(team, position, mean, 1 + sum(other < mean for other in means))
        for team, position, mean in zip(teams, positions, means, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda s: s.mean_position))


def leaderboard_standings(totals: Totals, *, task: str, name: str = YOURS) -> tuple[Standing, tuple[Standing, ...]]:
    """Return the standing of a result among the published teams of a task, and the whole ranking.

    totals: in the official convention, as those of the teams. Raises PantherSegError for an unknown task.
    """
    team = Team(name, totals)
    ranking = standings([*published_teams(task), team])
    return next(s for s in ranking if s.team is team), ranking


def leaderboard_table(totals: Totals, *, task: str, name: str = YOURS) -> str:
    """Return the ranking as text, each value with its position, and the result marked with >."""
    mine, ranking = leaderboard_standings(totals, task=task, name=name)
    rows = [["place", "team", *HEADINGS.values(), "mean position"]]
    for standing in ranking:
        values = zip(totals_cells(standing.team.totals), standing.positions.values(), strict=True)
        cells = [f"{value} ({position})" for value, position in values]
        mark = ">" if standing is mine else " "
        rows.append([f"{mark} {standing.place}", standing.team.name, *cells, f"{standing.mean_position:.1f}"])
    width = max(len(row[1]) for row in rows)
    for row in rows:
        row[1] = row[1].ljust(width)
    notes = [
        f"{name}: place {mine.place} of {len(ranking)}, mean position {mine.mean_position:.1f} on {task}.",
        "Official convention (the challenge's axis order); positions in brackets.",
        *CAUTION,
        "Not for clinical use.",
    ]
    return "\n".join([aligned(rows), "", *notes])


def leaderboard_dict(totals: Totals, *, task: str) -> dict[str, Any]:
    """Return the standing of a result among the published teams for a JSON file. Raises PantherSegError."""
    mine, ranking = leaderboard_standings(totals, task=task)
    return {
        "task": task,
        "place": mine.place,
        "teams": len(ranking),
        "positions": mine.positions,
        "mean_position": mine.mean_position,
        "caution": " ".join(CAUTION),
    }


def _better(other: Team, team: Team, metric: str) -> bool:
    """Tell whether the other team is strictly better on a metric."""
    theirs, ours = getattr(other.totals, metric), getattr(team.totals, metric)
    return bool(theirs > ours if METRICS[metric] else theirs < ours)
