"""What leaving out work costs: `python -m bench.fast [PART ...] [--cases 40] [--model FOLDER]`.

faithful: masks of `fast` in float32 against those of `exact`, on unseen phantoms as they are, a quarter of them also
with a copy of the tumour on the other side of the body. bfloat16: the same where `fast` computes in bfloat16, which
OpenVINO imitates slowly on a CPU that has AVX-512 only; a quarter of the phantoms as they are. uncertain: the same in
float32 for a quarter of the phantoms with noise, which makes the folds unsure and disagree. deadlines: masks of `exact`
with too little time, where later folds run the tiles that matter most for the tumour, and where they run all tiles or
none. certain: how many tiles `exact` could leave out if it knew the largest logits of the folds to come. The demo
models are used, or the bundles of the same names in another folder. Each part prints a table and writes
bench/results/fast-<part>.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bench.parity import REQUIRED_DICE, dice, member_input
from bench.processes import machine
from pantherseg.fast import USUAL
from pantherseg.files import write_text
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.phantom import Phantom, make_phantom
from pantherseg.preprocessing.preprocess import Prepared
from pantherseg.volume import Volume

logger = logging.getLogger("bench.fast")

RESULTS = Path(__file__).parent / "results"
# Not among the seeds of weights/demo/make.sh, of the tests and of other benchmarks.
FIRST_SEED = 9300
# Around the tumour that is copied, in voxels.
MARGIN = 4
# Standard deviation of noise, as a share of the image's.
NOISE = 0.3
# The time that is given, as a share of what `exact` takes.
TIMES = (0.3, 0.4, 0.6, 0.8)


def faithful(task: int, cases: int, models: Path) -> dict[str, Any]:
    """Compare the tumour masks of both modes in float32."""
    exact = predictor_of(task, models)
    fast = replace(exact, backend=choose_backend("cpu", "fast", bfloat16=False))
    return {
        "as they are": _faithful(exact, fast, task, cases, as_it_is),
        "tumour copied": _faithful(exact, fast, task, cases // 4, with_a_copy),
    }


def bfloat16(task: int, cases: int, models: Path) -> dict[str, Any]:
    """Compare the tumour masks of `fast` in bfloat16 with those of `exact`."""
    exact = predictor_of(task, models)
    backend = OpenVinoBackend("fast")
    backend.settings["INFERENCE_PRECISION_HINT"] = "bf16"  # also where the CPU does not support it
    return {"as they are": _faithful(exact, replace(exact, backend=backend), task, cases // 4, as_it_is)}


def uncertain(task: int, cases: int, models: Path) -> dict[str, Any]:
    """Compare the tumour masks of both modes in float32 where the networks are less sure than usual."""
    exact = predictor_of(task, models)
    fast = replace(exact, backend=choose_backend("cpu", "fast", bfloat16=False))
    return {"with noise": _faithful(exact, fast, task, cases // 4, with_noise)}


def _faithful(
    exact: Predictor, fast: Predictor, task: int, cases: int, image_of: Callable[[Phantom], Volume]
) -> list[dict[str, Any]]:
    rows = []
    for seed in _seeds(cases):
        rows.append(_compared(exact, fast, member_input(image_of(make_phantom(seed, task=task)), task)))
        logger.info("task %d, %d, %s: %s", task, seed, image_of.__name__, rows[-1])
    return rows


def as_it_is(phantom: Phantom) -> Volume:
    """Return the image of a phantom."""
    return Volume(phantom.image.array.astype(np.float32), phantom.image.grid)


def with_a_copy(phantom: Phantom) -> Volume:
    """Return the image with its tumour, and what is around it, copied to the other side of the body."""
    image = as_it_is(phantom)
    where = np.argwhere(phantom.labels.array == TUMOUR)
    start, stop = where.min(axis=0) - MARGIN, where.max(axis=0) + 1 + MARGIN
    start, stop = np.maximum(start, 0), np.minimum(stop, image.grid.shape)
    source = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
    width = image.grid.shape[2]
    target = (*source[:2], slice(width - int(stop[2]), width - int(start[2])))
    array = image.array.copy()
    array[target] = image.array[source]
    return Volume(array, image.grid)


def with_noise(phantom: Phantom) -> Volume:
    """Return the image with Gaussian noise, which no model was trained with."""
    image = as_it_is(phantom)
    noise = np.random.default_rng(FIRST_SEED).normal(scale=NOISE * image.array.std(), size=image.grid.shape)
    return Volume(image.array + noise.astype(np.float32), image.grid)


def predictor_of(task: int, models: Path) -> Predictor:
    """Return the model of a task in `exact`. Compiled networks are kept for the next phantom."""
    bundle = open_bundle(models / f"task{task}")
    return Predictor(bundle, choose_backend("cpu"), compared_label=TUMOUR, keep_networks=True)


def _seeds(cases: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + cases)


def _compared(exact: Predictor, fast: Predictor, volume: Volume) -> dict[str, Any]:
    prepared = exact.prepare(volume)
    expected, exact_seconds, _ = _tumour(exact, prepared)
    mask, fast_seconds, share = _tumour(fast, prepared)
    places, count = ndimage.label(expected, ndimage.generate_binary_structure(3, 3))
    found = len(set(np.unique(places[mask])) - {0})
    return {
        "voxels": int(expected.sum()),
        "tumours": count,
        "missed": count - found,
        "dice": round(dice(mask, expected), 6),
        "tile_share": round(share, 4),
        "seconds": {"exact": round(exact_seconds, 2), "fast": round(fast_seconds, 2)},
    }


def _tumour(predictor: Predictor, prepared: Prepared, deadline: Deadline = NEVER) -> tuple[Any, float, float]:
    """Return the tumour's mask (z, y, x), the seconds that it took, and the share of the tiles."""
    began = time.monotonic()
    logits = predictor.logits(prepared, deadline)
    mask = tumour_of(logits.labels())
    return mask, time.monotonic() - began, logits.tile_share


def deadlines(task: int, cases: int, models: Path) -> dict[str, Any]:
    """Compare masks under deadlines with those of `exact` without one."""
    exact = predictor_of(task, models)
    orders = {"tiles that matter": exact, "whole folds": replace(exact, compared_label=None)}
    found: dict[str, Any] = {order: {str(share): [] for share in TIMES} for order in orders}
    for seed in _seeds(cases):
        prepared = exact.prepare(member_input(as_it_is(make_phantom(seed, task=task)), task))
        _tumour(exact, prepared)  # compiles the networks
        expected, seconds, _ = _tumour(exact, prepared)
        for share in TIMES:
            for order, predictor in orders.items():
                mask, took, tiles = _tumour(predictor, prepared, Deadline.after(share * seconds))
                row = {"dice": round(dice(mask, expected), 6), "seconds": round(took, 2), "tile_share": round(tiles, 4)}
                found[order][str(share)].append(row | {"of_seconds": round(seconds, 2)})
        logger.info("task %d, %d: %s", task, seed, {order: rows[str(TIMES[0])][-1] for order, rows in found.items()})
    return found


def certain(task: int, cases: int, models: Path) -> list[dict[str, Any]]:
    """Count the tiles that no later fold can change, by a bound that only an oracle knows.

    After some folds a tile is certain if at each of its voxels the largest summed logit is further above the second
    than the folds to come could change, each by the largest difference of two logits that any fold has anywhere.
    """
    exact = predictor_of(task, models)
    alone = [replace(exact, bundle=replace(exact.bundle, folds=(fold,))) for fold in exact.bundle.folds]
    rows = []
    for seed in _seeds(cases):
        prepared = exact.prepare(member_input(as_it_is(make_phantom(seed, task=task)), task))
        folds = [one.logits(prepared).values.astype(np.float32) for one in alone]
        most = max(float((logits.max(axis=0) - logits.min(axis=0)).max()) for logits in folds)
        sweep = Sweep(prepared.data, exact.bundle.manifest.patch, step=exact.step)
        gaps = np.full(sweep.shape, np.inf, np.float32)
        total = np.zeros_like(folds[0])
        counts = []
        for left, logits in zip(range(len(folds) - 1, 0, -1), folds[:-1], strict=True):
            total += logits
            second, largest = np.partition(total, -2, axis=0)[-2:]
            gaps[sweep.inside] = largest - second
            counts.append(sum(bool(gaps[tile].min() > left * most) for tile in sweep.tiles))
        empty = sum(bool(np.ptp(sweep.data[0][tile]) == 0) for tile in sweep.tiles)
        rows.append({"tiles": len(sweep.tiles), "empty": empty, "certain": counts, "largest_difference": most})
        logger.info("task %d, %d: %s", task, seed, rows[-1])
    return rows


def certain_table(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each task."""
    lines = ["| | cases | tiles | of one value | certain after 1, 2, 3, 4 folds |", "|---" * 5 + "|"]
    for task, rows in results.items():
        counts = np.sum([row["certain"] for row in rows], axis=0)
        totals = " | ".join(str(sum(row[key] for row in rows)) for key in ("tiles", "empty"))
        lines.append(f"| {task} | {len(rows)} | {totals} | {', '.join(map(str, counts))} |")
    return "\n".join(lines)


def faithful_table(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each task and kind of phantoms."""
    lines = [
        f"| phantoms | cases | Dice >= {REQUIRED_DICE} | mean Dice | lowest | tumours | missed | tiles run | seconds |",
        "|---" * 9 + "|",
    ]
    for task, kinds in results.items():
        for kind, cases in kinds.items():
            values = np.array([case["dice"] for case in cases])
            seconds = [sum(case["seconds"][mode] for case in cases) / len(cases) for mode in ("exact", "fast")]
            lines.append(
                f"| {task}, {kind} | {len(cases)} | {np.mean(values >= REQUIRED_DICE):.0%} | {values.mean():.4f} "
                f"| {values.min():.4f} | {sum(case['tumours'] for case in cases)} "
                f"| {sum(case['missed'] for case in cases)} | {np.mean([case['tile_share'] for case in cases]):.0%} "
                f"| {seconds[1]:.1f} against {seconds[0]:.1f} |"
            )
    return "\n".join(lines)


def deadlines_table(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each task and share of the time."""
    orders = ("tiles that matter", "whole folds")
    lines = [f"| | {' | '.join(f'{order}: mean Dice | lowest' for order in orders)} |", "|---" * 5 + "|"]
    for task, found in results.items():
        for share in map(str, TIMES):
            values = [[row["dice"] for row in found[order][share]] for order in orders]
            cells = " | ".join(f"{np.mean(some):.4f} | {min(some):.4f}" for some in values)
            lines.append(f"| {task}, {float(share):.0%} of the time | {cells} |")
    return "\n".join(lines)


PARTS: dict[str, tuple[Callable[[int, int, Path], Any], Callable[[dict[str, Any]], str]]] = {
    "faithful": (faithful, faithful_table),
    "bfloat16": (bfloat16, faithful_table),
    "uncertain": (uncertain, faithful_table),
    "deadlines": (deadlines, deadlines_table),
    "certain": (certain, certain_table),
}


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(prog="python -m bench.fast", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--cases", type=int, default=40, help="phantoms of each task")
    parser.add_argument("--model", type=Path, default=DEMO_WEIGHTS, help="folder with the bundles of the tasks")
    parser.add_argument("--tasks", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bench").setLevel(logging.INFO)
    for name in options.parts or PARTS:
        measure, table = PARTS[name]
        results = {f"Task {task}": measure(task, options.cases, options.model) for task in options.tasks}
        content = {"machine": machine(), "first_seed": FIRST_SEED, "settings": str(USUAL), "results": results}
        write_text(options.results / f"fast-{name}.json", json.dumps(content, indent=1) + "\n")
        print(f"\n{table(results)}", flush=True)


if __name__ == "__main__":
    main()
