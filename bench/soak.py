"""Segments many cases in one process: `python -m bench.soak [--cases 200] [--seed 0] [--folds 1]`.

The cases are phantoms on random grids, some with unusual intensities, alternately for both tasks. They are segmented by
the demo models on the CPU, and each mask is checked by the platform's rules. Prints the failures and the resident
memory, and writes bench/results/soak.json. The exit code is 1 if a case has no valid mask, or if memory has grown by
more than MAX_GROWTH after the first WARM_UP_CASES.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from tqdm import tqdm

from bench.processes import machine
from pantherseg.case import CaseOutput, run_case
from pantherseg.files import write_text
from pantherseg.grand_challenge.check import check_output
from pantherseg.grand_challenge.job import IMAGES, find_input, output_path
from pantherseg.io import write_volume
from pantherseg.io.itk import from_itk, to_itk
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Shape, Volume

RESULTS = Path(__file__).parent / "results"
TASKS = (1, 2)
# Phantoms are made once; each case is another crop and orientation of one of them.
PHANTOM_SEEDS = (7001, 7002)
WARM_UP_CASES, MAX_GROWTH = 20, 0.05
MAX_VOXELS = 400_000
# Shortest and longest side of a case, which is a few tiles of the demo models.
EXTENT_MM = (5.0, 200.0)
INTENSITIES = ("as it is", "wide", "negative", "tiny", "one bright voxel", "all constant", "some NaN", "steps of 1e13")


def odd_intensities(array: NDArray[np.float32], kind: str, random: np.random.Generator) -> NDArray[np.float32]:
    """Return voxels (z, y, x) changed in one of the ways in INTENSITIES."""
    array = array.copy()
    voxel = tuple(int(random.integers(size)) for size in array.shape)
    if kind == "wide":
        array *= np.float32(1e9)
    elif kind == "negative":
        array -= np.float32(5000)
    elif kind == "tiny":
        array *= np.float32(1e-39)  # denormals
    elif kind == "one bright voxel":
        array[:] = 0
        array[voxel] = 1e13
    elif kind == "all constant":
        array[:] = random.choice([0, 1, -7])
    elif kind == "some NaN":
        array.flat[random.integers(array.size, size=array.size // 200)] = np.nan
    elif kind == "steps of 1e13":
        array[voxel] = 1e13
    return array


def rotation(random: np.random.Generator) -> NDArray[np.float64]:
    """Return a random rotation, which may be the identity, with axes permuted and flipped."""
    matrix = np.eye(3) if random.random() < 0.3 else np.linalg.qr(random.normal(size=(3, 3)))[0]
    flips: NDArray[np.float64] = matrix @ np.diag(random.choice([-1.0, 1.0], 3))
    return flips[:, random.permutation(3)]


def random_case(phantom: Volume, random: np.random.Generator) -> tuple[Volume, str]:
    """Return a random crop of a phantom with a random spacing and orientation, and the kind of its intensities."""
    shape = phantom.grid.shape
    extent = np.clip(np.rint(random.uniform(*EXTENT_MM, 3) / phantom.grid.spacing), 1, shape).astype(int)
    start = [int(random.integers(n - part + 1)) for n, part in zip(shape, extent, strict=True)]
    crop = phantom.crop(Box(_shape(start), _shape([first + part for first, part in zip(start, extent, strict=True)])))
    spacing = np.exp(random.uniform(np.log(0.8), np.log(9), 3))
    size = np.maximum(1, np.rint(np.array(crop.grid.shape) * crop.grid.spacing / spacing))
    while size.prod() > MAX_VOXELS:
        spacing, size = spacing * 1.2, np.maximum(1, np.rint(size / 1.2))
    resample = sitk.ResampleImageFilter()
    resample.SetSize([int(n) for n in size[::-1]])
    resample.SetOutputSpacing([float(mm) for mm in spacing[::-1]])
    resample.SetOutputOrigin(crop.grid.origin)
    resample.SetOutputDirection(np.ravel(crop.grid.direction).tolist())
    resample.UseNearestNeighborExtrapolatorOn()
    resampled = from_itk(resample.Execute(to_itk(Volume(crop.array.astype(np.float32), crop.grid))))
    kind = str(random.choice(INTENSITIES, p=[0.5] + [0.5 / (len(INTENSITIES) - 1)] * (len(INTENSITIES) - 1)))
    origin = tuple(float(mm) for mm in random.uniform(-500, 500, 3))
    direction: Any = tuple(tuple(map(float, row)) for row in rotation(random))
    grid = replace(resampled.grid, origin=origin, direction=direction)  # type: ignore[arg-type]
    return Volume(odd_intensities(resampled.array, kind, random), grid), kind


def _shape(values: list[int]) -> Shape:
    z, y, x = values
    return z, y, x


def segment_job(session: Session, volume: Volume, work: Path) -> str:
    """Segment a volume as the entry point does, and return what is wrong with the result, or an empty string."""
    sockets = session.recipe.sockets
    job, output = work / "input", work / "output"
    write_volume(volume, job / IMAGES / sockets.input / "case.mha")
    source = find_input(job, sockets)
    result = run_case(source, session, CaseOutput(output_path(output, sockets, source), output / "results.json"))
    broken = [
        f"{verdict.rule}: {verdict.found}" for verdict in check_output(output, sockets, job=job) if not verdict.kept
    ]
    if not result.segmentation.mask.array.any():
        broken.append("an empty mask")
    return "; ".join(broken)


def resident_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _recipe(task: int, folds: int) -> Recipe:
    """Return a task's recipe with the first folds only, because loading all would only take longer."""
    recipe = load_recipe(task_recipe(task))
    members = [msgspec.structs.replace(member, folds=list(range(folds))) for member in recipe.members]
    return msgspec.structs.replace(recipe, members=members)


def soak(cases: int, seed: int, folds: int) -> dict[str, Any]:
    """Run the cases, and return the failures and the memory in MB after each case."""
    sessions = {task: Session(_recipe(task, folds), DEMO_WEIGHTS, device="cpu", many_cases=True) for task in TASKS}
    phantoms = {
        task: [make_phantom(number, task=task, size="small").image for number in PHANTOM_SEEDS] for task in TASKS
    }
    random = np.random.default_rng(seed)
    failures: list[str] = []
    memory: list[float] = []
    kinds: Counter[str] = Counter()
    for number in tqdm(range(cases), unit="case", disable=None):
        task = TASKS[number % len(TASKS)]
        volume, kind = random_case(phantoms[task][int(random.integers(len(PHANTOM_SEEDS)))], random)
        kinds[kind] += 1
        with tempfile.TemporaryDirectory(prefix="pantherseg-soak-") as work:
            try:
                wrong = segment_job(sessions[task], volume, Path(work))
            except Exception as error:  # an error in one case must not hide the others
                wrong = f"{type(error).__name__}: {error}"
        if wrong:
            failures.append(f"case {number}, task {task}, {volume.grid.describe()}, {kind}: {wrong}")
        memory.append(round(resident_mb(), 1))
    return {
        "cases": cases,
        "seed": seed,
        "folds": folds,
        "without_valid_mask": failures,
        "kinds": dict(kinds),
        "resident_mb": memory,
    }


def growth(memory: list[float]) -> float | None:
    """Return the growth of memory from the first to the last tenth of the cases after WARM_UP_CASES."""
    settled = memory[WARM_UP_CASES:]
    part = max(1, len(settled) // 10)
    if len(settled) < 2 * part:
        return None
    return float(np.median(settled[-part:]) / np.median(settled[:part])) - 1


def main() -> None:
    """Run the cases, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=1, help="number of folds of each model, at most 5")
    options = parser.parse_args()
    began = time.monotonic()
    result = soak(options.cases, options.seed, options.folds)
    grown = growth(result["resident_mb"])
    content = {"machine": machine(), **result, "growth": grown, "seconds": round(time.monotonic() - began)}
    write_text(RESULTS / "soak.json", json.dumps(content) + "\n")
    print("\n".join(result["without_valid_mask"]))
    memory = result["resident_mb"]
    print(
        "| cases | without a valid mask | resident MB: first, case 20, last, highest | growth after case 20 | seconds |"
    )
    print("|---|---|---|---|---|")
    shown = [memory[0], memory[min(WARM_UP_CASES, len(memory) - 1)], memory[-1], max(memory)]
    growth_text = "too few cases" if grown is None else f"{grown:+.1%}"
    figures = ", ".join(f"{mb:.0f}" for mb in shown)
    print(
        f"| {options.cases} | {len(result['without_valid_mask'])} | {figures} | {growth_text} | {content['seconds']} |"
    )
    sys.exit(1 if result["without_valid_mask"] or (grown or 0) > MAX_GROWTH else 0)


if __name__ == "__main__":
    main()
