"""Accuracy of the demo models on full-size phantoms: `python -m bench.demo [--tasks 1 2] [--cases 20] [--work DIR]`.

Makes phantoms that were not used for training, segments them as `pantherseg predict --rescue` does, scores the masks,
prints the distribution of the tumour Dice for each task, and writes bench/results/demo-task<k>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.batch import run_batch
from pantherseg.evaluation import evaluate
from pantherseg.files import write_text
from pantherseg.logs import show_log
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.session import Session

# Not among the seeds of weights/demo/make.sh and test/make_samples.py.
FIRST_SEED = 9000
RESULTS = Path(__file__).parent / "results"
QUANTILES = {"min": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "max": 1.0}


def measure(task: int, cases: int, work: Path) -> dict[str, Any]:
    """Return the totals and the distribution of the scores of one task."""
    data, masks = work / f"task{task}", work / f"task{task}-masks"
    write_dataset(data, task=task, cases=cases, seed=FIRST_SEED)
    session = Session(load_recipe(task_recipe(task)), DEMO_WEIGHTS, device="cpu", many_cases=True)
    failed = run_batch(data / "imagesTr", masks, session)
    result = evaluate(masks, data / "labelsTr")
    dice = {name: round(case.official.dice, 4) for name, case in result.cases.items()}
    values = np.array(list(dice.values()))
    return {
        "cases": cases,
        "failed": len(failed) + len(result.failed),
        "mean_dice": round(float(values.mean()), 4),
        "dice": {name: round(float(np.quantile(values, q)), 4) for name, q in QUANTILES.items()},
        "official": result.official.as_dict(),
        "corrected": result.corrected.as_dict(),
        "by_case": dice,
    }


def main() -> None:
    """Measure both tasks, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--work", type=Path, help="folder in which phantoms and masks are kept")
    options = parser.parse_args()
    show_log()
    rows = []
    for task in options.tasks:
        with contextlib.ExitStack() as stack:
            work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
            result = {"first_seed": FIRST_SEED, **measure(task, options.cases, work)}
        write_text(RESULTS / f"demo-task{task}.json", json.dumps(result, indent=2) + "\n")
        spread = " | ".join(f"{value:.3f}" for value in result["dice"].values())
        rows.append(f"| Task {task} | {result['cases']} | {result['mean_dice']:.3f} | {spread} |")
    print("| demo models | cases | mean | min | quarter | median | three quarters | max |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
