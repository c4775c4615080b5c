"""Choosing an ensemble by the challenge's own metrics, from predictions of cases that no member was trained on."""

from pantherseg.selection.recipe_file import write_recipe
from pantherseg.selection.run import FOLDS, SEED, Outcome, select_members
from pantherseg.selection.tables import outcome_dict, outcome_table, recipe_remarks

__all__ = [
    "FOLDS",
    "SEED",
    "Outcome",
    "outcome_dict",
    "outcome_table",
    "recipe_remarks",
    "select_members",
    "write_recipe",
]
