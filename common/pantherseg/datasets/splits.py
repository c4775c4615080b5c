"""Splits of a data set into folds, patient by patient, in nnU-Net's own form and file.

Splits depend only on the names of the patients with labels by experts, the number of folds and the seed, so all systems
that train on the same patients have the same folds.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pantherseg.datasets.raw import RawCase, RawDataset
from pantherseg.errors import InputError, OutputError, first_few, os_reason
from pantherseg.files import write_text

logger = logging.getLogger(__name__)

SPLITS = "splits_final.json"
# nnU-Net's own.
FOLDS, SEED = 5, 12345

# For each fold, the cases to train on (`train`) and those for validation (`val`).
Splits = list[dict[str, list[str]]]


def make_splits(where: Path, cases: Mapping[str, RawCase], *, folds: int = FOLDS, seed: int = SEED) -> Splits:
    """Return patient-wise splits of cases by name.

    The patients are divided as nnU-Net divides cases. A pseudo-labelled case is in every `train`, except where its
    patient is in `val`. where: what an error is about. Raises InputError for fewer patients than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # needs the extra `train`

    patients = sorted({case.patient for case in cases.values() if not case.pseudo})
    if len(patients) < folds:
        raise InputError(where, expected=f"at least one patient for each of {folds} folds", found=str(len(patients)))
    held_out = [set(map(str, split["val"])) for split in generate_crossval_split(patients, seed, folds)]
    return [
        {
            "train": [name for name, case in cases.items() if case.patient not in patients],
            "val": [name for name, case in cases.items() if case.patient in patients and not case.pseudo],
        }
        for patients in held_out
    ]


def check_splits(where: Path, splits: Splits, cases: Mapping[str, RawCase]) -> None:
    """Check that splits suit cases: known names, none twice, each expert's label in one `val`, patients on one side.

    Raises InputError.
    """
    if not splits:
        raise InputError(where, expected="at least one fold", found="none", hint="list train and val of each fold")
    expert = {name for name, case in cases.items() if not case.pseudo}
    for fold, split in enumerate(splits):
        _check_fold(where, fold, split, cases)
    validated = [name for split in splits for name in split["val"]]
    if twice := _repeated(validated):
        raise InputError(
            where,
            expected="each case in the val of one fold",
            found=f"in more than one: {first_few(twice)}",
            hint="leave each of them in one val",
        )
    if missing := expert - set(validated):
        raise InputError(
            where,
            expected="each case with a label by an expert in the val of one fold",
            found=f"in none: {first_few(sorted(missing))}",
            hint="add each of them to one val",
        )


def _check_fold(where: Path, fold: int, split: Mapping[str, list[str]], cases: Mapping[str, RawCase]) -> None:
    train, val = split["train"], split["val"]
    if unknown := {*train, *val} - cases.keys():
        raise InputError(
            where,
            expected=f"only cases of the data set in fold {fold}",
            found=f"others: {first_few(sorted(unknown))}",
            hint="remove their names, or import them",
        )
    if twice := _repeated([*train, *val]):
        raise InputError(
            where,
            expected=f"each case once in fold {fold}",
            found=f"more than once: {first_few(twice)}",
            hint="remove the repeated names",
        )
    if not train or not val:
        raise InputError(
            where,
            expected=f"cases in train and in val of fold {fold}",
            found=f"none in {'val' if train else 'train'}",
            hint="add cases, or remove the fold",
        )
    if pseudo := sorted(name for name in val if cases[name].pseudo):
        raise InputError(
            where,
            expected=f"only cases with labels by experts in val of fold {fold}",
            found=f"pseudo-labelled ones: {first_few(pseudo)}",
            hint="move them to train",
        )
    if both := {cases[name].patient for name in train} & {cases[name].patient for name in val}:
        raise InputError(
            where,
            expected=f"each patient in either train or val of fold {fold}",
            found=f"in both: {first_few(sorted(both))}",
            hint="move all cases of a patient to one side",
        )


def check_number(where: Path, splits: Splits, folds: int, *, stage: str = "") -> None:
    """Raise InputError unless there are this many folds: nnU-Net would make up the others. stage: whose folds."""
    if len(splits) != folds:
        raise InputError(
            where,
            expected=f"{folds} folds, as stage '{stage}' has" if stage else f"{folds} folds",
            found=str(len(splits)),
            hint="give other splits, or change the number of folds",
        )


def _repeated(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def read_splits(path: Path) -> Splits:
    """Read splits in nnU-Net's form. Raises InputError for a file that cannot be read or has another form."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=list[dict[str, list[str]]])
    except OSError as error:
        raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"invalid content: {error}") from error
    if wrong := [fold for fold, split in enumerate(content) if set(split) != {"train", "val"}]:
        raise InputError(
            path,
            expected="train and val in each fold",
            found=f"{', '.join(content[wrong[0]]) or 'neither'} in fold {wrong[0]}",
        )
    return content


def split_dataset(
    dataset: RawDataset, *, folds: int | None = None, seed: int = SEED, given: Path | None = None
) -> Splits:
    """Write the splits of a data set to its splits_final.json, once, and return them.

    folds: their number; if omitted, 5, or as many as are given. given: a file with published splits, which is checked
    and used in place of the seed; pseudo-labelled cases that it does not name are added to each `train`. Splits that
    exist already and are the same stay as they are.

    Raises InputError if the splits do not suit the data set, or if it has no labels, and OutputError if there are other
    splits already, or if the file cannot be written.
    """
    if not dataset.has_labels:
        raise InputError(dataset.folder, expected="a data set with labels", found="images alone")
    if given is None:
        splits = make_splits(dataset.folder, dataset.cases, folds=FOLDS if folds is None else folds, seed=seed)
    else:
        splits = read_splits(given)
        if folds is not None:
            check_number(given, splits, folds)
        check_splits(given, splits, dataset.cases)
        _warn_about_unused(given, splits, dataset.cases)
        splits = [_with_pseudo_labelled(split, dataset.cases) for split in splits]
    path = dataset.folder / SPLITS
    if path.exists():
        if read_splits(path) != splits:
            raise OutputError(
                path,
                "there are other splits already, which models may have been trained with",
                hint="remove the file to split again",
            )
        return splits
    write_splits(dataset.folder, splits)
    return splits


def write_splits(folder: Path, splits: Splits) -> None:
    """Write the splits of the data set in a folder. Raises OutputError."""
    write_text(folder / SPLITS, json.dumps(splits, indent=2) + "\n")


def splits_of(dataset: RawDataset) -> Splits | None:
    """Return the splits that a data set has, None if it has none. Raises InputError if they do not suit its cases."""
    path = dataset.folder / SPLITS
    if not path.exists():
        return None
    splits = read_splits(path)
    check_splits(path, splits, dataset.cases)
    return splits


def _warn_about_unused(where: Path, splits: Splits, cases: Mapping[str, RawCase]) -> None:
    """Log the cases with labels by experts that a fold uses neither for training nor for validation."""
    for fold, split in enumerate(splits):
        named = {*split["train"], *split["val"]}
        if unused := sorted(name for name, case in cases.items() if not case.pseudo and name not in named):
            logger.warning("%s: fold %d has these cases in neither train nor val: %s", where, fold, first_few(unused))


def _with_pseudo_labelled(split: Mapping[str, list[str]], cases: Mapping[str, RawCase]) -> dict[str, list[str]]:
    held_out = {cases[name].patient for name in split["val"]}
    named = set(split["train"])
    more = [name for name, case in cases.items() if case.pseudo and name not in named and case.patient not in held_out]
    return {"train": [*split["train"], *more], "val": split["val"]}
