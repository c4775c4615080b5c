"""Finds the files of the cases of a report: volumes, masks and references of the same name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pantherseg.errors import InputError, first_few
from pantherseg.evaluation.run import CHANNEL_SUFFIX
from pantherseg.io import case_name, find_sources

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseFiles:
    """A case: its name without a channel number, its volume, and its mask and reference where there are any.

    problem: why it has no mask, if that is known.
    """

    name: str
    image: Path
    mask: Path | None
    reference: Path | None
    problem: str = ""


def find_cases(images: Path, masks: Path, references: Path | None) -> list[CaseFiles]:
    """Return the cases in files or folders, sorted by name.

    Each volume of `images` is a case. Masks and references belong to the case of their name, without a channel number
    as `pantherseg evaluate` matches them; two or three single files belong together whatever their names. Where one
    path is a file, only that case is returned. In a folder without volumes, those of its subfolders are taken, such as
    a container's output. Masks and references of no case are named in a warning.

    Raises InputError for a path without volumes, for two files of one case, and if no volume has a mask.
    """
    given = {"images": images, "masks": masks} | ({} if references is None else {"references": references})
    found = {kind: _by_case(path) for kind, path in given.items()}
    if all(path.is_file() for path in given.values()):
        (name,) = found["images"]
        return [CaseFiles(name, images, masks, references)]
    volumes = found["images"]
    if not volumes.keys() & found["masks"].keys():
        expected = f"masks named like their volumes, e.g. {next(iter(volumes.values())).name}"
        names = first_few(path.name for path in found["masks"].values())
        raise InputError(masks, expected=expected, found=names)
    for kind, path in given.items():
        others = [file.name for name, file in found[kind].items() if name not in volumes]
        if others and images.is_dir() and path.is_dir():
            logger.warning("%s: ignored, because there is no volume of this name: %s", path, first_few(others))
    single = [set(found[kind]) for kind, path in given.items() if path.is_file()]
    wanted = [name for name in volumes if all(name in only for only in single)]
    empty: Mapping[str, Path] = {}
    of_case = found.get("references", empty)
    return [CaseFiles(name, volumes[name], found["masks"].get(name), of_case.get(name)) for name in wanted]


def _by_case(path: Path) -> dict[str, Path]:
    """Return the volumes of a file or folder by the names of their cases."""
    if not path.exists():
        raise InputError(path, expected="a volume or a folder of volumes", found="no such file or folder")
    files = [path] if path.is_file() else _volumes(path)
    if not files:
        raise InputError(path, expected="at least one volume", found="a folder without volumes")
    cases: dict[str, Path] = {}
    for file in files:
        name = case_name(file).removesuffix(CHANNEL_SUFFIX)
        if name in cases:
            expected, both = f"one file for case {name}", f"{cases[name].name} and {file.name}"
            raise InputError(path, expected=expected, found=both)
        cases[name] = file
    return dict(sorted(cases.items()))


def _volumes(folder: Path) -> list[Path]:
    """Return the volumes in a folder; where it has none, those of its subfolders."""
    if files := find_sources(folder, dangling=True):
        return files
    # Links to folders may lead back.
    folders = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.is_symlink()]
    return [file for child in folders if not child.name.startswith(".") for file in _volumes(child)]
