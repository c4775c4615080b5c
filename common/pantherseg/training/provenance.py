"""The bundle of a stage, and training.json in it: where it comes from, and how good it is on cases not trained on."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from pantherseg import __version__
from pantherseg.datasets.raw import RawDataset
from pantherseg.datasets.splits import SPLITS, read_splits
from pantherseg.files import write_text
from pantherseg.io.digest import sha256_of
from pantherseg.io.probabilities import SUFFIX
from pantherseg.model_sources.nnunet import RECORD
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import pack
from pantherseg.paths import ROOT
from pantherseg.training.graph import TrainingFile
from pantherseg.training.out_of_fold import cropped_by_reference, mean_dice, total_metrics
from pantherseg.training.state import State
from pantherseg.training.steps import Step, starts_of, steps_of
from pantherseg.training.trainers import TRAINERS
from pantherseg.training.workspace import Workspace

logger = logging.getLogger(__name__)


def write_bundle(work: Workspace, step: Step, state: State) -> dict[str, Any]:
    """Pack the folds of a stage, with training.json beside the weights, and return the figures.

    Raises ModelError if the folds cannot be packed, and OutputError.
    """
    name, stage = step.subject, work.graph.stage[step.subject]
    record = training_record(work, step, state)
    model = work.folders(name).model
    write_text(model / RECORD, json.dumps(record, indent=1) + "\n")
    folds = list(stage.used_folds)
    work.bundle(name).parent.mkdir(parents=True, exist_ok=True)
    pack(open_model_folder(model, folds=folds, checkpoint=stage.used_checkpoint), work.bundle(name))
    _remove_other_probabilities(work.probabilities(name), set(record["dice"]["cases"]))
    figures = record["metrics"]["totals"].get("official", record["dice"]["mean"])
    values = ", ".join(f"{label} {value:.4g}" for label, value in figures.items())
    logger.info("%s: %d cases by folds not trained on them: %s", name, len(record["dice"]["cases"]), values)
    return {"dice": record["dice"]["mean"], "metrics": record["metrics"]["totals"]}


def training_record(work: Workspace, step: Step, state: State) -> dict[str, Any]:
    """Return what training.json says about a stage whose folds are validated."""
    name, stage = step.subject, work.graph.stage[step.subject]
    steps = steps_of(work.graph).by_name
    dataset = RawDataset.open(work.dataset(name))
    validated = [state.finished(steps[f"validate.{name}.{fold}"]) for fold in stage.used_folds]
    results = [record.result for record in validated if record is not None]
    dice = {case: values for result in results for case, values in sorted(result["dice"].items())}
    scores = {case: values for result in results for case, values in sorted(result["scores"].items())}
    folders, data = work.folders(name), state.finished(steps[f"data.{name}"])
    trainer = TRAINERS[stage.trainer]
    by_reference = {case: why for case, why in cropped_by_reference(dataset).items() if case in dice}
    return {
        "training": work.graph.name,
        "stage": name,
        "settings": msgspec.json.decode(msgspec.json.encode(stage)),
        "data": {
            "fingerprint": "" if data is None else data.fingerprint,
            "sources": _sources(work, stage.data, state),
            "cases": len(dataset.cases),
            "pseudo_labelled": sum(case.pseudo for case in dataset.cases.values()),
        },
        "splits": {
            "sha256": sha256_of(dataset.folder / SPLITS),
            "validation": [split["val"] for split in read_splits(dataset.folder / SPLITS)],
        },
        "outside": _outside(work, name, state),
        "revision": revision(),
        "version": __version__,
        # Not that of the steps: a fold may have been interrupted.
        "seconds": round(sum(trainer.seconds(folders.fold(fold) / trainer.final) for fold in stage.used_folds)),
        "dice": {"mean": mean_dice(dice.values()), "cases": dice},
        "metrics": {
            "totals": total_metrics(scores.values()),
            "totals_without_cropped_by_reference": total_metrics(
                values for case, values in scores.items() if case not in by_reference
            ),
            "cases": scores,
        },
        "cropped_by_reference": by_reference,
        "optimistic_because": optimistic_because(work.graph, name, by_reference),
        "unscored": {case: why for result in results for case, why in result["unscored"].items()},
        "not_for_clinical_use": True,
    }


def optimistic_because(graph: TrainingFile, name: str, by_reference: Collection[str]) -> list[str]:
    """Return why the figures of a stage are, or may be, higher than those on new cases.

    by_reference: the validated cases that were cropped around their reference. The list is empty where no such reason
    is known.
    """
    reasons = []
    chain = [name, *(start for start, _ in starts_of(graph, name, 0))]
    for data in dict.fromkeys(data for stage in chain for data in graph.stage[stage].data if data in graph.pseudo):
        by = graph.pseudo[data].by
        reasons.append(
            f"the labels of '{data}' were made by all folds of '{by}', each of which was trained on cases that other "
            "folds are validated on"
        )
    reasons += [
        f"'{stage}' starts from weights from elsewhere, which may have been trained on cases that are validated here"
        for stage in chain
        if graph.stage[stage].starts_from_weights
    ]
    if by_reference:
        reasons.append(f"{len(by_reference)} cases were cropped around their reference, because the localizer failed")
    return reasons


def revision(root: Path = ROOT) -> str:
    """Return git's commit of this code, with -dirty where files differ from it; `unknown` outside its repository.

    root: the folder of the checkout. Where it only lies in another repository, that one's commit says nothing.
    """
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"
        return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _outside(work: Workspace, name: str, state: State) -> dict[str, str]:
    """Return the fingerprints of what a stage read from outside: start weights, given splits, the localizer."""
    found: dict[str, str] = {}
    for step in steps_of(work.graph).by_name.values():
        if step.subject == name and (record := state.finished(step)) is not None:
            found |= {what: value for what, value in record.outside.items() if value}
    return found


def _sources(work: Workspace, names: list[str], state: State) -> dict[str, str]:
    """Return the fingerprints of the data sets that a stage trains on."""
    steps = steps_of(work.graph).by_name
    found = {}
    for name in names:
        record = state.finished(steps[f"{'pseudo' if name in work.graph.pseudo else 'import'}.{name}"])
        found[name] = "" if record is None else record.fingerprint
    return found


def _remove_other_probabilities(folder: Path, cases: set[str]) -> None:
    """Remove probabilities of cases that are no longer validated."""
    for path in folder.glob(f"*{SUFFIX}"):
        if path.name.removesuffix(SUFFIX) not in cases:
            path.unlink()
