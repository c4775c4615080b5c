"""Finds trained models on disk and checks that they are complete, without torch.

A model is a bundle or a model folder of a training framework, such as nnU-Net's: plans.json, dataset.json and
fold_<k>/<checkpoint>. A recipe names its models by role (`task1`, `localizer`). Below a root folder, the model of a
role is the only model in <root>/<role>, or else the only one whose folder has the published name that the recipe gives.
For a recipe with a single member it may also be the only model anywhere below the root that does not belong to another
role.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeVar

from pantherseg.errors import ModelError, RecipeError, os_reason, printable
from pantherseg.labels import tumour_label_warning
from pantherseg.model_sources import SOURCES, source_of
from pantherseg.model_sources.mrsegmentator import BASE, BASE_CLASSES, NAME, is_mrsegmentator, weights_folders
from pantherseg.model_sources.nnunet import DATASET, LAYOUT, PLANS, read_json
from pantherseg.models.bundle import Bundle, is_bundle, needed, open_bundle
from pantherseg.models.label_maps import label_map
from pantherseg.recipe import Checkpoint, Localizer, Member, Recipe

T = TypeVar("T")

MAX_DEPTH = 4
# The roles of the two tasks' recipes.
ROLES = ("task1", "task2", "localizer")
# <role>.fetched.json beside <role> records what `pantherseg weights fetch` placed there, and its origin.
FETCHED = ".fetched.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder of a training framework. folds: the folds that are used, in this order."""

    path: Path
    folds: tuple[str, ...]
    checkpoint: str

    def checkpoint_path(self, fold: str) -> Path:
        """Return the checkpoint of one fold."""
        return self.path / f"fold_{fold}" / self.checkpoint


Model = Bundle | ModelFolder


@dataclass(frozen=True)
class Models:
    """The models of a recipe that were found below a root folder.

    members: those that are usable; localizer: None if the recipe has none, the root contains none, or it cannot be
    used; problem: why it cannot; unusable: by name why members are not among them, as the recipe allows.
    """

    members: tuple[Model, ...]
    localizer: Model | None
    problem: str = ""
    unusable: Mapping[str, ModelError] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Model, ...]:
        """The members, then the localizer if there is one."""
        return self.members if self.localizer is None else (*self.members, self.localizer)


def choose_root(uploaded: Path, shipped: Path) -> Path:
    """Return the folder of uploaded models if it contains any file, else that of the models shipped with the code.

    Raises ModelError if the uploaded folder cannot be read.
    """
    # Any file counts: a damaged upload must be an error, and never silently replaced by another model.
    has_files = any(files for _, _, files in os.walk(uploaded, onerror=_refuse_unreadable))
    return uploaded if has_files else shipped


def find_models(root: Path, recipe: Recipe, *, complete: bool = True) -> Models:
    """Find and check every model of a recipe below a root folder. Raises ModelError naming what is missing.

    complete: if False, as many folds and members may be missing or incomplete as the recipe allows, and a localizer
    that cannot be used is reported in `Models.problem`.
    """
    if not root.is_dir():
        raise ModelError(root, expected="a folder of models", found="a file" if root.exists() else "no such folder")

    def open_member(number: int) -> Model:
        member = recipe.members[number]
        min_folds = None if complete else member.min_folds
        folder = _member_folder(root, member, recipe)
        return open_model(folder, folds=member.folds, checkpoint=member.checkpoint, min_folds=min_folds)

    members, unusable = usable_members(recipe, open_member, min_members=None if complete else recipe.min_members)
    localizer, problem, wanted = None, "", recipe.localizer
    try:
        if wanted is not None:
            localizer = find_localizer(root, wanted)
    except ModelError as error:
        if complete:
            raise
        problem = str(error)
    return Models(members, localizer, problem, unusable)


def usable_members(
    recipe: Recipe, make: Callable[[int], T], *, min_members: int | None
) -> tuple[tuple[T, ...], dict[str, ModelError]]:
    """Return what `make` returns for the number of each member, and by name the errors that it raises.

    Raises the first ModelError where fewer than `min_members` members are usable, for None where not all are.
    """
    made, unusable = [], {}
    for number, name in enumerate(recipe.member_names):
        try:
            made.append(make(number))
        except ModelError as error:
            if min_members is None:
                raise
            unusable[name] = error
    if min_members is not None and len(made) < min_members:
        raise next(iter(unusable.values()))
    return tuple(made), unusable


def find_localizer(root: Path, wanted: Localizer) -> Model | None:
    """Find and check the localizer of a recipe below a root folder; None if it is not there. Raises ModelError."""
    folder = _localizer_folder(root, wanted)
    if folder is None:
        return None
    model = open_model(folder, folds=wanted.folds, checkpoint=wanted.checkpoint)
    if isinstance(model, ModelFolder) and is_mrsegmentator(folder):
        _check_base(folder)
    return model


def by_role(models: Models, recipe: Recipe) -> dict[str, Model]:
    """Return the model of each role with every fold that a member, or the localizer, uses.

    Raises RecipeError if they use different checkpoints of one model folder.
    """
    roles: dict[str, Model] = {}
    used = [(member.model, model) for member, model in zip(recipe.members, models.members, strict=True)]
    if models.localizer is not None and recipe.localizer is not None:
        used.append((recipe.localizer.model, models.localizer))
    for role, model in used:
        known = roles.get(role)
        if isinstance(known, ModelFolder) and isinstance(model, ModelFolder) and known.checkpoint != model.checkpoint:
            found = f"{known.checkpoint} and {model.checkpoint}"
            raise RecipeError(recipe.name, expected=f"one checkpoint of {role}", found=found)
        before = () if known is None else known.folds
        roles[role] = replace(model, folds=tuple(dict.fromkeys((*before, *model.folds))))
    return roles


def check_labels(role: str, bundle: Bundle, recipe: Recipe) -> None:
    """Raise RecipeError unless the bundle of a role has the labels that the recipe uses."""
    for member in recipe.members:
        if member.model == role:
            label_map(bundle, member, recipe)
    if recipe.localizer is not None and recipe.localizer.model == role:
        bundle.check_label("label", recipe.localizer.label)


def label_warning(role: str, labels: Mapping[str, int], recipe: Recipe) -> str:
    """Return a warning if the model of a member calls its tumour label pancreas, else an empty string."""
    numbers = (recipe.tumour_label_of(member) for member in recipe.members if member.model == role)
    return printable(next(filter(None, (tumour_label_warning(labels, number) for number in numbers)), ""))


def open_model(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: Checkpoint | None = None,
    min_folds: int | None = None,
) -> Model:
    """Open a bundle or a model folder; parameters and errors as in `open_bundle` and `open_model_folder`."""
    opener = open_bundle if is_bundle(folder) else open_model_folder
    return opener(folder, folds=folds, checkpoint=checkpoint, min_folds=min_folds)


def open_model_folder(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: Checkpoint | None = None,
    min_folds: int | None = None,
) -> ModelFolder:
    """Check that a model folder has its description and the checkpoints of its folds. Raises ModelError.

    checkpoint: file name, by default that of the framework, or several, as a recipe's member has them.
    min_folds: number of checkpoints that must exist, damaged or not; by default all.
    """
    source = source_of(folder)
    for name in source.files:
        if not (folder / name).is_file():
            layout = f"{', '.join(source.files)} and fold_0, fold_1, ..."
            raise ModelError(folder, expected=f"a model folder ({layout})", found=f"no {name}")
    names = _all_folds(folder) if folds == "all" else [str(fold) for fold in folds]
    if not names:
        raise ModelError(folder, expected="at least one fold_<k>", found="none")
    chosen = _chosen_checkpoint(folder, names, checkpoint or source.checkpoint)
    model = ModelFolder(folder, tuple(names), chosen)
    missing = [fold for fold in names if not model.checkpoint_path(fold).is_file()]
    if missing and len(names) - len(missing) < needed(len(names), min_folds):
        path = model.checkpoint_path(missing[0])
        others = sorted(other.name for other in path.parent.glob(f"*{path.suffix}"))
        raise ModelError(path, expected="a checkpoint", found=f"{', '.join(others) or 'nothing'} in fold_{missing[0]}")
    return model


def _chosen_checkpoint(folder: Path, folds: Sequence[str], names: Checkpoint) -> str:
    """Return the name that most folds of a model folder have, and of equal ones the first."""

    def count(name: str) -> int:
        return sum((folder / f"fold_{fold}" / name).is_file() for fold in folds)

    return names if isinstance(names, str) else max(names, key=count)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        found = os_reason(error)
        raise ModelError(error.filename, expected="a folder that this user may read", found=found) from error


def _member_folder(root: Path, member: Member, recipe: Recipe) -> Path:
    below = root / member.model
    found = list(_model_folders(below)) if below.is_dir() else []
    if not found and member.folder is not None:
        found = [path for path in _model_folders(root) if _is_named(root, path, member.folder)]
    if not found and len(recipe.members) == 1:
        roles = {recipe.localizer.model} if recipe.localizer else set()
        found = [
            path
            for path in _model_folders(root)
            if not roles & set(path.relative_to(root).parts) and not _has_another_role(root, path)
        ]
    if len(found) != 1:
        raise ModelError(
            root,
            expected=f"one bundle or nnU-Net model folder ({LAYOUT}) for '{member.model}'",
            found=", ".join(str(path.relative_to(root)) for path in found) or "none",
            hint=f"put it in {below}",
        )
    return found[0]


def _is_named(root: Path, model: Path, pattern: str) -> bool:
    """Return whether a pattern matches the name of a model's folder, or of one above it up to `root`."""
    return any(fnmatchcase(name, pattern) for name in (root.name, *model.relative_to(root).parts))


def _has_another_role(root: Path, model: Path) -> bool:
    """Return whether a model below `root` is in the folder of a role, or was fetched and so has its own role."""
    top = model.relative_to(root).parts[:1]
    return any(name in ROLES or (root / f"{name}{FETCHED}").is_file() for name in top)


def _localizer_folder(root: Path, localizer: Localizer) -> Path | None:
    below = root / localizer.model
    found = list(_model_folders(below)) if below.is_dir() else []
    if len(found) > 1 and all(map(is_mrsegmentator, found)):
        # MRSegmentator 2.0 keeps its models beside each other, and `body_comp` has no pancreas.
        found = [path for path in found if path.name == BASE] or found
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ModelError(below, expected="one model folder", found=names)
    if found:
        return found[0]
    places = weights_folders() if localizer.model == NAME else ()
    return next((path for path in places if (path / PLANS).is_file()), None)


def _check_base(folder: Path) -> None:
    """Raise ModelError unless a folder of MRSegmentator is that of its model with the pancreas."""
    labels = read_json(folder / DATASET).get("labels")
    if not isinstance(labels, dict) or len(labels) != BASE_CLASSES:
        found = f"{len(labels)} labels" if isinstance(labels, dict) else "no labels"
        expected = f"MRSegmentator's model `{BASE}` with {BASE_CLASSES} labels, background included"
        raise ModelError(folder / DATASET, expected=expected, found=found, hint="`body_comp` has no pancreas")


def _model_folders(top: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folders that look like a model, complete or not, so that an incomplete one is reported."""
    try:
        # Hidden folders are unfinished, such as a download.
        children = sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        _refuse_unreadable(error)
        return
    if is_bundle(top) or any(source.accepts(top) for source in SOURCES):
        yield top
    elif depth < MAX_DEPTH:
        for child in children:
            yield from _model_folders(child, depth + 1)


def _all_folds(folder: Path) -> list[str]:
    """Return the numbered folds in numerical order; fold_all if there is no other, as nnU-Net does."""
    names = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()]
    numbers = sorted((name for name in names if name.isascii() and name.isdigit()), key=int)
    return numbers or [name for name in names if name == "all"]
