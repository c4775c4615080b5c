"""Compares the time and memory of our process and nnU-Net's on a crop of Task 2, with nnU-Net's planned networks."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import planned
from bench.processes import Run
from bench.side_by_side import FOLDS, Bench, Network

NETWORKS = {
    "plain": Network("PlainConvUNet", planned.T2),
    "residual_l_1mm": Network("ResEncL", planned.T2_1MM),
}


def measure(network: str, work: Path, *, repeats: int, slow: bool) -> dict[str, Any]:
    """Return the seconds and the peak memory of one network. The runs to compare alternate.

    slow: also compare with five processes, and with mirroring.
    """
    bench = Bench.prepare(NETWORKS[network], work)
    runs: dict[str, Callable[[], Run]] = {
        "exact": lambda: bench.ours("exact"),
        "fast": lambda: bench.ours("fast"),
        "nnUNetv2_predict --disable_tta": lambda: bench.command(*range(FOLDS)),
    }
    measured = {name: [run()] for name, run in runs.items()}
    for _ in range(repeats - 1):
        for name, run in runs.items():
            measured[name].append(run())
    if slow:  # only once, because each takes minutes
        measured |= {
            "five processes, label voting": [bench.five_processes()],
            "exact, mirroring, one fold": [bench.ours("exact", folds=1, mirroring=True)],
            "nnUNetPredictor, mirroring, one fold": [bench.predictor(0, mirroring=True)],
        }
    bench.first_tile("exact")  # so that the files are cached
    result = {
        "seconds": {
            name: round(statistics.median(r.seconds for r in repeated), 2) for name, repeated in measured.items()
        },
        "peak_mb": {name: round(max(r.peak_mb for r in repeated)) for name, repeated in measured.items()},
        "all": {name: [r.as_dict() for r in repeated] for name, repeated in measured.items()},
        "first_tile_s": round(min(bench.first_tile("exact") for _ in range(3)), 3),
    }
    shutil.rmtree(work)  # several GB
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    lines = ["| network | | ratio | seconds |", "|---|---|---|---|"]
    for network, result in results.items():
        seconds, peak = result["seconds"], result["peak_mb"]
        reference = "nnUNetv2_predict --disable_tta"
        pairs = [("exact", reference), ("fast", reference)]
        pairs += [("exact", "five processes, label voting")]
        pairs += [("exact, mirroring, one fold", "nnUNetPredictor, mirroring, one fold")]
        for mine, theirs in pairs:
            if theirs in seconds:
                ratio = seconds[theirs] / seconds[mine]
                lines.append(
                    f"| {network} | `{mine}` against {theirs} | {ratio:.1f}x faster "
                    f"| {seconds[mine]:.1f} against {seconds[theirs]:.1f} |"
                )
        for mode in ("exact", "fast"):
            share = peak[mode] / peak[reference]
            lines.append(
                f"| {network} | peak memory, `{mode}` | {share:.2f} | {peak[mode]} against {peak[reference]} MB |"
            )
        lines.append(f"| {network} | start to the first tile | | {result['first_tile_s']} |")
    return "\n".join(lines)
