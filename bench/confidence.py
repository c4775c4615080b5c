"""Judges the expected Dice on phantoms: `python -m bench.confidence [--tasks 1 2] [--cases 40] [--work DIR]`.

Makes two sets of phantoms a task that no model has seen, and segments them with the demo models. From the first set it
makes weights/demo/calibration.json, as `pantherseg calibrate` does. On the second, the expected Dice is compared with
the true one. Every second phantom is made harder, so that there are poor masks to tell from good ones. With a folder,
cases that are done are kept. Prints tables, writes bench/results/confidence.json and docs/images/confidence.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.confidence_fits import compare_fits
from bench.confidence_shown import draw, tables
from bench.processes import machine
from pantherseg.case import CaseOutput, run_case
from pantherseg.confidence.calibrate import Cohort, calibrate, read_cohort
from pantherseg.confidence.figures import bins, figures, risks
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.labels import BACKGROUND
from pantherseg.logs import show_log
from pantherseg.models.calibration import read_calibrations, write_calibrations
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.phantom import case_id, make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

# Not among the seeds of weights/demo/make.sh, test/make_samples.py, and the other benchmarks.
FIT, JUDGE = "fit", "judge"
FIRST_SEEDS = {FIT: 7000, JUDGE: 7200}
# A harder phantom: noise in shares of the pancreas's intensity, and how many slices are averaged.
NOISE = (0.05, 0.4)
SLICES = (1, 2, 3)
RESULTS = Path(__file__).parent / "results" / "confidence.json"
PICTURE = ROOT / "docs" / "images" / "confidence.png"
DIGITS = 4
# So that a busy machine leaves nothing out.
TIME_BUDGET_S = 24 * 3600.0


def harder(image: NDArray[np.int16], labels: NDArray[np.uint8], seed: int) -> NDArray[np.int16]:
    """Return an image (z, y, x) with more noise and thicker slices on the same grid."""
    rng = np.random.default_rng([seed, 1])
    thick = int(rng.choice(SLICES))
    signal = image.astype(np.float32)
    for start in range(0, len(signal), thick):
        signal[start : start + thick] = signal[start : start + thick].mean(axis=0)
    sigma = np.float32(rng.uniform(*NOISE) * float(image[labels > BACKGROUND].mean()))
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    measured = np.hypot(real, sigma * rng.standard_normal(signal.shape, dtype=np.float32))
    limited: NDArray[np.int16] = np.clip(np.rint(measured), 0, np.iinfo(np.int16).max).astype(np.int16)
    return limited


def is_harder(seed: int) -> bool:
    """Return whether the phantom of a seed is made harder."""
    return seed % 2 == 1


def predict_case(session: Session, task: int, seed: int, folder: Path) -> None:
    """Make one phantom, and write its labels, mask and report below a folder, unless they are there."""
    name = case_id(seed, task=task)
    output = CaseOutput(folder / "masks" / f"{name}.mha", folder / "masks" / f"{name}.json")
    if output.report.is_file():
        return
    phantom, image = make_phantom(seed, task=task), folder / f"{name}.mha"
    array = phantom.image.array
    write_volume(
        Volume(harder(array, phantom.labels.array, seed) if is_harder(seed) else array, phantom.image.grid), image
    )
    write_volume(phantom.labels, folder / "labels" / f"{name}.mha")
    run_case(image, session, output)
    image.unlink()  # the images of all cases take gigabytes


def predict(task: int, cases: int, work: Path) -> dict[str, Cohort]:
    """Make and segment both sets of a task. Raises RuntimeError if a case cannot be used."""
    recipe = msgspec.structs.replace(load_recipe(task_recipe(task)), time_budget_s=TIME_BUDGET_S)
    session = Session(recipe, DEMO_WEIGHTS, device="cpu", many_cases=True)
    cohorts = {}
    for kind, first in FIRST_SEEDS.items():
        folder = work / f"task{task}-{kind}"
        for seed in range(first, first + cases):
            predict_case(session, task, seed, folder)
        cohorts[kind] = read_cohort(folder / "masks", folder / "labels")
        if cohorts[kind].failed:
            raise RuntimeError(f"{folder}: {cohorts[kind].failed}")
    return cohorts


def orders(cohort: Cohort, expected: dict[str, float]) -> dict[str, float]:
    """Return the area under the risk-coverage curve of several orders of the cases."""
    volumes = {name: np.array(one.fold_volumes_ml) for name, one in cohort.confidences.items()}
    scores = {
        "expected Dice": expected,
        "pairwise Dice": {name: one.pairwise_dice or 0.0 for name, one in cohort.confidences.items()},
        "entropy": {
            name: -2.0 if one.mean_entropy is None else -one.mean_entropy for name, one in cohort.confidences.items()
        },
        "range of the folds' volumes / their mean": {
            name: -float(np.ptp(one) / max(one.mean(), 1e-9)) for name, one in volumes.items()
        },
        "tumour volume": {name: float(one.mean()) for name, one in volumes.items()},
    }
    true = [cohort.dice[name] for name in expected]
    return {
        label: round(float(risks([score[name] for name in expected], true).mean()), DIGITS)
        for label, score in scores.items()
    }


def judge(task: int, cohorts: dict[str, Cohort]) -> dict[str, Any]:
    """Calibrate the demo models of a task by the first set, and return the figures of the second."""
    calibration = calibrate(cohorts[FIT])
    write_calibrations({**read_calibrations(DEMO_WEIGHTS), cohorts[FIT].recipe: calibration}, DEMO_WEIGHTS)
    cohort = cohorts[JUDGE]
    expected = {name: calibration.line.expected(one) for name, one in cohort.confidences.items()}
    true = {name: cohort.dice[name] for name in expected}
    values = list(expected.values()), list(true.values())
    kinds = ["harder" if is_harder(FIRST_SEEDS[JUDGE] + number) else "plain" for number in range(len(expected))]
    return {
        "calibration": msgspec.to_builtins(calibration),
        "candidates": compare_fits(cohorts[FIT], cohorts[JUDGE]),
        "judged": {
            kind: msgspec.to_builtins(figures(*(_of_kind(side, kinds, kind) for side in values)))
            for kind in ("all", "plain", "harder")
        },
        "empty_masks": sum(one.mean_entropy is None for one in cohort.confidences.values()),
        "bins": [{name: round(value, DIGITS) for name, value in asdict(one).items()} for one in bins(*values)],
        "aurc_by": orders(cohort, expected),
        "cases": {
            name: {
                "kind": kind,
                "expected": round(expected[name], DIGITS),
                "true": round(true[name], DIGITS),
                **msgspec.to_builtins(cohort.confidences[name]),
            }
            for kind, name in zip(kinds, expected, strict=True)
        },
    }


def _of_kind(values: list[float], kinds: list[str], kind: str) -> list[float]:
    return [value for value, own in zip(values, kinds, strict=True) if kind in ("all", own)]


def main() -> None:
    """Measure both tasks, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--cases", type=int, default=40, help="cases in each of the two sets")
    parser.add_argument("--work", type=Path, help="folder in which masks and labels are kept")
    options = parser.parse_args()
    show_log()
    settings = {"first_seeds": FIRST_SEEDS, "noise": NOISE, "slices": SLICES}
    results: dict[str, Any] = {"machine": machine(), "settings": settings}
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        for task in options.tasks:
            results[f"task{task}"] = judge(task, predict(task, options.cases, work))
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    draw(results, PICTURE)
    print(tables(results))


if __name__ == "__main__":
    main()
