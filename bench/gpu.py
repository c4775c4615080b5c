"""Benchmark of inference on a GPU: `python -m bench.gpu` takes ten minutes on a machine with a GPU.

First the masks of the demo models are compared with those of nnUNetPredictor on the same GPU, then whole processes with
networks planned by nnU-Net. Measurements for which no time is left are skipped and listed. On a GPU, the results are
written to bench/results/gpu.json; `--device cpu --tiny` is a quick test without a GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import parity, planned
from bench.processes import Run, machine
from bench.side_by_side import CROP, FOLDS, Bench, Network
from pantherseg.files import write_text
from pantherseg.model_sources.nnunet import read_configuration
from pantherseg.volume import Grid

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SAMPLE_SECONDS = 0.05
REPEATS = 3
# How many characters of a failed run's output are kept.
LOG_END = 500
T1_IMAGE = Grid(planned.T1.shape, planned.T1.spacing)
# The most important first.
NETWORKS = {
    "residual L at 1 mm, T1": Network("ResEncL", planned.T1_1MM, T1_IMAGE),
    "plain, T1": Network("PlainConvUNet", planned.T1, T1_IMAGE),
    "residual L at 1 mm, T2": Network("ResEncL", planned.T2_1MM, CROP),
    "plain, T2": Network("PlainConvUNet", planned.T2, CROP),
}
TINY_DATA = planned.Data((16, 40, 48), (2.0, 1.0, 1.0))
TINY = {"tiny": Network("PlainConvUNet", TINY_DATA, Grid(TINY_DATA.shape, TINY_DATA.spacing), base_features=2)}
COMMAND = "nnUNetv2_predict --disable_tta"
PREDICTOR = "nnUNetPredictor"

logger = logging.getLogger(__name__)


@dataclass
class Clock:
    """The time limit of the benchmark. left_out: the measurements that were skipped."""

    seconds: float
    began: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def allows(self, label: str) -> bool:
        """Return whether there is time left for a measurement; otherwise add it to `left_out`."""
        if time.monotonic() - self.began < self.seconds:
            return True
        self.left_out.append(label)
        return False


@contextmanager
def device_peak() -> Iterator[list[float]]:
    """Measure by how many MB the used GPU memory grows, over all processes; the peak is the yielded list's element."""
    peak = [0.0]
    if not torch.cuda.is_available():
        yield peak
        return
    before, _ = torch.cuda.mem_get_info()
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(SAMPLE_SECONDS):
            free, _ = torch.cuda.mem_get_info()
            peak[0] = max(peak[0], (before - free) / (1 << 20))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        stopped.set()
        sampler.join()


def compare_masks(device: Any, clock: Clock, work: Path, *, tiny: bool) -> list[dict[str, Any]]:
    """Compare the masks of the demo models with nnU-Net's on the same device."""
    plain, mirrored = ({2: 1}, {}) if tiny else ({1: 3, 2: 5}, {2: 1})
    comparisons = [(task, cases, False) for task, cases in plain.items()]
    comparisons += [(task, cases, True) for task, cases in mirrored.items()]
    return [
        parity.measure(task, cases, work, mirroring=mirroring, device=device)
        for task, cases, mirroring in comparisons
        if clock.allows(f"masks of task {task}, mirroring {mirroring}")
    ]


def time_network(name: str, network: Network, device: str, clock: Clock, work: Path) -> dict[str, Any]:
    """Measure the time of whole processes with one network."""
    bench = Bench.prepare(network, work, device)
    folds = tuple(range(FOLDS))
    runs: dict[str, Callable[[], Run]] = {
        "exact": lambda: bench.ours("exact"),
        COMMAND: lambda: bench.command(*folds),
        "fast": lambda: bench.ours("fast"),
        PREDICTOR: lambda: bench.predictor(*folds, mirroring=False),
        "exact, mirroring": lambda: bench.ours("exact", mirroring=True),
        f"{PREDICTOR}, mirroring": lambda: bench.predictor(*folds, mirroring=True),
    }
    measured: dict[str, Any] = {}
    for label, run in runs.items():
        if clock.allows(f"{name}: {label}"):
            measured[label] = measured_run(run)
    if clock.allows(f"{name}: first tile"):
        measured["first_tile_s"] = min(bench.first_tile("exact") for _ in range(2))
    for label, mode, mirroring in (
        ("exact", "exact", False),
        ("fast", "fast", False),
        ("exact, mirroring", "exact", True),
    ):
        if "seconds" in measured.get(label, {}):
            report = bench.report(mode, mirroring=mirroring)
            measured[label] |= {"stages": report["seconds"], "events": report["events"]}
            if report["device"] != device:  # the fallback to another device must not count as a measurement
                measured[label] = {"failed": f"ran on {report['device']}", "events": report["events"]}
    shutil.rmtree(work)  # several GB
    return measured


def measured_run(run: Callable[[], Run]) -> dict[str, Any]:
    """Return the time and memory of a run, or the reason of its failure, so that the other results are not lost."""
    try:
        with device_peak() as peak:
            result = run()
    except RuntimeError as error:
        logger.warning("%s", error)
        return {"failed": str(error)[-LOG_END:]}
    return {**result.as_dict(), "device_peak_mb": round(peak[0])}


def time_candidates(network: Network, device: str, clock: Clock, work: Path) -> dict[str, dict[str, Any]]:
    """Time one patch's forward pass in each way that might serve as `fast`, and how far its logits are from `exact`."""
    folder = planned.make_folder(network.plans(work), work / "model", folds=1).path
    configuration = read_configuration(folder, "3d_fullres")
    image = torch.randn(1, 1, *configuration.patch, generator=torch.Generator().manual_seed(0)).to(device)
    candidates: dict[str, Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
        "exact": lambda module: module,
        "channels last": lambda module: module.to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
        "torch.compile": torch.compile,
    }
    if device == "cuda":
        candidates["float16 weights"] = lambda module: _in_half(module)
    results: dict[str, dict[str, Any]] = {}
    expected: torch.Tensor | None = None
    for name, prepare in candidates.items():
        if not clock.allows(f"fast by {name}"):
            continue
        torch.manual_seed(0)
        forward = prepare(configuration.network().to(device))
        began = time.monotonic()
        try:
            logits = _forward(forward, image)
        except Exception as error:  # for example, no compiler for torch.compile
            logger.warning("%s: %s", name, error)
            results[name] = {"failed": str(error)[:LOG_END]}
            continue
        first = time.monotonic() - began
        began = time.monotonic()
        for _ in range(REPEATS):
            logits = _forward(forward, image)
        seconds = (time.monotonic() - began) / REPEATS
        expected = logits if expected is None else expected
        difference = float((logits - expected).abs().max())
        results[name] = {"first_s": round(first, 3), "seconds": round(seconds, 4), "largest_difference": difference}
        logger.info("%s: %s", name, results[name])
    return results


def _in_half(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    half = module.half()
    return lambda image: half(image.half())


def _forward(network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cuda", enabled=image.is_cuda):
        return network(image).float().cpu()


def candidates_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with one row per candidate."""
    lines = [
        "| forward pass of one patch | first call, s | later calls, s | largest difference of a logit |",
        "|---|---|---|---|",
    ]
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"| {name} | failed: {result['failed'].splitlines()[0]} | | |")
            continue
        lines.append(
            f"| {name} | {result['first_s']:.2f} | {result['seconds']:.4f} | {result['largest_difference']:.4f} |"
        )
    return "\n".join(lines)


def masks_table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per demo model and mode."""
    lines = ["| demo model | mode | cases | voxels | differ | lowest tumour Dice |", "|---|---|---|---|---|---|"]
    for result in results:
        cases = list(result["by_case"].values())
        for mode in parity.MODES:
            differ, lowest = (sum(c["different"][mode] for c in cases), min(c["tumour_dice"][mode] for c in cases))
            name = f"Task {result['task']}{', mirroring, one fold' if result['mirroring'] else ''}"
            voxels = sum(case["voxels"] for case in cases) / 1e6
            lines.append(f"| {name} | `{mode}` | {len(cases)} | {voxels:.1f} M | {differ} | {lowest:.5f} |")
    return "\n".join(lines)


def times_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with one row per run. A ratio above 1 means that ours is faster."""
    pairs = {
        "exact": (COMMAND, PREDICTOR),
        "fast": (COMMAND, PREDICTOR),
        "exact, mirroring": (f"{PREDICTOR}, mirroring",),
    }
    lines = [
        f"{FOLDS} folds, without mirroring unless stated otherwise.",
        "| network | run | seconds | host MB | device MB | speed-up over |",
        "|---|---|---|---|---|---|",
    ]
    for name, measured in results.items():
        for label, run in ((label, run) for label, run in measured.items() if isinstance(run, dict)):
            if "failed" in run:
                lines.append(f"| {name} | {label} | failed: {run['failed'].splitlines()[-1]} | | | |")
                continue
            against = [other for other in pairs.get(label, ()) if "seconds" in measured.get(other, {})]
            ratios = ", ".join(f"{other}: {measured[other]['seconds'] / run['seconds']:.1f}" for other in against)
            figures = f"{run['seconds']:.1f} | {run['peak_mb']:.0f} | {run['device_peak_mb']}"
            lines.append(f"| {name} | {label} | {figures} | {ratios} |")
        for mode in ("exact", "fast"):
            stages = measured.get(mode, {}).get("stages", {})
            lines.append(f"| {name} | {mode}: {', '.join(f'{k} {v:.1f} s' for k, v in stages.items())} | | | | |")
        if "first_tile_s" in measured:
            lines.append(f"| {name} | start to the first tile | {measured['first_tile_s']:.1f} | | | |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="start no measurement after this time (default %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="one small network, one case")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            1, "error: device: expected a CUDA device, found none; use `--device cpu --tiny` for a quick test\n"
        )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bench").setLevel(logging.INFO)
    about = machine() | {"gpu": torch.cuda.get_device_name() if options.device == "cuda" else None}
    print(json.dumps(about))
    clock = Clock(options.minutes * 60)
    results: dict[str, Any] = {"machine": about, "masks": [], "times": {}, "candidates": {}, "left_out": clock.left_out}
    networks = TINY if options.tiny else NETWORKS
    with tempfile.TemporaryDirectory(prefix="pantherseg-bench-") as folder:
        work = Path(folder)
        for part in measure(networks, options.device, clock, work, results, tiny=options.tiny):
            print(f"\n{part}", flush=True)
            if options.device == "cuda":  # after each part, in case the next one fails
                write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    if clock.left_out:
        print(f"\nleft out after {options.minutes:g} minutes: {'; '.join(clock.left_out)}")


def measure(
    networks: dict[str, Network], device: Any, clock: Clock, work: Path, results: dict[str, Any], *, tiny: bool
) -> Iterator[str]:
    """Add to the results, and yield each table as soon as it is complete."""
    results["masks"] = compare_masks(device, clock, work, tiny=tiny)
    yield masks_table(results["masks"])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the memory that this process caches would be missing in the next ones
    for name, network in networks.items():
        if clock.allows(name):
            results["times"][name] = time_network(name, network, device, clock, work / name.replace(" ", "-"))
            yield times_table({name: results["times"][name]})
    if clock.allows("candidates for fast"):
        results["candidates"] = time_candidates(next(iter(networks.values())), device, clock, work / "candidates")
        yield candidates_table(results["candidates"])


if __name__ == "__main__":
    main()
