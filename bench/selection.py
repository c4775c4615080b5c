"""`pantherseg select` on phantoms that no model has seen: `python -m bench.selection [--tasks 1 2] [--cases 40]`.

Makes full-size phantoms, segments them with each member, chooses an ensemble with the honest figures of nested
cross-validation, prints the tables and writes bench/results/selection.json. The members are the folds of a task's demo
model, one by one, one of them with tiles that do not overlap, for Task 2 a model of Task 1, and, with
`--models NAME=BUNDLES`, the model of the task in other folders of bundles, such as those of `python -m bench.systems`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.processes import machine
from pantherseg.batch import Wanted, run_batch
from pantherseg.case import CaseOutput, run_case
from pantherseg.files import write_text
from pantherseg.logs import show_log
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import Member, Recipe, load_recipe
from pantherseg.selection import Outcome, outcome_dict, outcome_table, recipe_remarks, select_members, write_recipe
from pantherseg.selection.cases import read_case
from pantherseg.selection.recipe_file import kept_steps
from pantherseg.session import Session
from pantherseg.volume import Box, uncrop

# Not among the seeds of weights/demo/make.sh, the training files, test/make_samples.py and the other benchmarks.
FIRST_SEED = {1: 31000, 2: 32000}
RESULTS = Path(__file__).parent / "results" / "selection.json"
FOLDS = 5
# On so many cases the chosen recipe is run.
AGREEMENT_CASES = 5


def members_of(task: int, others: dict[str, Path]) -> dict[str, Member]:
    """Return the members by the names of the folders of their predictions. others: folders of bundles by name."""
    found = {f"demo-fold{fold}": Member(model="demo", folds=[fold]) for fold in range(FOLDS)}
    found["demo-fold0-step1"] = Member(model="demo", folds=[0], step=1.0)
    if task == 2:
        found["demo-task1"] = Member(model="demo_task1", folds=[0])
    return found | {name: Member(model=name) for name in others}


def link_models(task: int, others: dict[str, Path], work: Path) -> Path:
    """Return a folder of models in which each has its name in the recipes."""
    sources = {"demo": DEMO_WEIGHTS / f"task{task}", "demo_task1": DEMO_WEIGHTS / "task1"}
    sources |= {"localizer": DEMO_WEIGHTS / "localizer"}
    sources |= {name: (folder / f"task{task}").resolve() for name, folder in others.items()}
    models = work / f"models{task}"
    models.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        if not (models / name).is_symlink():
            (models / name).symlink_to(source)
    return models


def predict(task: int, cases: int, others: dict[str, Path], work: Path) -> dict[str, Path]:
    """Make the phantoms, let each member segment them, and return the folders of the predictions by member."""
    data, models = work / f"data{task}", link_models(task, others, work)
    if not data.exists():
        write_dataset(data, task=task, cases=cases, seed=FIRST_SEED[task])
    base, folders = load_recipe(task_recipe(task)), {}
    for name, member in members_of(task, others).items():
        folders[name] = work / f"predictions{task}" / name
        if len(list(folders[name].glob("*.npz"))) == cases:  # of an earlier run in the same folder
            continue
        recipe: Recipe = msgspec.structs.replace(base, members=[member])
        session = Session(recipe, models, device="cpu", many_cases=True)
        if failed := run_batch(data / "imagesTr", folders[name], session, wanted=Wanted(probabilities=True)):
            raise RuntimeError(f"{name}: {len(failed)} cases failed")
    return folders


def choose(task: int, folders: dict[str, Path], references: Path, others: dict[str, Path]) -> Outcome:
    """Return what `pantherseg select` chooses of the members."""
    models = {name: member.model for name, member in members_of(task, others).items()}
    pairs = [(models[name], folder) for name, folder in folders.items()]
    return select_members(pairs, references, load_recipe(task_recipe(task)), name=f"task{task}_selected")


def agreement(task: int, outcome: Outcome, references: Path, work: Path) -> dict[str, Any]:
    """Run the chosen recipe on some cases, and compare its masks with those that the selection scored."""
    path, masks = work / f"recipe{task}.toml", work / f"masks{task}"
    write_recipe(outcome.recipe, path, recipe_remarks(outcome))
    session = Session(load_recipe(path), work / f"models{task}", device="cpu", many_cases=True)
    voxels, differing, seconds = 0, [], []
    for name in outcome.cases[:AGREEMENT_CASES]:
        output = CaseOutput(masks / f"{name}.mha", masks / f"{name}.json")
        result = run_case(work / f"data{task}" / "imagesTr" / f"{name}_0000.mha", session, output)
        case = read_case(name, references / f"{name}.mha", [member.files[name] for member in outcome.members])
        scored = case.mask(outcome.selection.candidate, kept_steps(load_recipe(task_recipe(task))))
        real = result.segmentation.mask
        start = real.grid.box_from(case.reference.grid, Box.whole(scored.shape))
        voxels += int(real.array.sum())
        differing.append(int((uncrop(scored, start, real.grid.shape) != (real.array == 1)).sum()))
        seconds.append(result.segmentation.seconds["members"])
    return {
        "cases": len(differing),
        "voxels": voxels,
        "differing_voxels": sum(differing),
        "most_in_a_case": max(differing),
        "seconds": round(sum(seconds) / len(seconds), 2),
    }


def measure(task: int, cases: int, others: dict[str, Path], work: Path) -> tuple[dict[str, Any], str]:
    """Return the figures of a task, and its tables as text."""
    folders, references = predict(task, cases, others, work), work / f"data{task}" / "labelsTr"
    began, before = time.monotonic(), time.process_time()
    outcome = choose(task, folders, references, others)
    took = {"wall": round(time.monotonic() - began), "cpu": round(time.process_time() - before)}
    found = outcome_dict(outcome)
    for member in found["members"].values():  # where they were says nothing to others
        del member["folder"]
    found |= {"first_seed": FIRST_SEED[task], "selection_seconds": took}
    found["recipe_against_scored_masks"] = agreement(task, outcome, references, work)
    return found, outcome_table(outcome)


def main() -> None:
    """Measure the tasks, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--models", metavar="NAME=BUNDLES", action="append", default=[])
    parser.add_argument("--work", type=Path, help="folder in which phantoms and predictions are kept")
    options = parser.parse_args()
    show_log()
    others = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.models)}
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results["machine"] = machine()
    for task in options.tasks:
        with contextlib.ExitStack() as stack:
            work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
            results[f"task{task}"], text = measure(task, options.cases, others, work.resolve())
        print(f"Task {task}\n\n{text}\n")
        print(f"recipe against the masks that were scored: {results[f'task{task}']['recipe_against_scored_masks']}\n")
        write_text(RESULTS, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
