"""A selection, from folders of probabilities to a recipe and to what it is worth on cases that it did not see."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError, first_few
from pantherseg.recipe import Recipe
from pantherseg.selection.cases import Scorer, Scores, read_cases
from pantherseg.selection.members import MemberFolder, common_cases, find_references, open_members
from pantherseg.selection.nested import Nested, nested
from pantherseg.selection.recipe_file import kept_steps, recipe_of
from pantherseg.selection.search import PROCEDURES, Selection, single_members, totals

logger = logging.getLogger(__name__)

FOLDS, SEED = 5, 0


@dataclass(frozen=True)
class Outcome:
    """The result of a selection.

    recipe: of what was chosen on all cases; members: what there was to choose from; cases: those that were used;
    failed: why others could not be read; alone: the five metrics of each member on these cases; nested: how good the
    procedures are on cases that they did not see.
    """

    recipe: Recipe
    selection: Selection
    members: tuple[MemberFolder, ...]
    cases: tuple[str, ...]
    failed: Mapping[str, str]
    alone: Scores
    nested: Nested

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the members in tables."""
        return tuple(member.label for member in self.members)

    @property
    def seconds(self) -> tuple[float | None, ...]:
        """The mean time of each member's networks for a case in seconds, None where it is not recorded."""
        return tuple(member.seconds_of(self.cases) for member in self.members)


def select_members(
    folders: Sequence[tuple[str, Path]],
    references: Path,
    base: Recipe,
    *,
    name: str,
    folds: int = FOLDS,
    seed: int = SEED,
) -> Outcome:
    """Choose members, weights, fusion, threshold and components by the best mean rank over the challenge's metrics.

    folders: the name of a model in recipes, and a folder of the tumour's probabilities by it, for each member; several
    members may have the same model. references: a folder of reference masks (1 = tumour). base: gives the recipe all
    else, and the steps after the chosen ones. name: of the recipe. folds, seed: of the outer cross-validation over
    patients. A case that cannot be read is named in the result's `failed`, and the others are used.

    Raises InputError if a folder cannot be used, if a member was trained on a case, or if there are too few cases;
    RecipeError where no recipe can contain the members.
    """
    steps = kept_steps(base)
    masks = find_references(references)
    members = open_members(folders, masks, base)
    common = common_cases(members, masks)
    cases, failed = read_cases(common, [member.files for member in members])
    if not cases:
        raise InputError(
            references, f"none of {len(common)} cases could be read: {first_few(failed.values(), limit=1)}"
        )
    size = sum(case.voxels.nbytes + case.values.nbytes for case in cases) / 1e6
    logger.info("%d members, %d cases, %.1f MB of probabilities", len(members), len(cases), size)
    scorer = Scorer(tuple(cases), steps)
    judged = nested(scorer, folds=folds, seed=seed)  # first: too few patients are found at once
    selection = PROCEDURES["select"](scorer)
    recipe = recipe_of(selection.candidate, [member.settings for member in members], base, name=name)
    return Outcome(
        recipe=recipe,
        selection=selection,
        members=tuple(members),
        cases=tuple(case.name for case in cases),
        failed=failed,
        alone=totals(scorer.scores(single_members(scorer))),
        nested=judged,
    )
