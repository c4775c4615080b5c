"""What was downloaded into a model folder: the one that an archive holds, or one made of loose checkpoints."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pantherseg.errors import DownloadError, ModelError, printable
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.packing.checkpoint import read_checkpoint, read_origin
from pantherseg.packing.pack import pack
from pantherseg.packing.sources.nnunet import DATASET, PLANS
from pantherseg.weights.archive import opened
from pantherseg.weights.zoo import Weights

logger = logging.getLogger(__name__)

FOLD = re.compile(r"fold_(\d+|all)(?![0-9a-z])")
HINT = "the patterns are in weights/zoo.toml"


def build(entry: Weights, files: Sequence[Path], target: Path, *, zoo: Sequence[Weights]) -> None:
    """Make the new folder `target` of an entry's files: a bundle, or nnU-Net's folder for a start for training.

    The folder around it is this function's own: what an earlier attempt left there is removed.
    zoo: all that are known, to tell one's folder from another's. Raises DownloadError, ModelError, OutputError.
    """
    source = target.with_name("source")
    shutil.rmtree(target.parent, ignore_errors=True)
    if entry.layout == "model folder":
        model = _from_archive(entry, files, source, zoo)
    else:
        model = _from_checkpoints(entry, files, source)
    if entry.packed:
        pack(model, target)
        return
    for fold in model.folds:
        read_checkpoint(model.checkpoint_path(fold))
    source.rename(target)


def check_files(entry: Weights, names: Sequence[str]) -> None:
    """Raise DownloadError, before anything is downloaded, unless a model can be made of files of these names."""
    if entry.layout == "model folder":
        if len(names) != 1:
            raise DownloadError(entry.name, expected="one archive", found=f"{len(names)} files: {', '.join(names)}")
        return
    known: dict[str, str] = {}
    for name in names:
        fold = _fold(name)
        if fold in known:
            raise DownloadError(entry.name, expected=f"one file of {fold}", found=f"{known[fold]} and {name}")
        known[fold] = name


def _fold(name: str) -> str:
    """Return the fold that a loose checkpoint's name states. Raises DownloadError where there is none."""
    if (found := FOLD.search(name)) is None:
        raise DownloadError(name, expected="a fold's number in the name (fold_0)", found="none")
    return found[0]


def _from_archive(entry: Weights, files: Sequence[Path], target: Path, zoo: Sequence[Weights]) -> ModelFolder:
    with opened(files[0]) as archive:
        folder = _choose_folder(entry, files[0], archive.sizes, zoo)
        inside = {PurePosixPath(name): name for name in archive.sizes}
        below = {path.relative_to(folder): name for path, name in inside.items() if path.is_relative_to(folder)}
        checkpoint = _choose_checkpoint(entry, files[0], below)
        wanted = {path: name for path, name in below.items() if str(path) in (PLANS, DATASET) or _is(path, checkpoint)}
        archive.unpack({name: target / path for path, name in wanted.items()})
    return open_model_folder(target, checkpoint=checkpoint)


def _is(path: PurePosixPath, checkpoint: str) -> bool:
    """Return whether a path below a model folder is a fold's checkpoint of this name."""
    return len(path.parts) == 2 and FOLD.fullmatch(path.parts[0]) is not None and path.name == checkpoint


def _choose_folder(entry: Weights, file: Path, names: Mapping[str, int], zoo: Sequence[Weights]) -> PurePosixPath:
    """Return the only model folder of an archive, or the only one of the entry's name."""
    paths = [PurePosixPath(name) for name in names]
    trained = {path.parent.parent for path in paths if FOLD.fullmatch(path.parent.name) and path.suffix == ".pth"}
    found = sorted(trained & {path.parent for path in paths if path.name == PLANS})
    fitting = [folder for folder in found if entry.folder and fnmatchcase(folder.name, entry.folder)]
    if len(fitting) == 1:
        return fitting[0]
    if len(found) != 1 or fitting:
        shown = ", ".join(map(str, fitting or found)) or "none"
        raise ModelError(
            file, expected=f"one model folder{f' like {entry.folder}' if entry.folder else ''}", found=shown, hint=HINT
        )
    if entry.folder and (name := found[0].name):
        others = (other for other in zoo if other.name != entry.name and other.folder)
        if other := next((other for other in others if fnmatchcase(name, other.folder or "")), None):
            raise ModelError(file, expected=f"the model folder of {entry.name}", found=f"that of {other.name} ({name})")
        logger.warning(
            "%s: expected a model folder like %s, found %s, which is taken", file.name, entry.folder, printable(name)
        )
    return found[0]


def _choose_checkpoint(entry: Weights, file: Path, paths: Mapping[PurePosixPath, str]) -> str:
    """Return the entry's checkpoint if every fold has it, else one that every fold has, and say so."""
    folds: dict[str, set[str]] = {}
    for path in paths:
        if len(path.parts) != 2 or not FOLD.fullmatch(path.parts[0]) or not path.name.isprintable():
            continue
        if path.suffix == ".pth" and path.name[0] != ".":
            folds.setdefault(path.parts[0], set()).add(path.name)
    common = set.intersection(*folds.values()) if folds else set()
    if entry.checkpoint in common:
        return entry.checkpoint
    if not common:
        held = "; ".join(f"{fold}: {', '.join(sorted(names))}" for fold, names in sorted(folds.items()))
        raise ModelError(file, expected="a checkpoint that every fold has", found=held or "no fold")
    chosen = min(common)  # checkpoint_best before checkpoint_final before checkpoint_latest
    logger.warning("%s: not every fold has %s: %s is taken", entry.name, entry.checkpoint, chosen)
    return chosen


def _from_checkpoints(entry: Weights, files: Sequence[Path], target: Path) -> ModelFolder:
    """Make a model folder of loose checkpoints, each of which holds the plans that it was trained with."""
    origin: list[str] | None = None
    for file in files:
        try:
            found = [json.dumps(content, indent=4) for content in read_origin(file)]
        except (TypeError, ValueError) as error:
            raise ModelError(file, expected="plans and dataset_json of plain values", found=str(error)) from error
        if origin is not None and found != origin:
            raise ModelError(file, expected=f"the plans and dataset_json of {files[0].name}", found="others")
        origin = found
        folder = target / _fold(file.name)
        folder.mkdir(parents=True)
        # A second name for the same bytes: the download is still there if what follows fails.
        (folder / entry.checkpoint).hardlink_to(file)
    for name, content in zip((PLANS, DATASET), origin or (), strict=True):
        (target / name).write_text(content, encoding="utf-8")
    return open_model_folder(target, checkpoint=entry.checkpoint)
