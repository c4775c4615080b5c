"""Measures how time and memory of `pantherseg predict` grow with the number of voxels, folds and members."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.planned import RECIPE_HEAD
from bench.processes import run
from bench.side_by_side import CROP, image_on
from pantherseg.io import write_volume
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.volume import Grid, Volume

MEMBER = '[[members]]\nmodel = "task1"\nfolds = {folds}\nstep = {step}\n'
# Name, factor on the size along y and along x, number of folds, number of members.
STEPS = (
    ("1 fold", 1, 1, 1),
    ("3 folds", 1, 3, 1),
    ("5 folds", 1, 5, 1),
    ("2 members of 1 fold", 1, 1, 2),
    ("4 members of 1 fold", 1, 1, 4),
    ("4 times the voxels, 1 fold", 2, 1, 1),
    ("16 times the voxels, 1 fold", 4, 1, 1),
)


def measure(work: Path) -> dict[str, Any]:
    """Return the seconds and the peak memory of each step, with the demo model of Task 1."""
    work.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, factor, folds, members in STEPS:
        volume = image_on(CROP)
        larger = np.tile(volume.array, (1, factor, factor))
        image = work / "image.mha"
        write_volume(Volume(larger, Grid(larger.shape, volume.grid.spacing)), image)
        recipe = work / "recipe.toml"
        recipe.write_text(RECIPE_HEAD + MEMBER.format(folds=list(range(folds)), step=0.5) * members)
        command: list[str | Path] = [sys.executable, "-m", "pantherseg", "predict", image, work / "masks"]
        settings: list[str | Path] = ["--recipe", recipe, "--model", DEMO_WEIGHTS, "--device", "cpu"]
        measured = run([*command, *settings], log=work / "growth.log")
        results[name] = {"voxels": larger.size, **measured.as_dict()}
    return results


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per step."""
    lines = ["| `exact`, demo model of Task 1 | voxels | seconds | peak MB |", "|---|---|---|---|"]
    for name, result in results.items():
        lines.append(f"| {name} | {result['voxels'] / 1e6:.1f} M | {result['seconds']:.1f} | {result['peak_mb']:.0f} |")
    return "\n".join(lines)
