"""Task 1 on the whole volume or on a crop: `python -m bench.crop_or_whole [--cases 40] [--work DIR]`.

Both recipes, `task1` and `task1_crop`, with the demo models on the same full-size phantoms, which no model has seen:
the five metrics of the challenge, and the seconds of a case. Prints a table and writes
bench/results/crop-or-whole.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import machine
from pantherseg.batch import run_batch
from pantherseg.evaluation import evaluate
from pantherseg.files import write_text
from pantherseg.logs import show_log
from pantherseg.paths import DEMO_WEIGHTS, find_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.results import read_report
from pantherseg.session import Session

logger = logging.getLogger(__name__)

RECIPES = ("task1", "task1_crop")
# Those of bench.selection, so that both can use the same folder.
FIRST_SEED = 31000
RESULTS = Path(__file__).parent / "results" / "crop-or-whole.json"
METRICS = ("dice", "surface_dice_5mm", "hd95_mm", "masd_mm", "volume_rmse_mm3")


def measure(name: str, data: Path, masks: Path) -> dict[str, Any]:
    """Return the metrics of a recipe and the seconds of its cases. An interrupted run is resumed."""
    session = Session(load_recipe(find_recipe(Path(name))), DEMO_WEIGHTS, device="cpu", many_cases=True)
    if failed := run_batch(data / "imagesTr", masks, session):
        raise RuntimeError(f"{name}: {len(failed)} cases failed")
    result = evaluate(masks, data / "labelsTr")
    reports = [read_report(path) for path in sorted(masks.glob("*.json"))]
    seconds = [sum(report.seconds.values()) for report in reports]
    shape = [np.subtract(report.box.stop_zyx, report.box.start_zyx) for report in reports]
    return {
        "official": result.official.as_dict(),
        "corrected": result.corrected.as_dict(),
        "dice_by_case": {case: round(scores.official.dice, 4) for case, scores in result.cases.items()},
        "seconds": {"mean": round(float(np.mean(seconds)), 2), "max": round(float(np.max(seconds)), 2)},
        "voxels": int(np.mean([np.prod(sides) for sides in shape])),
        "events": sorted({event.code.value for report in reports for event in report.events}),
    }


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each recipe."""
    lines = [
        f"| recipe | {' | '.join(METRICS)} | seconds a case | voxels searched |",
        "|---" * (len(METRICS) + 3) + "|",
    ]
    for name in RECIPES:
        found = results["recipes"][name]
        values = " | ".join(f"{found['official'][metric]:.4g}" for metric in METRICS)
        lines.append(f"| `{name}` | {values} | {found['seconds']['mean']:.1f} | {found['voxels'] / 1e6:.1f} M |")
    return "\n".join(lines)


def main() -> None:
    """Measure both recipes, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--work", type=Path, help="folder in which phantoms and masks are kept")
    options = parser.parse_args()
    show_log()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        data = work / "data1"
        if not data.exists():
            write_dataset(data, task=1, cases=options.cases, seed=FIRST_SEED)
        found = {name: measure(name, data, work / "crop_or_whole" / name) for name in RECIPES}
    results = {"first_seed": FIRST_SEED, "cases": options.cases, "machine": machine(), "recipes": found}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
