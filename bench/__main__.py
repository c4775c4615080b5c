"""Benchmarks of the inference engine: `python -m bench [--full] [PART ...]`.

Parts: parity, speed, rates, sizes, resampling, growth, memory (default all). Without --full, they take ten minutes on
two cores: fewer phantoms, one network, no repetitions. Each part prints a table; with --full it also writes
bench/results/<part>.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import growth, memory, parity, planned, rates, resampling, speed
from bench.processes import machine
from pantherseg.files import write_text
from pantherseg.packing.pack import pack

RESULTS = Path(__file__).parent / "results"
CASES, SHORT_CASES = {1: 20, 2: 20}, {2: 1}
MIRRORED_CASES = 1
# How often each network is measured.
REPEATS, SHORT_REPEATS = {"plain": 2, "residual_l_1mm": 1}, {"plain": 1}


def measure_parity(work: Path, *, full: bool) -> tuple[Any, str]:
    """Compare masks on phantoms."""
    results = [parity.measure(task, n, work) for task, n in (CASES if full else SHORT_CASES).items()]
    results.append(parity.measure(2, MIRRORED_CASES, work, mirroring=True))
    return results, parity.table(results)


def measure_speed(work: Path, *, full: bool) -> tuple[Any, str]:
    """Measure the time of whole processes."""
    networks = REPEATS if full else SHORT_REPEATS
    slow = {"plain"} if full else set()
    results = {name: speed.measure(name, work / name, repeats=n, slow=name in slow) for name, n in networks.items()}
    return results, speed.table(results)


def measure_rates(work: Path, *, full: bool) -> tuple[Any, str]:
    """Compare the speed of a forward pass with the fastest convolutions of the machine."""
    network = speed.NETWORKS["plain"]
    folder = planned.make_folder(network.plans(work), work / "model", folds=1)
    results = rates.measure(pack(folder, work / "bundle").path)
    return results, rates.table(results)


def measure_sizes(work: Path, *, full: bool) -> tuple[Any, str]:
    """Compare the size of a fold's checkpoint, with the state of the optimizer, with that of its bundle."""
    results, lines = {}, ["| network | checkpoint | bundle | ratio |", "|---|---|---|---|"]
    for name, network in speed.NETWORKS.items():
        folder = planned.make_folder(network.plans(work / name), work / name / "model", folds=1)
        packed = sum(path.stat().st_size for path in pack(folder, work / name / "bundle").path.iterdir())
        checkpoint = folder.checkpoint_path("0").stat().st_size
        results[name] = {"checkpoint": checkpoint, "bundle": packed}
        lines.append(f"| {name} | {checkpoint / 1e6:.0f} MB | {packed / 1e6:.0f} MB | {packed / checkpoint:.2f} |")
    return results, "\n".join(lines)


def measure_resampling(work: Path, *, full: bool) -> tuple[Any, str]:
    """Measure the time of resampling."""
    results = resampling.measure()
    return results, resampling.table(results)


def measure_growth(work: Path, *, full: bool) -> tuple[Any, str]:
    """Measure how time and memory grow."""
    results = growth.measure(work)
    return results, growth.table(results)


def measure_memory(work: Path, *, full: bool) -> tuple[Any, str]:
    """Compare the memory that networks use with the estimate."""
    results = memory.measure(work, full=full)
    return results, memory.table(results)


PARTS: dict[str, Callable[..., tuple[Any, str]]] = {
    "parity": measure_parity,
    "speed": measure_speed,
    "rates": measure_rates,
    "sizes": measure_sizes,
    "resampling": measure_resampling,
    "growth": measure_growth,
    "memory": measure_memory,
}


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="all cases, networks and repetitions; write the results")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bench").setLevel(logging.INFO)
    about = machine()
    print(json.dumps(about))
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="pantherseg-bench-") as work:
            results, table = PARTS[name](Path(work) / name, full=options.full)
        print(f"\n{table}", flush=True)
        if options.full:
            content = {"machine": about, "results": results}
            write_text(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
