"""What the numbers of labels mean in the members of a recipe, which may have different label maps.

Where all members have the same map, its numbers stay, and so do the results of argmax where classes are equal.
Otherwise the classes of each member are put into PANTHER's order: background, tumour, pancreas, and then the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pantherseg.errors import ModelError, RecipeError
from pantherseg.labels import PANCREAS, PANCREAS_NAME, TUMOUR, find_label
from pantherseg.models.bundle import Bundle
from pantherseg.recipe import Member, Recipe


@dataclass(frozen=True)
class LabelMap:
    """The numbers of tumour and pancreas among the classes of a model; pancreas is None where it has none."""

    classes: int
    tumour: int
    pancreas: int | None

    def order_as(self, common: LabelMap) -> tuple[int, ...] | None:
        """Return the classes in the order of a common label map, None where they have it already."""
        placed = {common.tumour: self.tumour}
        if self.pancreas is not None and common.pancreas is not None:
            placed[common.pancreas] = self.pancreas
        rest = (number for number in range(self.classes) if number not in placed.values())
        order = tuple(placed[number] if number in placed else next(rest) for number in range(self.classes))
        return None if order == tuple(range(self.classes)) else order


@dataclass(frozen=True)
class FusedLabels:
    """The label maps of the members of a recipe, in their order, and the one that they are fused in."""

    members: tuple[LabelMap, ...]
    common: LabelMap


def label_map(bundle: Bundle, member: Member, recipe: Recipe) -> LabelMap:
    """Return the label map of a member. Raises RecipeError for a label that its model lacks."""
    tumour, pancreas = recipe.tumour_label_of(member), member.pancreas_label
    bundle.check_label("tumour_label", tumour)
    if pancreas is not None:
        bundle.check_label("pancreas_label", pancreas)
    else:
        named = find_label(bundle.manifest.labels, PANCREAS_NAME)
        pancreas = None if named in (0, tumour) else named
    return LabelMap(bundle.manifest.classes, tumour, pancreas)


def fused_labels(bundles: Sequence[Bundle], recipe: Recipe) -> FusedLabels:
    """Return the label maps of the members of a recipe.

    bundles: in the order of the recipe's members. Raises RecipeError for a label that a model lacks and for a step that
    needs the pancreas of members where none has it, ModelError for members that cannot be fused.
    """
    maps = tuple(label_map(bundle, member, recipe) for bundle, member in zip(bundles, recipe.members, strict=True))
    if recipe.fusion.same_classes:
        check_classes(bundles)
    with_pancreas = any(one.pancreas is not None for one in maps)
    for step in recipe.postprocess:
        if step.needs == "members" and not with_pancreas:
            kind = step.registry.name_of(step)
            expected = f"for the step '{kind}' a member whose model has a label called pancreas, or a `pancreas_label`"
            found = f"none among {', '.join(recipe.member_names)}"
            raise RecipeError(f"recipe {recipe.name}", expected=expected, found=found)
    if len(set(maps)) == 1:
        return FusedLabels(maps, maps[0])
    classes = max(one.classes for one in maps)
    return FusedLabels(maps, LabelMap(classes, TUMOUR, PANCREAS if with_pancreas else None))


def check_classes(bundles: Sequence[Bundle]) -> None:
    """Raise ModelError unless all members of an ensemble have the same number of classes; their logits are added."""
    for bundle in bundles:
        if (found := bundle.manifest.classes) != (wanted := bundles[0].manifest.classes):
            expected, hint = f"{wanted} classes, as in {bundles[0].path}", "use another fusion than mean_logits"
            raise ModelError(bundle.path, expected=expected, found=str(found), hint=hint)
