"""Evaluation of masks: the challenge's five metrics, lesions, leaderboards, and the comparison of two sets of masks."""

from pantherseg.evaluation.comparison import Comparison, compare, comparison_table
from pantherseg.evaluation.difference_plot import draw_differences
from pantherseg.evaluation.leaderboard import leaderboard_dict, leaderboard_table
from pantherseg.evaluation.run import Evaluation, evaluate
from pantherseg.evaluation.tables import evaluation_table, lesion_table, write_csv, write_json

__all__ = [
    "Comparison",
    "Evaluation",
    "compare",
    "comparison_table",
    "draw_differences",
    "evaluate",
    "evaluation_table",
    "leaderboard_dict",
    "leaderboard_table",
    "lesion_table",
    "write_csv",
    "write_json",
]
