"""Compares our resampling with nnU-Net's, alternately in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from numpy.typing import NDArray

from pantherseg.preprocessing.resample import Resampling
from pantherseg.volume import Shape, Triple

REPEATS = 3


@dataclass(frozen=True)
class Case:
    """An array (channel, *shape) to be resampled from one spacing to another, both in mm (z, y, x)."""

    channels: int
    shape: Shape
    spacing: Triple
    new_spacing: Triple
    order: int
    dtype: type[np.floating[Any]]

    @property
    def new_shape(self) -> Shape:
        """The shape that covers the same extent."""
        z, y, x = (round(n * a / b) for n, a, b in zip(self.shape, self.spacing, self.new_spacing, strict=True))
        return z, y, x


CASES = {
    "T1 image to 1 mm, order 3": Case(1, (72, 268, 330), (3.0, 1.1875, 1.1875), (1.0, 1.0, 1.0), 3, np.float32),
    "T1 image of 5 mm slices to 1 mm, order 3": Case(
        1, (44, 268, 330), (5.0, 1.1875, 1.1875), (1.0, 1.0, 1.0), 3, np.float32
    ),
    "logits of 3 classes from 1 mm, order 1": Case(
        3, (216, 318, 392), (1.0, 1.0, 1.0), (3.0, 1.1875, 1.1875), 1, np.float16
    ),
}


def measure() -> dict[str, Any]:
    """Return the seconds and the differences for each case."""
    return {name: _measure_case(case) for name, case in CASES.items()}


def _measure_case(case: Case) -> dict[str, Any]:
    data = np.random.default_rng(0).normal(size=(case.channels, *case.shape)).astype(case.dtype)
    keywords: dict[str, Any] = {"is_seg": False, "order": case.order, "order_z": 0, "force_separate_z": None}
    grids = (case.shape, case.new_shape, case.spacing, case.new_spacing)
    resizer = Resampling.from_plans("resample_data_or_seg_to_shape", keywords).resizer(*grids)
    our_seconds, nnunet_seconds = [], []
    for _ in range(REPEATS):
        ours, seconds = _timed(lambda: resizer.resize(data))
        our_seconds.append(seconds)
        reference, seconds = _timed(lambda: resample_data_or_seg_to_shape(data.copy(), *grids[1:], **keywords))
        nnunet_seconds.append(seconds)
    return {
        "seconds": round(statistics.median(our_seconds), 3),
        "nnunet_seconds": round(statistics.median(nnunet_seconds), 3),
        "voxels": ours.size,
        "different": int((ours != reference).sum()),
        "largest_difference": float(np.abs(ours.astype(np.float64) - reference).max()),
    }


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per case."""
    lines = ["| resampling | nnU-Net | ours | ratio | different values |", "|---|---|---|---|---|"]
    for name, result in results.items():
        ratio = result["nnunet_seconds"] / result["seconds"]
        lines.append(
            f"| {name} | {result['nnunet_seconds']:.2f} s | {result['seconds']:.2f} s | {ratio:.1f}x "
            f"| {result['different']} of {result['voxels'] / 1e6:.0f} M |"
        )
    return "\n".join(lines)


def _timed(call: Callable[[], NDArray[Any]]) -> tuple[NDArray[Any], float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began
