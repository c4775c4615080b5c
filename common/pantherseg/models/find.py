"""Trained models on disk: where they are looked for, and whether they are complete. No torch.

A model is a bundle, or an nnU-Net folder: plans.json, dataset.json and fold_<k>/<checkpoint>. A recipe names its
models by role (`task1`, `localizer`); below a root folder, a role's model is the one model folder in <root>/<role> or,
for a recipe with a single member, the only model folder of the root that no other role's name claims.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pantherseg.errors import ModelError, RecipeError
from pantherseg.models.bundle import DATASET, PLANS, Bundle, is_bundle, needed, open_bundle
from pantherseg.recipe import Localizer, Member, Recipe

MAX_DEPTH = 4
CHECKPOINT = "checkpoint_final.pth"
LAYOUT = f"{PLANS}, {DATASET} and fold_0, fold_1, ..."
MRSEGMENTATOR = "mrsegmentator"
# Of the tasks' own recipes.
ROLES = ("task1", "task2", "localizer")
# <role>.fetched.json beside <role>: what `pantherseg weights fetch` placed there, and whence.
FETCHED = ".fetched.json"


@dataclass(frozen=True)
class ModelFolder:
    """An nnU-Net model folder and the folds of it that are used, in their order."""

    path: Path
    folds: tuple[str, ...]
    checkpoint: str

    def checkpoint_path(self, fold: str) -> Path:
        """Return the checkpoint of one fold."""
        return self.path / f"fold_{fold}" / self.checkpoint


Model = Bundle | ModelFolder


@dataclass(frozen=True)
class Models:
    """The models of a recipe, found.

    localizer: None where the recipe has none, the root holds none, or the one that it holds cannot be used, for which
    problem is the reason.
    """

    root: Path
    members: tuple[Model, ...]
    localizer: Model | None
    problem: str = ""

    @property
    def all(self) -> tuple[Model, ...]:
        """The members, then the localizer if there is one."""
        return self.members if self.localizer is None else (*self.members, self.localizer)


def choose_root(uploaded: Path, shipped: Path) -> Path:
    """Return the folder of uploaded models if it holds any file, else that of the models shipped with the code.

    Raises ModelError where what is uploaded cannot be looked at.
    """
    # Any file counts: an upload that is damaged must be an error, not silently another model.
    holds_something = any(files for _, _, files in os.walk(uploaded, onerror=_refuse_unreadable))
    return uploaded if holds_something else shipped


def find_models(root: Path, recipe: Recipe, *, complete: bool = True) -> Models:
    """Find and check every model of a recipe below a root folder. Raises ModelError naming what is missing.

    complete: without it, as many folds may be missing or incomplete as the recipe allows, and a localizer that cannot
    be used is no error.
    """
    if not root.is_dir():
        raise ModelError(root, expected="a folder of models", found="a file" if root.exists() else "no such folder")
    members = tuple(
        open_model(
            _member_folder(root, member, recipe),
            folds=member.folds,
            checkpoint=member.checkpoint,
            min_folds=None if complete else member.min_folds,
        )
        for member in recipe.members
    )
    localizer, problem, wanted = None, "", recipe.localizer
    try:
        if wanted is not None and (folder := _localizer_folder(root, wanted)) is not None:
            localizer = open_model(folder, folds=wanted.folds, checkpoint=wanted.checkpoint)
    except ModelError as error:
        if complete:
            raise
        problem = str(error)
    return Models(root, members, localizer, problem)


def by_role(models: Models, recipe: Recipe) -> dict[str, Model]:
    """Return each role's model with every fold that one of its members wants.

    Raises RecipeError where members want different checkpoints of one nnU-Net folder.
    """
    roles: dict[str, Model] = {}
    for member, model in zip(recipe.members, models.members, strict=True):
        known = roles.get(member.model)
        if isinstance(known, ModelFolder) and isinstance(model, ModelFolder) and known.checkpoint != model.checkpoint:
            found = f"{known.checkpoint} and {model.checkpoint}"
            raise RecipeError(recipe.name, expected=f"one checkpoint of {member.model}", found=found)
        before = () if known is None else known.folds
        roles[member.model] = replace(model, folds=tuple(dict.fromkeys((*before, *model.folds))))
    if models.localizer is not None and recipe.localizer is not None:
        roles[recipe.localizer.model] = models.localizer
    return roles


def check_labels(role: str, bundle: Bundle, recipe: Recipe) -> None:
    """Raise RecipeError unless a role's bundle has the labels that the recipe asks it for."""
    if any(member.model == role for member in recipe.members):
        bundle.check_label("tumour_label", recipe.tumour_label)
    if recipe.localizer is not None and recipe.localizer.model == role:
        bundle.check_label("label", recipe.localizer.label)


def open_model(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: str | None = None,
    min_folds: int | None = None,
) -> Model:
    """Open a bundle or a model folder with every wanted fold of a checkpoint. Raises ModelError.

    checkpoint: without it checkpoint_final.pth of a folder, and whichever a bundle is made of. min_folds: as
    open_bundle takes it.
    """
    if is_bundle(folder):
        return open_bundle(folder, folds=folds, checkpoint=checkpoint, min_folds=min_folds)
    return open_model_folder(folder, folds=folds, checkpoint=checkpoint or CHECKPOINT, min_folds=min_folds)


def open_model_folder(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: str = CHECKPOINT,
    min_folds: int | None = None,
) -> ModelFolder:
    """Check that a model folder holds its plans and the wanted folds' checkpoints. Raises ModelError.

    min_folds: how many of the checkpoints must be there, whatever is in them; without it all.
    """
    for name in (PLANS, DATASET):
        if not (folder / name).is_file():
            raise ModelError(folder, expected=f"an nnU-Net model folder ({LAYOUT})", found=f"no {name}")
    names = _every_fold(folder) if folds == "all" else [str(fold) for fold in folds]
    if not names:
        raise ModelError(folder, expected="at least one fold_<k>", found="none")
    model = ModelFolder(folder, tuple(names), checkpoint)
    missing = [fold for fold in names if not model.checkpoint_path(fold).is_file()]
    if missing and len(names) - len(missing) < needed(len(names), min_folds):
        path = model.checkpoint_path(missing[0])
        others = sorted(other.name for other in path.parent.glob("*.pth"))
        raise ModelError(path, expected="a checkpoint", found=f"{', '.join(others) or 'nothing'} in fold_{missing[0]}")
    return model


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        found = error.strerror or str(error)
        raise ModelError(error.filename, expected="a folder that this user may read", found=found) from error


def _member_folder(root: Path, member: Member, recipe: Recipe) -> Path:
    below = root / member.model
    found = list(_model_folders(below)) if below.is_dir() else []
    if not found and len(recipe.members) == 1:
        roles = {recipe.localizer.model} if recipe.localizer else set()
        found = [
            path
            for path in _model_folders(root)
            if not roles & set(path.relative_to(root).parts) and not _is_anothers(root, path)
        ]
    if len(found) != 1:
        raise ModelError(
            root,
            expected=f"one bundle or nnU-Net model folder ({LAYOUT}) for '{member.model}'",
            found=", ".join(str(path.relative_to(root)) for path in found) or "none",
            hint=f"put it in {below}",
        )
    return found[0]


def _is_anothers(root: Path, model: Path) -> bool:
    """Return whether a model lies under a role's name, or was fetched: that is all that it can stand for."""
    top = model.relative_to(root).parts[:1]
    return any(name in ROLES or (root / f"{name}{FETCHED}").is_file() for name in top)


def _localizer_folder(root: Path, localizer: Localizer) -> Path | None:
    below = root / localizer.model
    found = list(_model_folders(below)) if below.is_dir() else []
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ModelError(below, expected="one model folder", found=names)
    if found:
        return found[0]
    return _mrsegmentator_folder() if localizer.model == MRSEGMENTATOR else None


def _mrsegmentator_folder() -> Path | None:
    """Return where the mrsegmentator package keeps its weights, as its own documentation says, or None."""
    root = Path(os.environ.get("MRSEG_WEIGHTS_PATH", Path.home() / ".mrsegmentator"))
    return next((path for path in (root, root / "base") if (path / "plans.json").is_file()), None)


def _model_folders(top: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folders that look like a model's, so that an incomplete one can be named rather than overlooked."""
    try:
        # Hidden is what is not finished, such as a download.
        children = sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        _refuse_unreadable(error)
        return
    if is_bundle(top) or any((top / name).is_file() for name in (PLANS, DATASET)) or any(top.glob("fold_*/*.pth")):
        yield top
    elif depth < MAX_DEPTH:
        for child in children:
            yield from _model_folders(child, depth + 1)


def _every_fold(folder: Path) -> list[str]:
    """Return the numbered folds in their order, or fold_all where there is no other, as nnU-Net does."""
    names = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()]
    numbers = sorted((name for name in names if name.isascii() and name.isdigit()), key=int)
    return numbers or [name for name in names if name == "all"]
