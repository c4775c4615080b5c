"""The layouts in which data sets are published: where images and labels lie, how cases are named, what labels mean.

A new layout is a function that finds the cases of a folder, and its registration with `layout`. Images and labels are
paired by the case in their names, never by their order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pantherseg.datasets.raw import CHANNEL, RawCase, RawDataset
from pantherseg.errors import InputError, first_few
from pantherseg.io import case_name, find_sources
from pantherseg.labels import BACKGROUND_NAME, ORGANS, PANCREAS_NAME, TUMOUR_NAME, TUMOUR_WORDS

# The number of a label and its name; labels that are of no use here count as background.
Values = Mapping[int, str]
PANTHER_VALUES = {0: BACKGROUND_NAME, 1: TUMOUR_NAME, 2: PANCREAS_NAME}
# The order of the Medical Segmentation Decathlon.
MSD_VALUES = {0: BACKGROUND_NAME, 1: PANCREAS_NAME, 2: TUMOUR_NAME}
# Lesion, veins, arteries, pancreas, pancreatic duct and bile duct.
PANORAMA_VALUES = {
    0: BACKGROUND_NAME,
    1: TUMOUR_NAME,
    2: BACKGROUND_NAME,
    3: BACKGROUND_NAME,
    4: PANCREAS_NAME,
    5: PANCREAS_NAME,
    6: BACKGROUND_NAME,
}
ORGAN_VALUES = {0: BACKGROUND_NAME, **{number: name for name, number in ORGANS.items()}}
AUTOMATIC = "automatic"
IMAGE = re.compile(rf"(.+){CHANNEL}")


@dataclass(frozen=True)
class FoundCase:
    """A case of a source. label: None in a layout without labels; problem: why it cannot be used, or empty."""

    name: str
    image: Path
    label: Path | None
    known: RawCase
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """The cases of a source by name, and the values of their labels; no values in a source without labels."""

    cases: tuple[FoundCase, ...]
    values: Values


Finder = Callable[[Path], Found]
LAYOUTS: dict[str, Finder] = {}


def layout(name: str) -> Callable[[Finder], Finder]:
    """Return a decorator that registers a function as the layout `name`. Raises ValueError where the name is taken."""

    def register(finder: Finder) -> Finder:
        if name in LAYOUTS:
            raise ValueError(f"the layout '{name}' is registered already")
        LAYOUTS[name] = finder
        return finder

    return register


def find_cases(layout_name: str, folder: Path) -> Found:
    """Return the cases of a folder in a layout.

    Raises InputError for an unknown layout, a folder that does not exist or cannot be read, and one without any case.
    """
    if layout_name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise InputError(folder, expected=f"one of the layouts {known}", found=repr(layout_name))
    if not folder.is_dir():
        raise InputError(folder, expected="a folder", found="a file" if folder.exists() else "no such folder")
    found = LAYOUTS[layout_name](folder)
    if not found.cases:
        raise InputError(folder, expected=f"cases in the layout {layout_name}", found="none")
    return found


@layout("panther")
def panther(folder: Path) -> Found:
    """PANTHER's labelled cases: imagesTr/10000_0001_0000.mha and labelsTr/10000_0001.mha (Task 2: 10303_0000.mha)."""
    return Found(_paired(_volumes(folder, "imagesTr"), _volumes(folder, "labelsTr")), PANTHER_VALUES)


@layout("panther-organs")
def panther_organs(folder: Path) -> Found:
    """Phantoms with labels of organs: as PANTHER's labelled cases, with organsTr in place of labelsTr."""
    return Found(_paired(_volumes(folder, "imagesTr"), _volumes(folder, "organsTr")), ORGAN_VALUES)


@layout("panther-unlabelled")
def panther_unlabelled(folder: Path) -> Found:
    """PANTHER's images without labels: in imagesTr_unlabeled, in imagesTr, or directly in the folder.

    Images that have a label map in labelsTr are left out.
    """
    names = ("imagesTr_unlabeled", "imagesTr_unlabelled", "imagesTr")
    images = next((path for name in names if (path := _subfolder(folder, name))), folder)
    labels = _subfolder(folder, "labelsTr")
    labelled = {case_name(path) for path in find_sources(labels)} if labels else set()
    return Found(_paired([path for path in find_sources(images) if _case_of(IMAGE, path) not in labelled], None), {})


@layout("msd")
def msd(folder: Path) -> Found:
    """Task07_Pancreas of the Medical Segmentation Decathlon: imagesTr/pancreas_001.nii.gz, labelsTr the same."""
    images, labels = _volumes(folder, "imagesTr"), _volumes(folder, "labelsTr")
    return Found(_paired(images, labels, image=re.compile(rf"(.+?)(?:{CHANNEL})?"), patient=str), MSD_VALUES)


@layout("panorama")
def panorama(folder: Path) -> Found:
    """PANORAMA: images 100000_00001_0000.nii.gz and labels 100000_00001.nii.gz, anywhere below the folder.

    Of a label map by hand and one below a folder whose name contains "automatic", the one by hand is taken.
    """
    image, label = re.compile(r"(\d+_\d+)_\d{4}"), re.compile(r"(\d+_\d+)")
    files = [source for below in _folders(folder) for source in find_sources(below)]
    labels = [path for path in files if _case_of(label, path)]
    by_hand = {case_name(path) for path in labels if not _is_automatic(path, folder)}
    labels = [path for path in labels if not _is_automatic(path, folder) or case_name(path) not in by_hand]
    images = [path for path in files if not _case_of(label, path)]
    return Found(_paired(images, labels, image=image), PANORAMA_VALUES)


@layout("raw")
def raw(folder: Path) -> Found:
    """A raw nnU-Net data set; its labels by their names. What is known about its cases is kept."""
    dataset = RawDataset.open(folder)
    cases = tuple(
        FoundCase(name, dataset.image_path(name), dataset.label_path(name) if dataset.has_labels else None, case)
        for name, case in dataset.cases.items()
    )
    values = {number: _known_name(name) for name, number in dataset.labels.items()}
    return Found(cases, values if dataset.has_labels else {})


def _paired(
    images: Iterable[Path],
    labels: Iterable[Path] | None,
    *,
    image: re.Pattern[str] = IMAGE,
    patient: Callable[[str], str] = lambda case: case.partition("_")[0],
) -> tuple[FoundCase, ...]:
    """Return the cases of images and label maps, sorted by name.

    labels: named <case><suffix>, None for a layout without any; image: pattern of an image's name without the suffix,
    whose first group is the case; patient: gives the patient of a case.
    """
    images_of: dict[str, list[Path]] = {}
    for path in images:
        images_of.setdefault(_case_of(image, path) or case_name(path), []).append(path)
    labels_of: dict[str, list[Path]] = {}
    for path in labels or ():
        labels_of.setdefault(case_name(path), []).append(path)
    cases = []
    for name in sorted(images_of.keys() | labels_of.keys()):
        own, maps = images_of.get(name, []), labels_of.get(name, [])
        path = (own or maps)[0]
        if own and not _case_of(image, path):
            problem = f"expected a file name such as <case>{CHANNEL}.mha, found {path.name}"
        elif len(own) != 1:
            problem = f"expected one image of this case, found {first_few(map(str, own)) or 'none'}"
        elif labels is not None and len(maps) != 1:
            problem = f"expected one label map of this case, found {first_few(map(str, maps)) or 'none'}"
        else:
            problem = ""
        known = RawCase(patient=patient(name), origin=str(path.absolute()))
        cases.append(FoundCase(name, path, maps[0] if maps else None, known, problem))
    return tuple(cases)


def _case_of(pattern: re.Pattern[str], path: Path) -> str:
    """Return the case in a file's name, or an empty string if the name does not match the pattern."""
    match = pattern.fullmatch(case_name(path))
    return match[1] if match else ""


def _subfolder(folder: Path, name: str) -> Path | None:
    """Return the subfolder of a name in any spelling of upper and lower case, None if there is none."""
    return next(
        (path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower() and path.is_dir()), None
    )


def _volumes(folder: Path, name: str) -> list[Path]:
    """Return the volumes of a subfolder. Raises InputError if there is no such subfolder."""
    subfolder = _subfolder(folder, name)
    if subfolder is None:
        raise InputError(folder, expected=f"a folder {name} in it", found="none")
    return find_sources(subfolder)


def _folders(top: Path) -> list[Path]:
    """Return a folder and all below it, through links too, but each only once; hidden ones are left out."""
    found: dict[Path, Path] = {}
    for path, below, _ in os.walk(top, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")] if Path(path).resolve() not in found else []
        found.setdefault(Path(path).resolve(), Path(path))
    return sorted(found.values())


def _is_automatic(path: Path, top: Path) -> bool:
    return any(AUTOMATIC in part.lower() for part in path.relative_to(top).parts[:-1])


def _known_name(label: str) -> str:
    """Return the name that a label has here."""
    name = label.casefold().replace("tumor", "tumour")
    return TUMOUR_NAME if any(word in name for word in TUMOUR_WORDS) else name
