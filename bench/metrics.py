"""Our metrics against DeepMind's surface-distance: `python -m bench.metrics [--phantoms 4] [--cases 60]`.

Compares the five metrics and the time of score_case with those of surface-distance, both conventions, on masks of
full-size Task 1 phantoms and five kinds of predictions; then runs `pantherseg evaluate` on folders of full-size and of
tiny masks, with one worker and with several, and measures time and peak memory. Prints tables and writes
bench/results/metrics.json. Times are of the CPU, the smallest of a few, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bench.processes import machine, run
from pantherseg.evaluation.metrics import METRICS, CaseScores, score_case
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.labels import TUMOUR
from pantherseg.machine.cpus import usable_cpus
from pantherseg.phantom import make_phantom
from pantherseg.volume import Box, Grid, Triple, Volume

Mask = NDArray[np.bool_]
Metrics = dict[str, float]

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 9000
REPEATS, OUR_REPEATS = 3, 9
TASK1_GRID = Grid((72, 258, 318), (3.0, 1.1875, 1.1875))
TINY_GRID = Grid((8, 16, 16), (3.0, 1.2, 1.2))
TINY_CASES = 1000


@dataclass(frozen=True)
class Pair:
    """A reference and a prediction: times in ms of CPU, and the largest difference of each metric."""

    prediction: str
    phantom: int
    voxels: int
    reference_ms: float
    ours_ms: float
    differences: Metrics


@dataclass(frozen=True)
class Folder:
    """A run of `pantherseg evaluate` on a folder."""

    masks: str
    cases: int
    workers: int
    seconds: float
    peak_mb: float


def by_surface_distance(reference: Mask, predicted: Mask, spacing: Triple) -> Metrics:
    """Return the five metrics as the challenge computes them. spacing: in mm, in the order of the array's axes."""
    import surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(reference, predicted, spacing)
    mm3 = float(np.prod(spacing))
    values = (
        surface_distance.compute_dice_coefficient(reference, predicted),
        surface_distance.compute_surface_dice_at_tolerance(distances, 5),
        surface_distance.compute_robust_hausdorff(distances, 95),
        float(np.mean(surface_distance.compute_average_surface_distance(distances))),
        abs(int(predicted.sum()) - int(reference.sum())) * mm3,
    )
    return {metric: float(value) for metric, value in zip(METRICS, values, strict=True)}


def predictions(labels: NDArray[Any], seed: int) -> Iterator[tuple[str, Mask]]:
    """Yield predictions of the tumour in a label map (z, y, x), from near to far from it."""
    random = np.random.default_rng(seed)
    tumour: Mask = labels == TUMOUR
    near = deformed(tumour, random)
    yield "deformed by up to about 3 voxels", near
    yield "moved by 1, 3 and 4 voxels", np.roll(tumour, (1, 3, 4), (0, 1, 2))
    far = near.copy()
    far[6:10, 30:45, 30:45] = True
    yield "deformed, and a component elsewhere", far
    yield "the whole pancreas", labels > 0
    yield "deformed, and 1 voxel in 10,000", near | (random.random(tumour.shape) < 1e-4)


def deformed(mask: Mask, random: np.random.Generator) -> Mask:
    """Return a mask (z, y, x) with a smooth random displacement of its voxels."""
    box = Box.around(mask)
    assert box is not None
    around = tuple(slice(max(0, part.start - 8), part.stop + 8) for part in box.slices)
    part = mask[around].astype(np.float32)
    fields = [ndimage.gaussian_filter(random.normal(size=part.shape), 5, mode="nearest") for _ in range(3)]
    at = [axis + 2 * field / field.std() for axis, field in zip(np.indices(part.shape), fields, strict=True)]
    moved = np.zeros_like(mask)
    moved[around] = ndimage.map_coordinates(part, at, order=1) > 0.5
    return moved


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the smallest time of the CPU in ms, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        began = time.thread_time()
        result = function()
        times.append(time.thread_time() - began)
    return min(times) * 1e3, result


def compare(seed: int) -> Iterator[Pair]:
    """Compare both on the masks of a phantom."""
    volume = make_phantom(seed, task=1).labels
    spacing = volume.grid.spacing
    tumour: Mask = volume.array == TUMOUR
    reference = Volume(tumour.astype(np.uint8), volume.grid)
    for name, mask in predictions(volume.array, seed):
        prediction = Volume(mask.astype(np.uint8), volume.grid)

        def theirs(mask: Mask = mask) -> list[Metrics]:
            return [by_surface_distance(tumour, mask, each) for each in (spacing[::-1], spacing)]

        def ours(prediction: Volume = prediction) -> CaseScores:
            return score_case(prediction, reference)

        slow, quick, differences = [], [], dict.fromkeys(METRICS, 0.0)
        for _ in range(REPEATS):
            reference_ms, expected = timed(theirs, 1)
            ours_ms, scores = timed(ours, OUR_REPEATS // REPEATS)
            slow.append(reference_ms)
            quick.append(ours_ms)
        for values, found in zip(expected, (scores.official, scores.corrected), strict=True):
            for metric, value in found.as_totals().as_dict().items():
                differences[metric] = max(differences[metric], abs(value - values[metric]))
        yield Pair(name, seed, int(tumour.sum()), min(slow), min(quick), differences)


def write_folder(folder: Path, grid: Grid, cases: int) -> None:
    """Write references with an ellipsoid, and predictions that are deformed or have a component elsewhere."""
    points = np.indices(grid.shape).astype(np.float32)
    for number in range(cases):
        random = np.random.default_rng(number)
        centre = np.array(grid.shape) * random.uniform(0.35, 0.65, 3)
        radius = np.array(grid.shape) * random.uniform(0.04, 0.12, 3) + 1
        squares = (((points - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0)
        tumour: Mask = squares < 1
        predicted = np.roll(tumour, random.integers(-2, 3, 3), (0, 1, 2))
        if number % 3 == 0:
            predicted[:2, :3, :3] = True
        write_volume(Volume(tumour.astype(np.uint8), grid), folder / "references" / f"{number:04d}.mha")
        write_volume(Volume(predicted.astype(np.uint8), grid), folder / "predictions" / f"{number:04d}.mha")


def evaluate_folder(folder: Path, masks: str, cases: int, workers: int) -> Folder:
    """Run `pantherseg evaluate` on the first cases of a folder in a process of its own."""
    chosen = folder / f"first-{cases}"
    for kind in ("predictions", "references"):
        (chosen / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((folder / kind).iterdir())[:cases]:
            if not (link := chosen / kind / path.name).exists():
                link.hardlink_to(path)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pantherseg",
        "evaluate",
        chosen / "predictions",
        chosen / "references",
    ]
    done = run([*command, "--workers", str(workers)], log=folder / "log.txt")
    return Folder(masks, cases, workers, round(done.seconds, 1), round(done.peak_mb))


def speed_table(pairs: list[Pair]) -> str:
    """Return the times as a table: the mean of the phantoms for each kind of prediction, and of all."""
    lines = ["| prediction | surface-distance, ms | ours, ms | times faster |", "|---|---|---|---|"]
    kinds = {
        name: [pair for pair in pairs if pair.prediction == name] for name in dict.fromkeys(p.prediction for p in pairs)
    }
    for name, chosen in {**kinds, "all": pairs}.items():
        theirs, ours = (float(np.mean([getattr(p, key) for p in chosen])) for key in ("reference_ms", "ours_ms"))
        lines.append(f"| {name} | {theirs:.0f} | {ours:.1f} | {theirs / ours:.1f} |")
    return "\n".join(lines)


def difference_table(pairs: list[Pair]) -> str:
    """Return the largest difference of each metric as a table."""
    lines = ["| metric | largest difference |", "|---|---|"]
    lines += [f"| {metric} | {max(pair.differences[metric] for pair in pairs):.1e} |" for metric in METRICS]
    return "\n".join(lines)


def folder_table(folders: list[Folder]) -> str:
    """Return the runs on folders as a table."""
    lines = ["| masks | cases | workers | seconds | peak memory |", "|---|---|---|---|---|"]
    lines += [f"| {f.masks} | {f.cases} | {f.workers} | {f.seconds:.1f} | {f.peak_mb:.0f} MB |" for f in folders]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=4, help="full-size phantoms whose masks are compared")
    parser.add_argument("--cases", type=int, default=60, help="cases of the folder of full-size masks")
    options = parser.parse_args()
    pairs = [pair for number in range(options.phantoms) for pair in compare(FIRST_SEED + number)]
    print(f"{speed_table(pairs)}\n\n{difference_table(pairs)}\n", flush=True)
    folders = []
    with tempfile.TemporaryDirectory(prefix="pantherseg-bench-") as work:
        for masks, grid, cases in (("full size", TASK1_GRID, options.cases), ("tiny", TINY_GRID, TINY_CASES)):
            folder = Path(work) / masks
            write_folder(folder, grid, cases)
            runs = [(max(1, cases // 6), 1), (cases, 1), (cases, usable_cpus())]
            folders += [evaluate_folder(folder, masks, number, workers) for number, workers in dict.fromkeys(runs)]
    print(folder_table(folders))
    result = {
        "machine": machine(),
        "pairs": [asdict(pair) for pair in pairs],
        "folders": [asdict(folder) for folder in folders],
    }
    write_text(RESULTS / "metrics.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
