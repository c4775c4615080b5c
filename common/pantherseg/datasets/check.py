"""The rules for a raw data set that networks are trained on, checked before the training, which takes hours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pantherseg.datasets.case_checks import CHECKS, CaseVolumes, read_case
from pantherseg.datasets.raw import CASES, IMAGES, LABELS, NAME, RawDataset
from pantherseg.datasets.splits import SPLITS, splits_of
from pantherseg.errors import InputError, first_few
from pantherseg.io import case_name, find_sources
from pantherseg.model_sources.nnunet import DATASET
from pantherseg.orientation import NO_TURN
from pantherseg.verdict import Verdict

READABLE = "volumes that can be read"
UNCHANGED = "images that are read without a correction"
TURNED = "volumes in one orientation"
ONCE = "each image once"


def check_dataset(folder: Path, *, on_case: Callable[[str], object] | None = None) -> list[Verdict]:
    """Check a raw data set and all of its volumes. on_case: called with each case that was read."""
    return list(_verdicts(folder, on_case))


def _verdicts(folder: Path, on_case: Callable[[str], object] | None) -> Iterator[Verdict]:
    rule = f"{DATASET}, {CASES} and {IMAGES} agree"
    try:
        dataset = RawDataset.open(folder)
    except InputError as error:
        yield Verdict(rule, False, str(error))
        return
    patients = len({case.patient for case in dataset.cases.values()})
    yield Verdict(rule, True, f"{len(dataset.cases)} cases of {patients} patients")
    yield _name_verdict(folder)
    stated, cases = dataset.num_training, len(dataset.cases)
    yield Verdict(f"numTraining in {DATASET}", stated == cases, f"{stated} stated, {cases} cases")
    numbers = sorted(dataset.labels.values())
    found = ", ".join(f"{number} {name}" for name, number in dataset.labels.items())
    yield Verdict("labels are numbered 0, 1, 2, ...", numbers == list(range(len(numbers))) and numbers != [], found)
    yield _pairs_verdict(dataset)
    yield _files_verdict(dataset)
    yield from _volume_verdicts(dataset, on_case)
    yield _splits_verdict(dataset)


def _name_verdict(folder: Path) -> Verdict:
    """Return whether nnU-Net can find the data set by its number."""
    name = folder.resolve().name
    match = re.fullmatch(NAME, name)
    same = sorted(path.name for path in folder.resolve().parent.glob(f"Dataset{match[1]}_*")) if match else [name]
    return Verdict("name and number of the data set", same == [name] and bool(match), ", ".join(same))


def _pairs_verdict(dataset: RawDataset) -> Verdict:
    rule = "pairs of image and label map"
    if not dataset.has_labels:
        return Verdict(rule, True, f"no {LABELS}: a data set without labels")
    files = [path for path in find_sources(dataset.folder / LABELS) if path.name.endswith(dataset.file_ending)]
    labels, images = {case_name(path) for path in files}, dataset.cases.keys()
    problems = [f"no label map of {name}" for name in sorted(images - labels)]
    problems += [f"no image of {name}" for name in sorted(labels - images)]
    return Verdict(rule, not problems, first_few(problems) or f"{len(labels)} pairs")


def _files_verdict(dataset: RawDataset) -> Verdict:
    """Return whether nnU-Net, which takes hidden files and links too, finds the same cases."""
    ending = dataset.file_ending
    images = dataset.folder / IMAGES
    stray = {path for path in images.iterdir() if path.name.endswith(ending)} - set(
        map(dataset.image_path, dataset.cases)
    )
    if dataset.has_labels:
        stray |= {path for path in (dataset.folder / LABELS).iterdir() if path.name.startswith(".")}
    found = [f"{path.parent.name}/{path.name}" for path in sorted(stray) if path.name.endswith(ending)]
    return Verdict("no stray or hidden volumes", not found, first_few(found) or "none")


def _volume_verdicts(dataset: RawDataset, on_case: Callable[[str], object] | None) -> Iterator[Verdict]:
    """Yield the verdicts about the volumes, each of which is read once."""
    values = {number: name for name, number in dataset.labels.items()}
    orientation = dataset.orientation
    problems: dict[str, list[str]] = {rule: [] for rule in (READABLE, UNCHANGED, TURNED, *CHECKS, ONCE)}
    seen: dict[str, str] = {}
    for name in dataset.cases:
        label = dataset.label_path(name) if dataset.has_labels else None
        try:
            case = read_case(dataset.image_path(name), label, values=values, orientation=orientation)
        except InputError as error:
            problems[READABLE].append(str(error))
        else:
            orientation = orientation or case.image.grid.orientation
            for rule, problem in _problems(name, case, seen):
                problems[rule].append(problem)
        if on_case is not None:
            on_case(name)
    kept = {TURNED: f"{orientation}", READABLE: f"{len(dataset.cases)} cases"}
    for rule, found in problems.items():
        yield Verdict(rule, not found, first_few(found, limit=3) or kept.get(rule, "all"))


def _problems(name: str, case: CaseVolumes, seen: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the rules that a case breaks, and how. seen: the cases so far by the checksum of their image."""
    for correction in case.corrections:
        yield UNCHANGED, f"{name}: {correction}"
    for what, turn in (("image", case.turn), ("label map", case.label_turn)):
        if turn != NO_TURN:
            yield TURNED, f"the {what} of {name} is stored in another"
    for rule, check in CHECKS.items():
        try:
            check(case)
        except InputError as error:
            yield rule, str(error)
    if (first := seen.setdefault(case.digest, name)) != name:
        yield ONCE, f"{first} and {name} have the same image"


def _splits_verdict(dataset: RawDataset) -> Verdict:
    """Return whether the splits suit the cases; a data set need not have any yet."""
    rule = f"{SPLITS} suits the cases and patients"
    try:
        splits = splits_of(dataset)
    except InputError as error:
        return Verdict(rule, False, str(error))
    return Verdict(rule, True, "no splits yet" if splits is None else f"{len(splits)} folds")
