"""Evaluation of masks: the challenge's five metrics, its leaderboards, and the comparison of two sets of masks."""

from pantherseg.evaluation.comparison import compare, comparison_table
from pantherseg.evaluation.leaderboard import leaderboard_table
from pantherseg.evaluation.run import Evaluation, evaluate
from pantherseg.evaluation.tables import evaluation_table, write_csv, write_json

__all__ = [
    "Evaluation",
    "compare",
    "comparison_table",
    "evaluate",
    "evaluation_table",
    "leaderboard_table",
    "write_csv",
    "write_json",
]
