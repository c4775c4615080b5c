"""The platform's rules for a model archive, and whether its models would run, checked before an upload."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pantherseg.archives import Archive, ArchiveError, compression
from pantherseg.errors import ModelError, PantherSegError, UploadError, first_few
from pantherseg.model_sources.checkpoint import check_archive
from pantherseg.model_sources.nnunet import DATASET, read_json
from pantherseg.models.bundle import Bundle
from pantherseg.models.calibration import CALIBRATION, identity, read_calibrations
from pantherseg.models.find import Model, ModelFolder, Models, by_role, check_labels, find_models, label_warning
from pantherseg.models.label_maps import fused_labels
from pantherseg.recipe import Recipe
from pantherseg.verdict import Verdict

SUFFIX = ".tar.gz"
# The first bytes of a pickle, which is what torch wrote before it wrote zip archives.
OLDER_CHECKPOINT = b"\x80\x02"


def check_model(path: Path, recipe: Recipe) -> list[Verdict]:
    """Check a model archive, or a folder of models, against the platform's rules and a recipe's models.

    An archive is unpacked to a temporary folder. Raises UploadError; OutputError where there is no room for that.
    """
    if path.is_dir():
        return list(_folder_verdicts(path, recipe))
    if not path.is_file():
        raise UploadError(path, expected="a model archive or a folder of models", found="no such file or folder")
    with tempfile.TemporaryDirectory(prefix="pantherseg-check-") as folder:
        return list(_archive_verdicts(path, Path(folder), recipe))


def _archive_verdicts(path: Path, folder: Path, recipe: Recipe) -> Iterator[Verdict]:
    rule = f"a {SUFFIX} archive, complete"
    try:
        with path.open("rb") as file:
            kind = compression(file)
        if kind != "gzip":
            raise ArchiveError(f"{'no compression' if kind == 'none' else kind}: the platform takes gzip only")
        archive = Archive(path)
        archive.unpack({name: folder / name for name in (*archive.sizes, *archive.links)})
    except ArchiveError as error:
        yield Verdict(rule, False, str(error))
        return
    kept = path.name.endswith(SUFFIX)
    unpacked = f"{sum(archive.sizes.values()) / 1e6:.1f} MB in {len(archive.sizes)} files unpacked"
    found = f"{path.stat().st_size / 1e6:.1f} MB, {unpacked}"
    yield Verdict(rule, kept, found if kept else f"{path.name}: the platform takes no other name")
    rule = "files and folders below the archive's own folder"
    yield Verdict(rule, not archive.refused, first_few(archive.refused) or "no others")
    closed = [
        f"{member.name} (mode {member.mode:04o})"
        for member in archive.members
        if member.kind in ("file", "folder") and not _readable(member.mode, folder=member.kind == "folder")
    ]
    yield Verdict("readable by any user", not closed, first_few(closed) or "all files and folders")
    yield from _model_verdicts(folder, recipe, shown=path)


def _folder_verdicts(folder: Path, recipe: Recipe) -> Iterator[Verdict]:
    closed, outside = [], []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                outside.append(f"{path.relative_to(folder)} (a link to {path.readlink()})")
            elif path.exists() and not _readable(path.stat().st_mode, folder=path.is_dir()):
                closed.append(f"{path.relative_to(folder)} (mode {stat.S_IMODE(path.stat().st_mode):04o})")
    yield Verdict("no links that lead out of the folder", not outside, first_few(outside) or "none")
    yield Verdict("readable by any user", not closed, first_few(closed) or "all files and folders")
    yield from _model_verdicts(folder, recipe, shown=folder)


def _model_verdicts(root: Path, recipe: Recipe, *, shown: Path) -> Iterator[Verdict]:
    """Check that a folder has the recipe's models, undamaged. shown: stands for the folder in what was found."""
    rule = f"every model of the recipe {recipe.name}"
    try:
        models = find_models(root, recipe)
        found_models = by_role(models, recipe)
    except PantherSegError as error:
        yield Verdict(rule, False, str(error).replace(str(root), str(shown)))
        return
    # Only the models of the upload: the machine that runs them has no others.
    roles = {role: model for role, model in found_models.items() if model.path.is_relative_to(root)}
    remark = "" if recipe.localizer is None or recipe.localizer.model in roles else _no_localizer(recipe)
    found = "; ".join(f"{role}: folds {' '.join(model.folds)}" for role, model in roles.items())
    yield Verdict(rule, True, found + remark)
    for role, model in roles.items():
        try:
            found = _check_bundle(model, role, recipe) if isinstance(model, Bundle) else _check_checkpoints(model)
            warning = label_warning(role, _labels(model), recipe)
        except PantherSegError as error:
            yield Verdict(f"{role} would run", False, str(error).replace(str(root), str(shown)))
        else:
            yield Verdict(f"{role} would run", True, f"{found}; but {warning}" if warning else found)
    yield from _fusion_verdicts(root, models, recipe, shown=shown)
    yield from _calibration_verdicts(root, models, recipe, shown=shown)


def _fusion_verdicts(root: Path, models: Models, recipe: Recipe, *, shown: Path) -> Iterator[Verdict]:
    """Check that the members of a recipe, if all are bundles, can be fused and have what its steps need."""
    bundles = [model for model in models.members if isinstance(model, Bundle)]
    if len(bundles) < len(models.members):
        return
    rule = f"members for {recipe.fusion.registry.name_of(recipe.fusion)} and the steps"
    try:
        labels = fused_labels(bundles, recipe)
    except PantherSegError as error:
        yield Verdict(rule, False, str(error).replace(str(root), str(shown)))
        return
    if len(bundles) > 1:
        classes = zip(recipe.member_names, labels.members, strict=True)
        yield Verdict(rule, True, ", ".join(f"{name}: {one.classes} classes" for name, one in classes))


def _calibration_verdicts(root: Path, models: Models, recipe: Recipe, *, shown: Path) -> Iterator[Verdict]:
    """Check that a calibration, if there is one, is of the models beside it: otherwise no Dice would be expected."""
    rule = f"{CALIBRATION} is of these models"
    try:
        calibration = read_calibrations(root).get(recipe.name)
    except PantherSegError as error:
        yield Verdict(rule, False, str(error).replace(str(root), str(shown)))
        return
    if calibration is None:
        return
    bundles = [model for model in models.all if isinstance(model, Bundle)]
    if len(bundles) < len(models.all):
        yield Verdict(rule, True, "compared when the nnU-Net folders are packed")
        return
    kept = calibration.models == identity(bundles)
    yield Verdict(
        rule, kept, f"{calibration.cases} cases" if kept else "other models or folds: no Dice would be expected"
    )


def _no_localizer(recipe: Recipe) -> str:
    assert recipe.localizer is not None
    return f"; no {recipe.localizer.model}: the whole volume would be searched"


def _check_bundle(bundle: Bundle, role: str, recipe: Recipe) -> str:
    """Check a bundle's files against their checksums, and that it has the labels that the recipe needs."""
    bundle.verify_all()
    check_labels(role, bundle, recipe)
    return f"a bundle, folds {' '.join(bundle.folds)} match their checksums"


def _check_checkpoints(model: ModelFolder) -> str:
    """Check an nnU-Net folder as far as this works without torch: recent checkpoints are zip files with checksums."""
    for fold in model.folds:
        path = model.checkpoint_path(fold)
        check_archive(path)
        with path.open("rb") as file:
            older = file.read(2) == OLDER_CHECKPOINT
        if not older and not zipfile.is_zipfile(path):
            raise ModelError(path, expected="a complete checkpoint", found="a truncated one, or another file")
    return (
        "an nnU-Net folder: only the image of the cuda runtime can run it, and packs it anew for every case;"
        " pack it with `pantherseg pack`"
    )


def _labels(model: Model) -> dict[str, int]:
    """Return the labels of a model, none for a model folder whose framework has no dataset.json."""
    if isinstance(model, Bundle):
        return model.manifest.labels
    labels = read_json(model.path / DATASET).get("labels") if (model.path / DATASET).is_file() else None
    return labels if isinstance(labels, dict) else {}


def _readable(mode: int, *, folder: bool) -> bool:
    """Return whether permissions let any user read a file, or list and enter a folder."""
    wanted = 0o5 if folder else 0o4
    return mode & wanted == wanted
