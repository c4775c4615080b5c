"""STAPLE by patterns of marks against SimpleITK's filter: `python -m bench.staple`.

The marks are those of five raters about a tumour: balls that lie apart, far-off spots, and single voxels. Writes
bench/results/staple.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from bench.processes import machine
from pantherseg.files import write_text
from pantherseg.fusion.staple import posteriors
from pantherseg.volume import Shape

RESULTS = Path(__file__).parent / "results" / "staple.json"
# The median crop of Task 2 and the median volume of Task 1, (z, y, x).
SHAPES = {"crop of Task 2": (61, 108, 159), "volume of Task 1": (72, 258, 318)}
RATERS = 5


def marks_of(shape: Shape, raters: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return the marks of raters of different quality, (rater, z, y, x)."""
    rng = np.random.default_rng(seed)
    axes = np.indices(shape, dtype=np.float32)
    marks = []
    for quality in range(raters):
        centre = np.array(shape) / 2 + rng.normal(scale=1 + quality, size=3)
        distance = sum(((axis - c) * mm) ** 2 for axis, c, mm in zip(axes, centre, (3, 1, 1), strict=True))
        marked = np.asarray(distance < (9 + rng.normal()) ** 2)
        marked[2:5, 5 * quality : 5 * quality + 4, 3:9] |= bool(quality % 2)
        marks.append(marked ^ (rng.random(shape) < 1e-5))
    return np.stack(marks)


def measure() -> dict[str, Any]:
    """Return the seconds and the difference for each shape."""
    return {name: _measure(shape) for name, shape in SHAPES.items()}


def _measure(shape: Shape) -> dict[str, Any]:
    marks = marks_of(shape, RATERS)
    start = time.perf_counter()
    patterns = np.zeros(shape, np.uint16)
    for number, marked in enumerate(marks):
        patterns |= marked.astype(np.uint16) << number
    ours = posteriors(np.bincount(patterns.ravel(), minlength=2**RATERS))[patterns]
    middle = time.perf_counter()
    staple = sitk.STAPLEImageFilter()
    staple.SetForegroundValue(1)
    theirs = sitk.GetArrayFromImage(
        staple.Execute([sitk.GetImageFromArray(marked.astype(np.uint8)) for marked in marks])
    )
    end = time.perf_counter()
    return {
        "voxels": int(np.prod(shape)),
        "seconds": round(middle - start, 3),
        "simpleitk_seconds": round(end - middle, 3),
        "different_voxels": int(((ours >= 0.5) != (theirs >= 0.5)).sum()),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per shape."""
    lines = ["| five members, STAPLE at 0.5 | SimpleITK | pantherseg | voxels that differ |", "|---|---|---|---|"]
    for name, one in results.items():
        seconds = f"{one['simpleitk_seconds']:.2f} s | {one['seconds']:.2f} s"
        lines.append(f"| {name}, {one['voxels'] / 1e6:.1f} M voxels | {seconds} | {one['different_voxels']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = measure()
    write_text(RESULTS, json.dumps({"machine": machine(), "results": found}, indent=2) + "\n")
    print(table(found))
