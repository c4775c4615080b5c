"""What is recorded about the predictions of a member: the model and its settings, its time, and what it has seen.

A training keeps `bundles/<stage>/training.json` beside `probabilities/<stage>`. `pantherseg predict` writes a report
<case>.json beside each <case>.npz, which names the folder of the model, in which training.json may lie.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET

from pantherseg.datasets.raw import patient_of
from pantherseg.errors import InputError, first_few
from pantherseg.events import EventCode
from pantherseg.io.probabilities import SUFFIX
from pantherseg.labels import TUMOUR
from pantherseg.model_sources.nnunet import RECORD
from pantherseg.recipe import Member
from pantherseg.results import CaseReport, ModelUse, read_report

# Names in the output folder of a training: see `training.workspace`.
PROBABILITIES, BUNDLES = "probabilities", "bundles"
MEMBERS_STAGE = "members"
# A case of which less was computed than the recipe says is not what the recipe would give with more time.
SHORTENED = {
    EventCode.FOLD_LEFT_OUT,
    EventCode.MIRRORING_LEFT_OUT,
    EventCode.FOLDS_SHORTENED,
    EventCode.FOLDS_LEFT_OUT,
    EventCode.OVERLAP_LEFT_OUT,
    EventCode.TILES_LEFT_OUT,
}


@dataclass(frozen=True)
class Recorded:
    """What is known about a member's predictions.

    settings: of the member in a recipe, None where they are not recorded; seconds: of its networks by case; boxes:
    where it looked by case; localized: whether a localizer was used, None where that is not recorded; remarks: what a
    user should know about how far the predictions can be trusted.
    """

    settings: Member | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    boxes: Mapping[str, Any] = field(default_factory=dict)
    localized: bool | None = None
    remarks: tuple[str, ...] = ()


def recorded(model: str, folder: Path, files: Mapping[str, Path]) -> Recorded:
    """Return what is recorded about predictions. files: the probabilities by case.

    Raises InputError if the model was trained on any of the cases, if several models made the predictions, and if a
    record or a report cannot be read.
    """
    # Reports first: predictions may lie in the output folder of a training, too.
    reports = {case: report for case, path in files.items() if (report := _read_report(path)) is not None}
    if reports:
        return _predicted(model, folder, reports, [case for case in files if case not in reports])
    probabilities, stage = folder.absolute().parent, folder.absolute().name
    if probabilities.name == PROBABILITIES:
        record = _read_record(probabilities.parent / BUNDLES / stage)
        if record is not None:
            return _out_of_fold(model, folder, files, record)
    return Recorded(remarks=("nothing is recorded about the model: it may have been trained on these cases",))


def _out_of_fold(model: str, folder: Path, files: Mapping[str, Path], record: dict[str, Any]) -> Recorded:
    """Return what a training recorded; its own folds, which were not trained on these cases, predicted them."""
    if others := sorted(files.keys() - record["dice"]["cases"].keys()):
        raise InputError(
            folder,
            expected=f"probabilities of the {len(record['dice']['cases'])} cases that the folds were validated on",
            found=f"others, too: {first_few(others)}",
            hint="run the training again, which removes them",
        )
    remarks = [f"the figures are optimistic: {reason}" for reason in record.get("optimistic_because", ())]
    remarks.append("each case was predicted by one fold, and the recipe takes all of them")
    settings = Member(model=model, checkpoint=record["settings"].get("checkpoint"), tumour_label=TUMOUR)
    return Recorded(settings, localized=record["settings"].get("crop") is not None, remarks=tuple(remarks))


def _predicted(model: str, folder: Path, reports: Mapping[str, CaseReport], unreported: Collection[str]) -> Recorded:
    """Return what the reports of `pantherseg predict` say."""
    used = [_member(folder, case, report) for case, report in reports.items()]
    kinds = dict.fromkeys((one.path, one.step, one.mirroring) for one in used)
    if len(kinds) > 1:
        names = first_few(
            f"{path} (step {step}, {'' if mirrored else 'not '}mirrored)" for path, step, mirrored in kinds
        )
        raise InputError(folder, expected="predictions by one model with the same settings", found=names)
    short = [case for case, report in reports.items() if _is_shortened(report)]
    # Where less was computed, folds may be missing.
    whole = [one for case, one in zip(reports, used, strict=True) if case not in short]
    most = max(len(one.folds) for one in used)
    candidates = whole or [one for one in used if len(one.folds) == most]
    usual, _ = Counter(one.folds for one in candidates).most_common(1)[0]
    common, remarks = next(one for one in used if one.folds == usual), []
    if short:
        remarks.append(f"in {len(short)} cases less was computed than the recipe says: {first_few(short)}")
    if unreported:
        remarks.append(
            f"nothing is recorded about {len(unreported)} cases, which have no report: {first_few(unreported)}"
        )
    folds = tuple(dict.fromkeys(fold for one in used for fold in one.folds))
    remarks += _refuse_seen(folder, Path(common.path), folds, reports)
    settings = Member(
        model=model,
        folds="all" if "all" in common.folds else [int(fold) for fold in common.folds],
        checkpoint=common.checkpoint,
        orientation=common.orientation,
        step=common.step,
        mirroring=common.mirroring,
        tumour_label=None if common.tumour_label is UNSET else common.tumour_label,
    )
    return Recorded(
        settings,
        seconds={case: report.seconds[MEMBERS_STAGE] for case, report in reports.items()},
        boxes={case: report.box for case, report in reports.items()},
        localized=any(one.role == "localizer" for report in reports.values() for one in report.models),
        remarks=tuple(remarks),
    )


def _is_shortened(report: CaseReport) -> bool:
    """Return whether less was computed than the recipe says, for lack of time or in the mode `fast`."""
    is_short = bool(SHORTENED & {event.code for event in report.events})
    return is_short or any(one.left_out_tiles for one in report.models)


def _member(folder: Path, case: str, report: CaseReport) -> ModelUse:
    """Return the only member that a report names. Raises InputError if there are several."""
    members = [one for one in report.models if one.role == "member"]
    if len(members) != 1:
        found = f"{len(members)} members in the report of {case}"
        raise InputError(folder, expected="predictions by a recipe with one member", found=found)
    return members[0]


def _refuse_seen(folder: Path, bundle: Path, folds: Collection[str], cases: Collection[str]) -> list[str]:
    """Raise InputError if a fold was trained on a patient of a case; return remarks on what cannot be told."""
    record = _read_record(bundle)
    if record is None:
        return [f"{bundle} has no {RECORD}: the model may have been trained on these cases"]
    validation = [set(map(patient_of, names)) for names in record["splits"]["validation"]]
    trained = set[str]()
    for fold in folds:
        held_out = validation[int(fold)] if fold.isdigit() and int(fold) < len(validation) else set()
        trained |= set[str]().union(*validation) - held_out
    if seen := sorted(case for case in cases if patient_of(case) in trained):
        raise InputError(
            folder,
            expected="cases that the model was not trained on",
            found=f"{len(seen)} that folds {' '.join(folds)} of {bundle} were trained on: {first_few(seen)}",
            hint="take the training's probabilities/<stage>, by the folds that were not",
        )
    if pseudo := record["data"]["pseudo_labelled"]:
        return [f"the model was also trained on {pseudo} cases with labels by a model, whose names are not recorded"]
    return []


def _read_record(bundle: Path) -> dict[str, Any] | None:
    """Return a bundle's training.json, None if there is none. Raises InputError for one that cannot be understood."""
    path = bundle / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for keys in (("dice", "cases"), ("splits", "validation"), ("data", "pseudo_labelled"), ("settings", "data")):
            content[keys[0]][keys[1]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "without this record nobody knows on which cases the model was trained"
        raise InputError(path, expected="the record of a training", found=repr(error), hint=hint) from error
    record: dict[str, Any] = content
    return record


def _read_report(path: Path) -> CaseReport | None:
    """Return the report beside a file of probabilities, None without one, or where it is about another prediction.

    Raises InputError if it cannot be read: without it nobody knows which model made the prediction.
    """
    report = path.with_name(path.name.removesuffix(SUFFIX) + ".json")
    if not report.is_file():
        return None
    found = read_report(report)
    return found if found.probability == path.name else None
