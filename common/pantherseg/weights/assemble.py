"""Turns downloaded files into a model: the model folder in an archive, or one built from loose checkpoints."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pantherseg.archives import opened
from pantherseg.errors import DownloadError, ModelError, printable
from pantherseg.model_sources.checkpoint import read_checkpoint, read_origin
from pantherseg.model_sources.mrsegmentator import VERSION
from pantherseg.model_sources.nnunet import DATASET, PLANS
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.packing.pack import pack
from pantherseg.weights.zoo import Weights

logger = logging.getLogger(__name__)

FOLD = re.compile(r"fold_(\d+|all)(?![0-9a-z])")
HINT = "the expected name is in weights/zoo.toml"


def build(entry: Weights, files: Sequence[Path], target: Path, *, zoo: Sequence[Weights]) -> None:
    """Make the new folder `target` from an entry's files: a bundle, or an nnU-Net folder if it is not to be packed.

    Clears the parent folder first, which is used for intermediate files.
    zoo: all entries, to recognise the model of another one. Raises DownloadError, ModelError, OutputError.
    """
    source = target.with_name("source")
    shutil.rmtree(target.parent, ignore_errors=True)
    if entry.layout == "model folder":
        model = _from_archive(entry, files, source, zoo)
    else:
        model = _from_checkpoints(entry, files, source)
    if entry.packed:
        pack(model, target, orientation=entry.orientation)
        return
    for fold in model.folds:
        read_checkpoint(model.checkpoint_path(fold))
    source.rename(target)


def check_files(entry: Weights, names: Sequence[str]) -> None:
    """Raise DownloadError, before anything is downloaded, unless files of these names can make up a model."""
    if entry.layout == "model folder":
        if len(names) != 1:
            raise DownloadError(entry.name, expected="one archive", found=f"{len(names)} files: {', '.join(names)}")
        return
    by_fold: dict[str, str] = {}
    for name in names:
        if (other := by_fold.setdefault(_fold(name), name)) != name:
            raise DownloadError(entry.name, expected=f"one file for {_fold(name)}", found=f"{other} and {name}")


def _fold(name: str) -> str:
    """Return the fold in a loose checkpoint's name, such as fold_0. Raises DownloadError where there is none."""
    if (found := FOLD.search(name)) is None:
        raise DownloadError(name, expected="a fold in the file name, such as fold_0", found="none")
    return found[0]


def _from_archive(entry: Weights, files: Sequence[Path], target: Path, zoo: Sequence[Weights]) -> ModelFolder:
    with opened(files[0]) as archive:
        folder = _choose_folder(entry, files[0], archive.sizes, zoo)
        paths = {PurePosixPath(name): name for name in archive.sizes}
        inside = {path.relative_to(folder): name for path, name in paths.items() if path.is_relative_to(folder)}
        checkpoint = _choose_checkpoint(entry, files[0], inside)
        needed = [
            path
            for path in inside
            if str(path) in (PLANS, DATASET, VERSION) or (_in_fold(path) and path.name == checkpoint)
        ]
        archive.unpack({inside[path]: target / path for path in needed})
    return open_model_folder(target, checkpoint=checkpoint)


def _in_fold(path: PurePosixPath) -> bool:
    """Return whether a path relative to the model folder is that of a file in a fold's folder."""
    return len(path.parts) == 2 and FOLD.fullmatch(path.parts[0]) is not None


def _choose_folder(entry: Weights, file: Path, names: Iterable[str], zoo: Sequence[Weights]) -> PurePosixPath:
    """Return the model folder in an archive that matches the entry, or else the only one. Raises ModelError."""
    paths = [PurePosixPath(name) for name in names]
    trained = {path.parent.parent for path in paths if FOLD.fullmatch(path.parent.name) and path.suffix == ".pth"}
    found = sorted(trained & {path.parent for path in paths if path.name == PLANS})
    matching = [folder for folder in found if entry.folder and fnmatchcase(folder.name, entry.folder)]
    if len(matching) == 1:
        return matching[0]
    if len(found) != 1 or matching:
        expected = "one model folder" + (f" named {entry.folder}" if entry.folder else "")
        shown = ", ".join(map(str, matching or found)) or "none"
        raise ModelError(file, expected=expected, found=shown, hint=HINT)
    if entry.folder and (name := found[0].name):
        for other in zoo:
            if other.name != entry.name and other.folder and fnmatchcase(name, other.folder):
                found_text = f"that of {other.name} ({name})"
                raise ModelError(file, expected=f"the model folder of {entry.name}", found=found_text)
        logger.warning("%s: using %s, which is not named %s", file.name, printable(name), entry.folder)
    return found[0]


def _choose_checkpoint(entry: Weights, file: Path, paths: Iterable[PurePosixPath]) -> str:
    """Return the entry's checkpoint if every fold has it, otherwise one that they all have, with a warning."""
    folds: dict[str, set[str]] = {}
    for path in paths:
        if _in_fold(path) and path.suffix == ".pth" and path.name.isprintable() and path.name[0] != ".":
            folds.setdefault(path.parts[0], set()).add(path.name)
    common = set.intersection(*folds.values()) if folds else set()
    if entry.checkpoint in common:
        return entry.checkpoint
    if not common:
        held = "; ".join(f"{fold}: {', '.join(sorted(names))}" for fold, names in sorted(folds.items()))
        raise ModelError(file, expected="a checkpoint that every fold has", found=held or "no folds")
    chosen = min(common)  # checkpoint_best before checkpoint_final before checkpoint_latest
    logger.warning("%s: using %s, because not every fold has %s", entry.name, chosen, entry.checkpoint)
    return chosen


def _from_checkpoints(entry: Weights, files: Sequence[Path], target: Path) -> ModelFolder:
    """Make a model folder from loose checkpoints, each of which contains the plans that it was trained with."""
    origin: list[str] | None = None
    for file in files:
        try:
            found = [json.dumps(content, indent=4) for content in read_origin(file)]
        except (TypeError, ValueError) as error:
            raise ModelError(file, expected="plans and dataset_json as plain values", found=str(error)) from error
        if origin is not None and found != origin:
            raise ModelError(file, expected=f"the same plans and dataset_json as {files[0].name}", found="others")
        origin = found
        folder = target / _fold(file.name)
        folder.mkdir(parents=True)
        # A hard link, so that the download is still there if a later step fails.
        (folder / entry.checkpoint).hardlink_to(file)
    for name, content in zip((PLANS, DATASET), origin or (), strict=True):
        (target / name).write_text(content, encoding="utf-8")
    return open_model_folder(target, checkpoint=entry.checkpoint)
