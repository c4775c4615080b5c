"""`pantherseg select` on phantoms that no model has seen: `python -m bench.selection [--tasks 1 2] [--cases 40]`.

Makes full-size phantoms, segments them with each member, chooses an ensemble with the honest figures of nested
cross-validation, prints the tables and writes bench/results/selection.json. The members are the folds of a task's demo
model, one by one, one of them with tiles that do not overlap, for Task 2 a model of Task 1, and, with
`--models NAME=BUNDLES`, the model of the task in other folders of bundles, such as those of `python -m bench.systems`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import msgspec

from pantherseg.batch import run_batch
from pantherseg.logs import show_log
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import Member, Recipe, load_recipe
from pantherseg.session import Session

# Not among the seeds of weights/demo/make.sh, the training files, test/make_samples.py and the other benchmarks.
FIRST_SEED = {1: 31000, 2: 32000}
RESULTS = Path(__file__).parent / "results" / "selection.json"
FOLDS = 5


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
        if failed := run_batch(data / "imagesTr", folders[name], session, save_probabilities=True):
            raise RuntimeError(f"{name}: {len(failed)} cases failed")
    return folders


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
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        for task in options.tasks:
            predict(task, options.cases, others, work.resolve())


if __name__ == "__main__":
    main()
