"""Fusion: the logits of all members become one prediction on the volume's grid.

A fusion is a table of the recipe, `fusion = {kind = "mean_logits"}`; a new one is a class with one registration, and
an import of its module here.
"""

from pantherseg.fusion.means import FusedLogits, FusedProbabilities, MeanLogits, MeanProbability
from pantherseg.fusion.members import Fused, Fusion, MemberLogits
from pantherseg.fusion.votes import FusedStaple, FusedVotes, Staple, Vote

__all__ = [
    "Fused",
    "FusedLogits",
    "FusedProbabilities",
    "FusedStaple",
    "FusedVotes",
    "Fusion",
    "MeanLogits",
    "MeanProbability",
    "MemberLogits",
    "Staple",
    "Vote",
]
