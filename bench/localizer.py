"""MRSegmentator by our engine and by its own package: `python -m bench.localizer [--work DIR] [--repeats N]`.

Both find the pancreas in the same files with the same weights, as whole processes and in turn: `bench.locate`, which
reads the image, runs a recipe's localizer, packed before, and writes its mask, and the command `mrsegmentator`. Prints
a table and writes bench/results/localizer.json. Takes about twenty minutes on two cores.

The small network is a trained one, and its voxels are compared. The large one is planned by nnU-Net for volumes like
those of Task 2 and untrained, which does not change its speed; comparing its voxels would mean nothing. It takes
minutes for the package, so it is compared with that way of the package alone which was the fastest with the small
network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import planned
from bench.processes import Run, machine, run
from bench.small_mrsegmentator import LABELS, PANCREAS, make_weights, write_version
from pantherseg.files import write_text
from pantherseg.io import read_labels, write_volume
from pantherseg.labels import tumour_of
from pantherseg.localize import copy_to_search
from pantherseg.orientation import Orientation
from pantherseg.packing.pack import pack
from pantherseg.paths import task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "localizer.json"
SEED = 9200
FOLDS = 5
NAME = "scan.mha"
RECIPE = (
    planned.RECIPE_HEAD
    + """\
[[members]]
model = "none"
[localizer]
model = "localizer"
label = {label}
margin_mm = 30.0
{settings}
"""
)
# What the package does by default, and with --fast.
DEFAULT_SETTINGS = f"folds = {list(range(FOLDS))}\nstep = 0.5\nmirroring = true"
FAST_SETTINGS = "folds = [0]\nstep = 0.8\nmirroring = false"
# The package's own ways to be fast: fold 0, no mirroring, a step of 0.8, each with other worker processes. The last
# cuts the volume in two, which changes the mask, but needs no worker processes.
FAST: dict[str, list[str]] = {
    "--fast": [],
    "--fast, one worker": ["--nproc", "1", "--nproc_export", "1"],
    "--fast, split": ["--split_level", "1"],
}


@dataclass(frozen=True)
class Bench:
    """Weights for both, and a folder for all other files."""

    work: Path
    weights: Path

    @classmethod
    def prepare(cls, work: Path, make: Callable[[Path], Any]) -> Bench:
        """Make the weights as the package keeps them, <root>/base, and pack them for us."""
        weights, packed = work / "root" / "base", work / "models" / "localizer"
        if not packed.is_dir():
            pack(make(weights), packed)
        return cls(work, weights)

    def ours(self, image: Path, name: str, settings: str, mode: str) -> Run:
        """Run our process with settings of the recipe's localizer."""
        recipe = self.work / f"{name}.toml"
        recipe.write_text(RECIPE.format(label=PANCREAS, settings=settings))
        command = ["-m", "bench.locate", recipe, self.work / "models", image, self.folder(image, name) / NAME]
        return self._run(name, [sys.executable, *command, "--mode", mode])

    def package(self, image: Path, name: str, *arguments: str) -> Run:
        """Run the package's command on a CPU."""
        command = Path(sys.executable).parent / "mrsegmentator"
        given = ["-i", image, "-o", self.folder(image, name), "--cpu_only", "--no_tqdm", "--batchsize", "1"]
        return self._run(name, [command, *given, *arguments])

    def folder(self, image: Path, name: str) -> Path:
        """Return the folder of a run's mask."""
        return self.work / f"{image.parent.name}-{name}"

    def mask(self, image: Path, name: str) -> NDArray[np.bool_]:
        """Return where a run found the pancreas: ours writes that alone, the package all its structures."""
        ours = self.folder(image, name) / NAME
        if ours.is_file():
            return tumour_of(read_labels(ours).array)
        mask: NDArray[np.bool_] = read_labels(self.folder(image, name) / "scan_seg.mha").array == PANCREAS
        return mask

    def _run(self, name: str, command: list[Any]) -> Run:
        environment = {"MRSEG_WEIGHTS_PATH": str(self.weights.parent)}
        measured = run(command, log=self.work / f"{name.replace(' ', '-')}.log", environment=environment)
        logger.info("%-24s %7.1f s %7.0f MB", name, measured.seconds, measured.peak_mb)
        return measured


def volumes(work: Path, orientation: Orientation) -> dict[str, Path]:
    """Write an unseen full-size phantom in an orientation, and the copy that the recipe of Task 2 searches."""
    phantom = make_phantom(SEED, task=2).image
    whole = Volume(phantom.array.astype(np.float32), phantom.grid).turned_to(orientation)
    settings = load_recipe(task_recipe(2)).localizer
    assert settings is not None
    images = {"own spacing": work / "own" / NAME, "3x3x6 mm": work / "coarse" / NAME}
    write_volume(whole, images["own spacing"])
    write_volume(copy_to_search(whole, settings), images["3x3x6 mm"])
    return images


def measure(bench: Bench, image: Path, ways: dict[str, list[str]], *, repeats: int, compare: bool) -> dict[str, Any]:
    """Return seconds and memory of our fast settings and the package's ways on one volume. compare: the masks, too."""
    runs: dict[str, Callable[[], Run]] = {
        "ours, exact": lambda: bench.ours(image, "exact", FAST_SETTINGS, "exact"),
        "ours, fast": lambda: bench.ours(image, "fast", FAST_SETTINGS, "fast"),
        **{name: partial(bench.package, image, name, "--fast", *more) for name, more in ways.items()},
    }
    result = _measured(runs, repeats)
    if compare:
        result |= _compared(bench.mask(image, "exact"), bench.mask(image, "--fast"))
        fast, exact = bench.mask(image, "fast"), bench.mask(image, "exact")
        result["dice_fast"] = round(float(2 * (fast & exact).sum() / (fast.sum() + exact.sum())), 5)
    return result


def measure_default(bench: Bench, image: Path) -> dict[str, Any]:
    """Return seconds and memory of all folds with mirroring, as the package runs by default, and compare the masks."""
    runs: dict[str, Callable[[], Run]] = {
        "ours, exact": lambda: bench.ours(image, "all", DEFAULT_SETTINGS, "exact"),
        "default": lambda: bench.package(image, "default"),
    }
    return _measured(runs, 1) | _compared(bench.mask(image, "all"), bench.mask(image, "default"))


def _compared(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, int]:
    return {"pancreas_voxels": int(theirs.sum()), "differ_exact": int((ours != theirs).sum())}


def _measured(runs: dict[str, Callable[[], Run]], repeats: int) -> dict[str, Any]:
    measured: dict[str, list[Run]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, start in runs.items():
            measured[name].append(start())
    return {
        "seconds": {name: round(statistics.median(r.seconds for r in all_), 2) for name, all_ in measured.items()},
        "peak_mb": {name: round(max(r.peak_mb for r in all_)) for name, all_ in measured.items()},
    }


def table(results: dict[str, Any]) -> str:
    """Return the figures as a Markdown table: the package's fastest way against ours."""
    lines = [
        "| network | volume | setting | package, s | `exact`, s | | `fast`, s | | voxels that differ in `exact` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        seconds = dict(row["seconds"])
        exact, fast = seconds.pop("ours, exact"), seconds.pop("ours, fast", None)
        name, theirs = min(seconds.items(), key=lambda item: item[1])
        differ = f"{row['differ_exact']} of {row['pancreas_voxels']}" if "differ_exact" in row else "untrained"
        quick = "| " if fast is None else f"{fast:.1f} | {theirs / fast:.1f}x"
        lines.append(
            f"| {row['network']} | {row['volume']} | `{name}` | {theirs:.1f} | {exact:.1f} | {theirs / exact:.1f}x "
            f"| {quick} | {differ} |"
        )
    return "\n".join(lines)


def _large(folder: Path) -> Any:
    plans = planned.make_plans("PlainConvUNet", planned.T2, folder.parents[1] / "plans")
    model = planned.make_folder(plans, folder, folds=1, labels=LABELS)
    write_version(folder)
    return model


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="folder for all files; weights of an earlier run that are there are used"
    )
    parser.add_argument("--repeats", type=int, default=2, help="how often each process runs; the median counts")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        images = volumes(work, "RAS")
        small = Bench.prepare(work / "small", lambda folder: make_weights(folder, folds=FOLDS))
        large = Bench.prepare(work / "large", _large)
        rows: list[dict[str, Any]] = []
        for volume, image in images.items():
            rows.append({"network": "small, trained", "volume": volume, "setting": "fast"})
            rows[-1] |= measure(small, image, FAST, repeats=options.repeats, compare=True)
        rows.append({"network": "nnU-Net's plan, untrained", "volume": "3x3x6 mm", "setting": "fast"})
        best = min(FAST, key=lambda name: rows[1]["seconds"][name])
        rows[-1] |= measure(large, images["3x3x6 mm"], {best: FAST[best]}, repeats=options.repeats, compare=False)
        rows.append({"network": "small, trained", "volume": "3x3x6 mm", "setting": "five folds, mirroring"})
        rows[-1] |= measure_default(small, images["3x3x6 mm"])
        load = [round(value, 1) for value in os.getloadavg()]
    results = {"machine": machine(), "load_average": load, "repeats": options.repeats, "rows": rows}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
