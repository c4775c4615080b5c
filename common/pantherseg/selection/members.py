"""The members to choose from: folders of probabilities, of the same cases and on the same boxes."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pantherseg.errors import InputError, RecipeError, first_few
from pantherseg.evaluation.run import CHANNEL_SUFFIX
from pantherseg.io import case_name, find_sources
from pantherseg.io.probabilities import SUFFIX
from pantherseg.recipe import Member, Recipe
from pantherseg.selection.records import Recorded, recorded

logger = logging.getLogger(__name__)

MAKE_THEM = "make them with `pantherseg predict --save-probabilities`, or take a training's probabilities/<stage>"


@dataclass(frozen=True)
class MemberFolder:
    """A member to choose from.

    model: the name of its model's folder in recipes; label: its name in tables, which no other has; folder: of its
    probabilities; files: the probabilities by case; record: what is known about them; settings: for the recipe.
    """

    model: str
    label: str
    folder: Path
    files: Mapping[str, Path]
    record: Recorded
    settings: Member

    def seconds_of(self, cases: Sequence[str]) -> float | None:
        """Return the mean time of its networks for a case in seconds, None where it is not recorded for any."""
        known = [self.record.seconds[case] for case in cases if case in self.record.seconds]
        return float(np.mean(known)) if known else None


def find_references(folder: Path) -> dict[str, Path]:
    """Return the reference masks of a folder by case. Raises InputError."""
    if not folder.is_dir():
        raise InputError(folder, expected="a folder of reference masks", found=_kind(folder))
    found: dict[str, Path] = {}
    for path in find_sources(folder):
        name = case_name(path)
        if name in found:
            raise InputError(folder, expected=f"one mask for case {name}", found=f"{found[name].name} and {path.name}")
        found[name] = path
    if not found:
        raise InputError(folder, expected="reference masks", found="none")
    return found


def open_members(
    folders: Sequence[tuple[str, Path]], references: Mapping[str, Path], base: Recipe
) -> list[MemberFolder]:
    """Open folders of probabilities, each with the name of its model in recipes.

    A warning is logged for what lowers the trust in a member. Raises InputError for a folder that cannot be used or was
    made by a model that was trained on its cases, and RecipeError where no recipe can contain the members.
    """
    names = Counter(model for model, _ in folders)
    members = []
    for model, folder in folders:
        files = _files(folder, references)
        record = recorded(model, folder, files)
        label = model if names[model] == 1 else f"{model} ({folder.name})"
        for remark in record.remarks:
            logger.warning("%s: %s", label, remark)
        settings = _for_recipe(record.settings or _from_base(model, base), base)
        members.append(MemberFolder(model, label, folder, files, record, settings))
    if repeated := [label for label, count in Counter(member.label for member in members).items() if count > 1]:
        expected = "folders of different names for members with the same model"
        found = f"{len(members)} members, several of this name"
        hint = "give each model a name of its own, such as b=B/probabilities/task1 d=D/probabilities/task1"
        raise InputError(repeated[0], expected=expected, found=found, hint=hint)
    _check_distinct(members)
    _check_localizer(members, base)
    return members


def common_cases(members: Sequence[MemberFolder], references: Mapping[str, Path]) -> dict[str, Path]:
    """Return the reference masks of the cases that all members have; log those that only some have.

    Raises InputError if there are none.
    """
    every = [name for name in references if any(name in member.files for member in members)]
    common = {name: references[name] for name in every if all(name in member.files for member in members)}
    for member in members:
        if missing := [name for name in every if name not in member.files]:
            logger.warning(
                "%s: %d of %d cases are left out, because this member lacks them: %s",
                member.label,
                len(missing),
                len(every),
                first_few(missing),
            )
    if not common:
        counts = ", ".join(f"{member.label} has {len(member.files)}" for member in members)
        raise InputError("members", expected="cases that all members have", found=f"none: {counts}")
    _check_boxes(members, list(common))
    return common


def _files(folder: Path, references: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files of probabilities in a folder by case. Raises InputError where none has a reference mask."""
    if not folder.is_dir():
        raise InputError(folder, expected="a folder of probabilities", found=_kind(folder), hint=MAKE_THEM)
    paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not paths:
        masks = len(find_sources(folder))
        found = f"{masks} masks and no probabilities" if masks else "none"
        raise InputError(folder, expected=f"probabilities (<case>{SUFFIX})", found=found, hint=MAKE_THEM)
    files: dict[str, Path] = {}
    for path in paths:
        name = path.name.removesuffix(SUFFIX)
        name = name if name in references else name.removesuffix(CHANNEL_SUFFIX)
        if name in files:
            raise InputError(folder, expected=f"one file for case {name}", found=f"{files[name].name} and {path.name}")
        files[name] = path
    known = {name: path for name, path in files.items() if name in references}
    if not known:
        example = next(iter(references))
        raise InputError(
            folder,
            expected=f"probabilities named like the reference masks, e.g. {example}{SUFFIX}",
            found=paths[0].name,
        )
    if others := [name for name in files if name not in references]:
        logger.warning("%s: cases without a reference mask are left out: %s", folder, first_few(others))
    return known


def _from_base(model: str, base: Recipe) -> Member:
    """Return the settings of the base recipe's member of a name, the defaults if it has none."""
    return next((member for member in base.members if member.model == model), Member(model=model))


def _for_recipe(member: Member, base: Recipe) -> Member:
    """Return the settings of a member without what a selection chooses, and what the base recipe says anyway."""
    label = None if member.tumour_label == base.tumour_label else member.tumour_label
    return msgspec.structs.replace(member, name=None, threshold=None, tumour_label=label)


def _check_distinct(members: Sequence[MemberFolder]) -> None:
    """Raise RecipeError if a recipe could not tell two members apart."""
    for first, second in itertools.combinations(members, 2):
        if first.settings == second.settings:
            raise RecipeError(
                second.folder,
                expected=f"another model, other folds or other settings than those of {first.label}",
                found="the same, or no report that names them",
                hint="give other models another name, or make the predictions with `pantherseg predict`",
            )


def _check_localizer(members: Sequence[MemberFolder], base: Recipe) -> None:
    """Raise RecipeError if predictions were made with a localizer and the recipe has none, or the other way round."""
    for member in members:
        if member.record.boxes and member.record.localized != (base.localizer is not None):
            with_one, without = "predictions with a localizer, as in the recipe", "predictions of whole volumes"
            expected, found = (with_one, without) if base.localizer is not None else (without, with_one.split(",")[0])
            raise RecipeError(member.folder, expected=expected, found=found, hint="name their recipe with --recipe")


def _check_boxes(members: Sequence[MemberFolder], cases: Sequence[str]) -> None:
    """Raise RecipeError if two members looked at different boxes of a case: a recipe has one localizer for all."""
    located = [member for member in members if member.record.boxes]
    for first, member in itertools.product(located[:1], located[1:]):
        for case in cases:
            mine, theirs = member.record.boxes.get(case), first.record.boxes.get(case)
            if mine is not None and theirs is not None and mine != theirs:
                raise RecipeError(
                    member.folder,
                    expected=f"members that look at the same box, in case {case} at {theirs} as {first.label}",
                    found=str(mine),
                    hint="a recipe has one localizer: make all predictions with it",
                )


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "no such folder"
