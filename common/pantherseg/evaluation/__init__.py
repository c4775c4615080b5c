"""Evaluation of masks: the challenge's five metrics, its leaderboards, and the comparison of two sets of masks."""

from pantherseg.evaluation.comparison import Comparison, Difference, compare, comparison_table
from pantherseg.evaluation.leaderboard import (
    Standing,
    Team,
    leaderboard_standings,
    leaderboard_table,
    published_teams,
    standings,
)
from pantherseg.evaluation.metrics import METRICS, CaseMetrics, CaseScores, Totals, score_case, totals
from pantherseg.evaluation.run import Evaluation, evaluate
from pantherseg.evaluation.tables import evaluation_table, write_csv, write_json

__all__ = [
    "METRICS",
    "CaseMetrics",
    "CaseScores",
    "Comparison",
    "Difference",
    "Evaluation",
    "Standing",
    "Team",
    "Totals",
    "compare",
    "comparison_table",
    "evaluate",
    "evaluation_table",
    "leaderboard_standings",
    "leaderboard_table",
    "published_teams",
    "score_case",
    "standings",
    "totals",
    "write_csv",
    "write_json",
]
