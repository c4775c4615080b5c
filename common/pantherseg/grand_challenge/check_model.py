"""The platform's rules for a model archive, and whether what is in it would run, checked before an upload."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pantherseg.errors import OutputError, PantherSegError, UploadError
from pantherseg.grand_challenge.stream import (
    DAMAGED,
    Budget,
    Forward,
    Refused,
    begun,
    decompressed,
    link_target,
    members,
    reason,
)
from pantherseg.grand_challenge.verdict import Verdict, first_few
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import ModelFolder, by_role, check_labels, find_models
from pantherseg.packing.checkpoint import check_archive
from pantherseg.recipe import Recipe
from pantherseg.weights.archive import allowed_bytes

SUFFIX = ".tar.gz"
MAX_ENTRIES = 100_000
CHUNK_BYTES = 1 << 20
# How a pickle begins: what torch wrote before it wrote zip archives.
OLDER_CHECKPOINT = b"\x80\x02"


@dataclass
class Unpacked:
    """What became of an archive.

    outside: members that the platform refuses, or that are no files; closed: those with rights for few; links: to which
    file, and as it was written.
    """

    size: int = 0
    files: int = 0
    outside: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    links: dict[str, tuple[str, str]] = field(default_factory=dict)


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
        unpacked = _unpack(path, folder)
    except Refused as refusal:
        yield Verdict(rule, False, str(refusal))
        return
    kept = path.name.endswith(SUFFIX)
    found = f"{path.stat().st_size / 1e6:.1f} MB, {unpacked.size / 1e6:.1f} MB in {unpacked.files} files unpacked"
    yield Verdict(rule, kept, found if kept else f"{path.name}: the platform takes no other name")
    rule = "files and folders below the archive's own folder"
    yield Verdict(rule, not unpacked.outside, first_few(unpacked.outside) or "no others")
    yield Verdict("readable by any user", not unpacked.closed, first_few(unpacked.closed) or "all files and folders")
    yield from _model_verdicts(folder, recipe, shown=path)


def _folder_verdicts(folder: Path, recipe: Recipe) -> Iterator[Verdict]:
    closed, outside = [], []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                outside.append(f"{path.relative_to(folder)} (a link to {path.readlink()})")
            elif path.exists() and not _open(path.stat().st_mode, folder=path.is_dir()):
                closed.append(f"{path.relative_to(folder)} (mode {stat.S_IMODE(path.stat().st_mode):04o})")
    yield Verdict("no links that lead out of the folder", not outside, first_few(outside) or "none")
    yield Verdict("readable by any user", not closed, first_few(closed) or "all files and folders")
    yield from _model_verdicts(folder, recipe, shown=folder)


def _model_verdicts(root: Path, recipe: Recipe, *, shown: Path) -> Iterator[Verdict]:
    """Whether the recipe's models are below a folder and sound. shown: what the folder is called in what is said."""
    rule = f"every model of the recipe {recipe.name}"
    try:
        found_models = by_role(find_models(root, recipe), recipe)
    except PantherSegError as error:
        yield Verdict(rule, False, str(error).replace(str(root), str(shown)))
        return
    # Only those of the upload: the machine that runs them has no others.
    roles = {role: model for role, model in found_models.items() if model.path.is_relative_to(root)}
    remark = "" if recipe.localizer is None or recipe.localizer.model in roles else _no_localizer(recipe)
    found = "; ".join(f"{role}: folds {' '.join(model.folds)}" for role, model in roles.items())
    yield Verdict(rule, True, found + remark)
    for role, model in roles.items():
        try:
            said = _bundle(model, role, recipe) if isinstance(model, Bundle) else _raw(model)
        except (PantherSegError, Refused) as error:
            yield Verdict(f"{role} would run", False, str(error).replace(str(root), str(shown)))
        else:
            yield Verdict(f"{role} would run", True, said)


def _no_localizer(recipe: Recipe) -> str:
    assert recipe.localizer is not None
    return f"; no {recipe.localizer.model}: the whole volume would be searched"


def _bundle(bundle: Bundle, role: str, recipe: Recipe) -> str:
    """Check a bundle's files against their checksums, and that it has the labels that are asked for."""
    bundle.verify_all()
    check_labels(role, bundle, recipe)
    return f"a bundle, folds {' '.join(bundle.folds)} as their checksums say"


def _raw(model: ModelFolder) -> str:
    """Check an nnU-Net folder as far as is possible without torch: most checkpoints are zip archives with checksums."""
    for fold in model.folds:
        path = model.checkpoint_path(fold)
        check_archive(path)
        with path.open("rb") as file:
            older = file.read(2) == OLDER_CHECKPOINT
        if not older and not zipfile.is_zipfile(path):
            raise Refused(f"{path}: a truncated checkpoint, or none")
    return "an nnU-Net folder: only the cuda runtime's image runs it, packing it for every case; `pantherseg pack` it"


def _unpack(path: Path, folder: Path) -> Unpacked:
    """Unpack an archive's regular files, and links to them, below a folder. Raises Refused, OutputError."""
    result = Unpacked()
    budget = Budget(allowed_bytes(path.stat().st_size), MAX_ENTRIES)
    try:
        with path.open("rb") as source:
            kind, packed = begun(source)
            if kind != "gzip":
                raise Refused(f"{'no compression' if kind == 'none' else kind}: the platform takes gzip only")
            stream = Forward(decompressed(packed, kind), budget)
            for member, archive in members(stream, budget):
                _take(member, archive, folder, result)
    except DAMAGED as error:
        raise Refused(f"a damaged archive ({reason(error)})") from error
    _link(folder, result)
    return result


def _take(member: tarfile.TarInfo, archive: tarfile.TarFile, folder: Path, result: Unpacked) -> None:
    """Unpack one member, or note what is wrong with it; links wait until every file is there."""
    name = posixpath.normpath(member.name)
    if name.startswith("/") or ".." in member.name.split("/") or "\0" in name:
        result.outside.append(member.name)
    elif member.issym() or member.islnk():
        result.links[name] = (link_target(member, name), member.linkname)
    elif member.isfile():
        result.size += member.size
        result.files += 1
        _write(folder / name, archive.extractfile(member), member.size)
    elif not member.isdir():
        result.outside.append(f"{member.name} (a device or pipe)")
    if (member.isfile() or member.isdir()) and not _open(member.mode, folder=member.isdir()):
        result.closed.append(f"{name} (mode {member.mode:04o})")


def _write(path: Path, source: Any, size: int) -> None:
    """Write a member. Raises OutputError where that fails, and Refused where the archive does not allow for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size > (free := shutil.disk_usage(path.parent).free):
            found = f"{free / 1e6:.0f} MB free"
            raise OutputError(path.parent, expected=f"room to unpack {size / 1e6:.0f} MB", found=found)
        target = path.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Refused(f"{path.name} as a file and as a folder") from error
    except OSError as error:
        raise OutputError(path, expected="to unpack here", found=error.strerror or str(error)) from error
    with target:
        while data := source.read(CHUNK_BYTES):
            target.write(data)


def _link(folder: Path, result: Unpacked) -> None:
    """Follow links to files of the archive, as the platform does; note those that lead anywhere else."""
    for name, (target, said) in result.links.items():
        path, file = folder / name, folder / target
        if target.startswith(("/", "../")) or not file.is_file():
            result.outside.append(f"{name} (a link to {said})")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(file)


def _open(mode: int, *, folder: bool) -> bool:
    """Return whether a mode lets anybody read a file, or read and pass a folder."""
    wanted = 0o5 if folder else 0o4
    return mode & wanted == wanted
