"""The bundle of a stage, and training.json in it: where it comes from, and how good it is on cases not trained on."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from pantherseg import __version__
from pantherseg.datasets.raw import RawDataset
from pantherseg.datasets.splits import SPLITS, read_splits
from pantherseg.files import write_text
from pantherseg.io.probabilities import SUFFIX
from pantherseg.model_sources.nnunet import RECORD
from pantherseg.models.bundle import sha256_of
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import pack
from pantherseg.paths import ROOT
from pantherseg.training.out_of_fold import mean_dice, total_metrics
from pantherseg.training.state import State
from pantherseg.training.steps import Step, steps_of
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
    shutil.rmtree(work.bundle(name), ignore_errors=True)
    work.bundle(name).parent.mkdir(parents=True, exist_ok=True)
    pack(open_model_folder(model, folds=folds, checkpoint=stage.checkpoint), work.bundle(name))
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
    validated = [state.finished(steps[need]) for need in step.needs]
    results = [record.result for record in validated if record is not None]
    dice = {case: values for result in results for case, values in sorted(result["dice"].items())}
    scores = {case: values for result in results for case, values in sorted(result["scores"].items())}
    trained = [state.finished(steps[f"fold.{name}.{fold}"]) for fold in stage.used_folds]
    data = state.finished(steps[f"data.{name}"])
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
        "revision": revision(),
        "version": __version__,
        "seconds": round(sum(record.seconds for record in trained if record is not None)),
        "dice": {"mean": mean_dice(dice.values()), "cases": dice},
        "metrics": {"totals": total_metrics(scores.values()), "cases": scores},
        "unscored": {case: why for result in results for case, why in result["unscored"].items()},
        "not_for_clinical_use": True,
    }


def revision() -> str:
    """Return git's commit of this code, with -dirty where files differ from it; `unknown` outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


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
