"""The layouts in which data sets are published: where images and labels lie, how cases are named, what labels mean.

A new layout is a function that finds the cases of a folder, and its registration with `layout`. Images and labels are
paired by the case in their names, never by their order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pantherseg.datasets.raw import CHANNEL, IMAGES, LABELS, RawCase, RawDataset, dangling_links, patient_of
from pantherseg.errors import InputError, first_few, os_reason
from pantherseg.io import case_name, find_sources
from pantherseg.labels import BACKGROUND_NAME, ORGANS, PANCREAS_NAME, TUMOUR_NAME
from pantherseg.model_sources.nnunet import DATASET

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
# Other names of labels in raw data sets; in lower case, with "tumour" for "tumor" and spaces for _ and -.
SYNONYMS = {
    **dict.fromkeys(("lesion", "cancer", "pdac", "pdac lesion"), TUMOUR_NAME),
    **{
        f"{organ} {name}": TUMOUR_NAME
        for organ in ("pancreas", "pancreatic")
        for name in ("tumour", "cancer", "lesion")
    },
    **dict.fromkeys(("pancreas parenchyma", "pancreatic parenchyma", "pancreatic duct"), PANCREAS_NAME),
}
IGNORE = "ignore"
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
    """The cases of a source by name, and the values of their labels; no values in a source without labels.

    stated: the names of the values in the source itself, where it has any; others: files that are no volumes.
    """

    cases: tuple[FoundCase, ...]
    values: Values
    stated: Values = field(default_factory=dict)
    others: tuple[Path, ...] = ()


Finder = Callable[[Path], Found]


@dataclass(frozen=True)
class Layout:
    """A layout. find: returns the cases of a folder; labelled: whether there are labels by experts."""

    find: Finder
    labelled: bool


LAYOUTS: dict[str, Layout] = {}


def layout(name: str, *, labelled: bool = True) -> Callable[[Finder], Finder]:
    """Return a decorator that registers a function as the layout `name`. Raises ValueError where the name is taken.

    labelled: False for a layout of images alone.
    """

    def register(finder: Finder) -> Finder:
        if name in LAYOUTS:
            raise ValueError(f"the layout '{name}' is registered already")
        LAYOUTS[name] = Layout(finder, labelled)
        return finder

    return register


def find_cases(layout_name: str, folder: Path) -> Found:
    """Return the cases of a folder in a layout.

    Raises InputError for an unknown layout, a folder that does not exist or cannot be read, and one without any case.
    """
    if layout_name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise InputError(folder, expected=f"one of the layouts {known}", found=repr(layout_name))
    with _unreadable_as_input_error(folder):
        if not folder.is_dir():
            raise InputError(folder, expected="a folder", found="a file" if folder.exists() else "no such folder")
        found = LAYOUTS[layout_name].find(folder)
    if not found.cases:
        raise InputError(folder, expected=f"cases in the layout {layout_name}", found="none")
    return found


@layout("panther")
def panther(folder: Path) -> Found:
    """PANTHER's labelled cases: imagesTr/10000_0001_0000.mha and labelsTr/10000_0001.mha (Task 2: 10303_0000.mha)."""
    return _found(_required(folder, IMAGES), _required(folder, LABELS), PANTHER_VALUES)


@layout("panther-organs")
def panther_organs(folder: Path) -> Found:
    """Phantoms with labels of organs: as PANTHER's labelled cases, with organsTr in place of labelsTr."""
    return _found(_required(folder, IMAGES), _required(folder, "organsTr"), ORGAN_VALUES)


@layout("panther-unlabelled", labelled=False)
def panther_unlabelled(folder: Path) -> Found:
    """PANTHER's images without labels: in imagesTr_unlabeled, in imagesTr, or directly in the folder.

    Images that have a label map in labelsTr are left out.
    """
    images = _subfolder(folder, "imagesTr_unlabeled", "imagesTr_unlabelled") or _subfolder(folder, IMAGES) or folder
    labels = _subfolder(folder, LABELS)
    labelled = {case_name(path) for path in find_sources(labels)} if labels else set()
    found = _found(images, None, {})
    return replace(found, cases=tuple(case for case in found.cases if case.problem or case.name not in labelled))


@layout("msd")
def msd(folder: Path) -> Found:
    """Task07_Pancreas of the Medical Segmentation Decathlon: imagesTr/pancreas_001.nii.gz, labelsTr the same."""
    image = re.compile(rf"(.+?)(?:{CHANNEL})?")
    return _found(_required(folder, IMAGES), _required(folder, LABELS), MSD_VALUES, image=image, patient=str)


@layout("panorama")
def panorama(folder: Path) -> Found:
    """PANORAMA: images 100000_00001_0000.nii.gz and labels 100000_00001.nii.gz, anywhere below the folder.

    Of a label map by hand and one in a folder whose name begins with "automatic", the one by hand is taken.
    """
    image, label = re.compile(r"(\d+_\d+)_\d{4}"), re.compile(r"(\d+_\d+)")
    folders = _folders(folder)
    files = [source for below in folders for source in find_sources(below)]
    labels = [path for path in files if _case_of(label, path)]
    by_hand = {case_name(path) for path in labels if not _is_automatic(path)}
    labels = [path for path in labels if not _is_automatic(path) or case_name(path) not in by_hand]
    images = [path for path in files if not _case_of(label, path)]
    return _with_unused(Found(_paired(images, labels, image=image), PANORAMA_VALUES), folders)


@layout("raw")
def raw(folder: Path) -> Found:
    """A raw nnU-Net data set; its labels by their names. What is known about its cases is kept."""
    dataset = RawDataset.open(folder)
    if IGNORE in map(str.casefold, dataset.labels):
        hint = "remove the label, or the cases that have it"
        raise InputError(folder / DATASET, expected="labels of voxels that are known", found=f"'{IGNORE}'", hint=hint)
    cases = tuple(
        FoundCase(name, dataset.image_path(name), dataset.label_path(name) if dataset.has_labels else None, case)
        for name, case in dataset.cases.items()
    )
    if not dataset.has_labels:
        return _with_unused(Found(cases, {}), [folder / IMAGES])
    stated = {number: name for name, number in dataset.labels.items()}
    values = {number: _known_name(name) for number, name in stated.items()}
    return _with_unused(Found(cases, values, stated), [folder / IMAGES, folder / LABELS])


def _found(
    images: Path,
    labels: Path | None,
    values: Values,
    *,
    image: re.Pattern[str] = IMAGE,
    patient: Callable[[str], str] = patient_of,
) -> Found:
    """Return what is in the folders of images and label maps; see `_paired`."""
    maps = None if labels is None else find_sources(labels)
    cases = _paired(find_sources(images), maps, image=image, patient=patient)
    return _with_unused(Found(cases, values), [images] if labels is None else [images, labels])


def _with_unused(found: Found, folders: Iterable[Path]) -> Found:
    """Return what was found with the files in folders that are no volumes, hidden ones left out.

    A link to a file that does not exist is a case that cannot be used.
    """
    cases, others = {case.name: case for case in found.cases}, []
    for folder in folders:
        links = dangling_links(folder)
        for link in links:
            name = link.name.partition(".")[0].removesuffix(CHANNEL)
            problem = f"{link.name} is a link to {link.readlink()}, which does not exist"
            refused = FoundCase(name, link, None, RawCase(patient=name), problem)
            case = cases.get(name, refused)
            if case.problem or case.label == link:
                cases[name] = replace(case, problem=problem)
            else:
                cases[link.name] = replace(refused, name=link.name)
        used = {*find_sources(folder), *links}
        others += [path for path in folder.iterdir() if path.is_file() and path not in used and path.name[0] != "."]
    return replace(found, cases=tuple(cases.values()), others=tuple(sorted(others)))


def _paired(
    images: Iterable[Path],
    labels: Iterable[Path] | None,
    *,
    image: re.Pattern[str] = IMAGE,
    patient: Callable[[str], str] = patient_of,
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


def _subfolder(folder: Path, *names: str) -> Path | None:
    """Return the subfolder of one of the names in any spelling of upper and lower case, None if there is none.

    Raises InputError if there are several.
    """
    found = [path for path in sorted(folder.iterdir()) if path.name.lower() in map(str.lower, names) and path.is_dir()]
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise InputError(folder, expected=f"one folder {names[0]}", found=both, hint="import them one by one")
    return found[0] if found else None


def _required(folder: Path, name: str) -> Path:
    """Return a subfolder as `_subfolder` does. Raises InputError if there is none."""
    subfolder = _subfolder(folder, name)
    if subfolder is None:
        raise InputError(folder, expected=f"a folder {name} in it", found="none")
    return subfolder


@contextmanager
def _unreadable_as_input_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise InputError(where, expected="a file or folder that can be read", found=os_reason(error)) from error


def _folders(top: Path) -> list[Path]:
    """Return a folder and all below it, through links too, but each only once; hidden ones are left out.

    Raises OSError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: dict[Path, Path] = {}
    for path, below, _ in os.walk(top, followlinks=True, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")] if Path(path).resolve() not in found else []
        found.setdefault(Path(path).resolve(), Path(path))
    return sorted(found.values())


def _is_automatic(path: Path) -> bool:
    return path.parent.name.lower().startswith(AUTOMATIC)


def _known_name(label: str) -> str:
    """Return the name that a label has here, which is its own where it is not a synonym of one."""
    name = label.casefold().replace("tumor", TUMOUR_NAME)
    return SYNONYMS.get(re.sub("[-_ ]+", " ", name), name)
