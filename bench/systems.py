"""The four systems in their small forms, on phantoms: `python -m bench.systems [--systems a b c d] [--work DIR]`.

Runs the commands in the heads of the training files on the CPU, from phantoms to bundles, and measures their time.
Every stage is compared with the untrained network of the same plan on the cases that its folds were not trained on; the
last stages of both tasks also on phantoms that no stage has seen. Prints a table and writes bench/results/systems.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.processes import machine
from pantherseg.batch import run_batch
from pantherseg.evaluation import evaluate
from pantherseg.files import write_text
from pantherseg.labels import TUMOUR_NAME
from pantherseg.logs import show_log
from pantherseg.model_sources.lightning import write_checkpoint
from pantherseg.model_sources.lightning_plans import PLANS as LIGHTNING_PLANS
from pantherseg.model_sources.lightning_plans import read_plans
from pantherseg.model_sources.nnunet import DATASET, PLANS, RECORD, read_json
from pantherseg.models.find import open_model_folder
from pantherseg.networks import build_network
from pantherseg.packing.pack import pack
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.training.folders import TrainingFolders
from pantherseg.training.folds import make_trainer
from pantherseg.training.graph import Stage, TrainingFile, load_training_file
from pantherseg.training.out_of_fold import dice_by_label, mean_dice
from pantherseg.training.seeds import reseed
from pantherseg.training.trainers import TRAINERS
from pantherseg.training.validation import validate_fold
from pantherseg.training.workspace import Inputs, Workspace

logger = logging.getLogger(__name__)

# Not among the seeds of the training files.
FIRST_SEED = 9500
UNSEEN_CASES = 6
# The tasks for which each system is trained.
SYSTEMS = {"a": (1, 2), "b": (1,), "c": (1, 2), "d": (1,)}
RESULTS = Path(__file__).parent / "results" / "systems.json"
# What a line with a command in the head of a training file begins with.
COMMAND = "#   pantherseg "
# What the commands call the folder of the training.
OUTPUT = "DIR"


def training_file(system: str, task: int) -> Path:
    """Return the training file of the small form of a system."""
    return ROOT / f"Task{task}" / "training" / f"system_{system}_small.toml"


def commands(system: str) -> list[str]:
    """Return the commands for a shell that make the phantoms, and as the last one that which trains all stages.

    They run in a folder with links to Task1, Task2 and weights, and leave their data and `DIR` there.
    """
    text = "".join(training_file(system, task).read_text() for task in SYSTEMS[system]).replace(" \\\n#    ", "")
    python = f"{shlex.quote(sys.executable)} -m "
    every = [python + line.removeprefix("#   ") for line in text.splitlines() if line.startswith(COMMAND)]
    return [*(command for command in every if " phantom " in command), f"{every[-1]} --devices cpu"]


def run_commands(system: str, work: Path) -> dict[str, float]:
    """Run the commands of a system in a folder, and return the minutes of the training.

    `cpu` is the time of all cores together, with imports, planning and validation. Raises CalledProcessError.
    """
    for name in ("Task1", "Task2", "weights"):
        (work / name).symlink_to(ROOT / name)
    for command in commands(system):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, shell=True, cwd=work, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round((time.monotonic() - began) / 60, 1), "cpu": round(seconds / 60, 1)}


def validate_untrained(workspace: Workspace, stage: str, root: Path) -> dict[str, float]:
    """Return the cross-validated Dice of each label by the initial networks of a stage, whose folds come below `root`.

    They have the weights from which the folds would be trained if the stage started from no other.
    """
    settings = workspace.graph.stage[stage]
    trained, final = workspace.folders(stage), TRAINERS[settings.trainer].final
    folders = replace(trained, root=root)
    folders.model.mkdir(parents=True)
    for name in (PLANS, DATASET, LIGHTNING_PLANS):
        if (path := trained.model / name).is_file():
            shutil.copy(path, folders.model / name)
    cases: dict[str, dict[str, float | None]] = {}
    for fold in settings.used_folds:
        write_untrained(folders, settings, fold, folders.fold(fold) / final)
        cases |= dice_by_label(validate_fold(folders, fold=fold, checkpoint=final), settings.labels)
    folds = list(settings.used_folds)
    pack(open_model_folder(folders.model, folds=folds, checkpoint=final), root / "bundles" / stage)
    return mean_dice(cases.values())


def write_untrained(folders: TrainingFolders, stage: Stage, fold: int, checkpoint: Path) -> None:
    """Write the initial weights of a fold."""
    if stage.lightning is None:
        with folders.environment(), contextlib.redirect_stdout(io.StringIO()):
            trainer = make_trainer(folders, read_json(folders.plans), fold=fold, device="cpu")
        trainer.save_checkpoint(str(checkpoint))
        return
    plans = read_plans(folders.model)
    reseed(stage.seed, fold)
    network = build_network(checkpoint, plans.network, classes=len(plans.labels), trainable=True)
    checkpoint.parent.mkdir()
    write_checkpoint(checkpoint, network.state_dict(), plans, str(fold))


def unseen_dice(graph: TrainingFile, task: int, bundles: Path, work: Path) -> float:
    """Return the mean tumour Dice on unseen phantoms, segmented as `pantherseg predict --model <bundles>` does.

    A model that was trained on crops gets the demo localizer beside it, and one of whole volumes none.
    """
    data, masks, localizer = work / f"unseen{task}", bundles / f"masks{task}", bundles / "localizer"
    if not data.exists():
        write_dataset(data, task=task, cases=UNSEEN_CASES, seed=FIRST_SEED, size="small")
    if graph.stage[f"task{task}"].crop is not None and not localizer.exists():
        localizer.symlink_to(DEMO_WEIGHTS / "localizer")
    session = Session(load_recipe(task_recipe(task)), bundles, device="cpu", many_cases=True)
    run_batch(data / "imagesTr", masks, session)
    result = evaluate(masks, data / "labelsTr")
    if len(result.cases) < UNSEEN_CASES:
        raise RuntimeError(f"{masks}: {UNSEEN_CASES} masks to score, {len(result.cases)} scored: {result.failed}")
    return round(result.official.as_dict()["dice"], 4)


def measure(system: str, work: Path) -> dict[str, Any]:
    """Return the minutes of the training of a system, and the figures of its stages."""
    minutes = run_commands(system, work)
    logger.info("system %s: trained in %.1f minutes, of %.1f CPU minutes", system, minutes["wall"], minutes["cpu"])
    graph = load_training_file(training_file(system, SYSTEMS[system][-1]))
    workspace = Workspace(graph, work / OUTPUT, Inputs())
    untrained = work / "untrained"
    untrained.mkdir()
    (untrained / "preprocessed").symlink_to(workspace.output / "preprocessed")
    stages: dict[str, dict[str, Any]] = {}
    for kind, stage in graph.order():
        if kind == "stage":
            record = read_json(workspace.bundle(stage) / RECORD)
            figures = {"trained": record["dice"]["mean"], "untrained": validate_untrained(workspace, stage, untrained)}
            stages[stage] = {"cases": len(record["dice"]["cases"]), "cross_validated": figures}
    for task in SYSTEMS[system]:
        stages[f"task{task}"]["unseen"] = {
            "trained": unseen_dice(graph, task, workspace.output / "bundles", work),
            "untrained": unseen_dice(graph, task, untrained / "bundles", work),
        }
    return {"minutes": minutes, "machine": machine(), "stages": stages}


def rows(system: str, result: Mapping[str, Any]) -> list[str]:
    """Return the rows of the table for a system."""
    minutes = result["minutes"]
    found = []
    for stage, figures in result["stages"].items():
        means = figures["cross_validated"]
        label = TUMOUR_NAME if TUMOUR_NAME in means["trained"] else "organs"
        values = [f"{_of(means[which], label):.2f}" for which in ("trained", "untrained")]
        unseen = figures.get("unseen")
        values += [f"{unseen[which]:.2f}" for which in ("trained", "untrained")] if unseen else ["", ""]
        found.append(f"| {system.upper()} | {stage} | {label} | {' | '.join(values)} | |")
    return [*found[:-1], f"{found[-1][:-2]} {minutes['wall']:.0f}, {minutes['cpu']:.0f} |"]


def _of(dice: Mapping[str, float], label: str) -> float:
    """Return the Dice of the tumour, or the mean over the organs."""
    return dice[label] if label in dice else sum(dice.values()) / len(dice)


def main() -> None:
    """Measure the systems, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument(
        "--work", type=Path, help="folder in which everything is kept; one with a system's run is refused"
    )
    options = parser.parse_args()
    show_log()
    results: dict[str, Any] = read_json(RESULTS) if RESULTS.is_file() else {}
    for system in options.systems:
        with contextlib.ExitStack() as stack:
            root = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
            work = root / system
            work.mkdir(parents=True)
            results[system] = measure(system, work.resolve())
        write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print("| system | stage | Dice of | cross-validated | untrained | unseen | untrained | minutes: wall, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for system in options.systems:
        print("\n".join(rows(system, results[system])))


if __name__ == "__main__":
    main()
