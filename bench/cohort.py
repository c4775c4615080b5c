"""Cohorts: `python -m bench.cohort [--cases 20] [--many 1000] [--work DIR] [--simulate]`.

Runs `pantherseg cohort run` in one process and on Ray on this machine, on phantoms of full size with one fold of the
demo model of Task 1, whose cases take seconds, and on many small ones with the demo's localizer, whose cases are short,
and takes the figures from the tables of the cohorts. Prints the tables of docs/cohort.md: what a case costs beside
`segment`, cases an hour with one and two cores, memory over many cases, and a simulation of 10,000 volumes on other
machines, for these figures and for those of a network of nnU-Net's own size in bench/results/speed.json. Writes
bench/results/cohort.json. --simulate: from that file, without running anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.cohort_simulation import Costs, simulation_table
from bench.planned import RECIPE_HEAD
from bench.processes import machine, run
from bench.soak import growth
from pantherseg.cohort.table import WRITING_SHARE, ResultsTable, Row, read_rows
from pantherseg.evaluation.tables import aligned
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.phantom import make_phantom

RESULTS = Path(__file__).parent / "results"
TASK = 1
FIRST_SEED = 9700
# Phantoms are made once; a cohort is links to them.
PHANTOMS = 4
ROWS = 10_000
# Of the network of nnU-Net's own size in bench/results.
FOLDS = 5
# Options of `cohort run`, and the number of workers.
WAYS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one process": (1, ()),
    "Ray, 1 worker of 1 core": (1, ("--address", "local", "--workers", "1", "--cpus", "1")),
    "Ray, 2 workers of 1 core": (2, ("--address", "local", "--workers", "2", "--cpus", "1")),
    "Ray, 1 worker of 2 cores": (1, ("--address", "local", "--workers", "1", "--cpus", "2")),
}
MANY = ("one process", "Ray, 2 workers of 1 core")
# Cases of seconds show what is added to them, and the shortest ones the memory of many.
SECONDS = RECIPE_HEAD + '[[members]]\nmodel = "task1"\nfolds = [0]\n'
SHORT = RECIPE_HEAD + '[[members]]\nmodel = "localizer"\ntumour_label = 7\nstep = 1.0\n'


def make_cohort(work: Path, size: Any, cases: int) -> Path:
    """Return a folder of links to phantoms."""
    folder = work / f"{size}-{cases}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        phantom = work.resolve() / "phantoms" / f"{size}{number % PHANTOMS}.mha"
        if not phantom.exists():
            write_volume(make_phantom(FIRST_SEED + number, task=TASK, size=size).image, phantom)
        link = folder / f"case{number:05d}.mha"
        if not link.exists():
            link.symlink_to(phantom)
    return folder


def measure(work: Path, way: str, folder: Path, recipe: str) -> dict[str, Any]:
    """Run a cohort anew and return its figures, in seconds and MB.

    segment_s: of the stages of a case; worker_s: more than that, for reading, checking and writing; between_s: from the
    end of a case to the beginning of the next of the same worker; all of them means, without the first case of each
    worker. start_s: until the first case begins.
    """
    workers, options = WAYS[way]
    output = Path(tempfile.mkdtemp(dir=work))
    file = output / "recipe.toml"
    file.write_text(recipe)
    command: list[str | Path] = [sys.executable, "-m", "pantherseg", "cohort", "run", folder, output]
    began = datetime.now(UTC)
    done = run([*command, "--recipe", file, "--model", DEMO_WEIGHTS, *options], log=output / "log.txt")
    rows = sorted(read_rows(str(output)).values(), key=lambda row: row.finished)
    later = rows[workers:]
    segment, worker = (statistics.fmean(values) for values in ([s(row) for row in later] for s in (_stages, _whole)))
    whole = (rows[-1].finished - rows[workers - 1].finished).total_seconds() / len(later) * workers
    peaks = [row.peak_memory_mb or 0 for row in rows]
    return {
        "cases": len(rows),
        "segment_s": segment,
        "worker_s": worker - segment,
        "between_s": whole - worker,
        "start_s": (rows[0].finished - began).total_seconds() - _whole(rows[0]),
        "cases_an_hour": 3600 / whole * workers,
        "command_mb": done.peak_mb,
        "peak_mb": peaks,
        "growth": growth([float(peak) for peak in peaks]),
    }


def _stages(row: Row) -> float:
    return row.seconds or 0.0


def _whole(row: Row) -> float:
    return row.total_seconds or 0.0


def table_seconds(work: Path) -> float:
    """Return how long it takes to write a table of ROWS rows."""
    row = next(iter(read_rows(str(max(work.glob("tmp*/results.parquet")).parent)).values()))
    table = ResultsTable(str(work))
    table.rows = {str(number): msgspec.structs.replace(row, case=str(number)) for number in range(ROWS)}
    began = time.monotonic()
    table.add(row)
    return time.monotonic() - began


def overhead_table(full: dict[str, Any]) -> str:
    """Return what a case costs beside `segment` and beside `predict`, and how many are done in an hour."""
    heading = ["", "segment, s", "read, check, write, s", "between cases, s"]
    rows = [[*heading, "beside segment", "beside predict", "cases an hour", "start, s"]]
    for way, found in full.items():
        predict = found["segment_s"] + found["worker_s"]
        added = (predict + found["between_s"]) / found["segment_s"] - 1, found["between_s"] / predict
        seconds = [f"{found['segment_s']:.2f}", f"{found['worker_s']:.3f}", f"{found['between_s']:.3f}"]
        shares = [f"{share:+.1%}" for share in added]
        rows.append([way, *seconds, *shares, f"{found['cases_an_hour']:.0f}", f"{found['start_s']:.1f}"])
    return aligned(rows)


def memory_table(small: dict[str, Any]) -> str:
    """Return the memory of workers over many cases."""
    rows = [["", "cases", "peak MB of a case: first, last, highest", "growth", "command, MB"]]
    for way, found in small.items():
        peaks = found["peak_mb"]
        grown = "too few cases" if found["growth"] is None else f"{found['growth']:+.1%}"
        figures = f"{peaks[0]}, {peaks[-1]}, {max(peaks)}"
        rows.append([way, str(found["cases"]), figures, grown, f"{found['command_mb']:.0f}"])
    return aligned(rows)


def costs(result: dict[str, Any], segment_s: float, models_mb: float) -> Costs:
    """Return the costs of such cases; the command's are those between the cases of a worker on Ray, at most.

    The table of many cases takes longer to write than that of these few, up to WRITING_SHARE of the command's time.
    """
    found = result["full"]["Ray, 1 worker of 2 cores"]
    return Costs(
        segment_s=[segment_s],
        worker_s=found["worker_s"],
        command_s=max(found["between_s"], 0.0) / (1 - WRITING_SHARE),
        start_s=found["start_s"],
        volume_mb=result["volume_mb"],
        models_mb=models_mb,
    )


def print_tables(result: dict[str, Any]) -> None:
    """Print the tables of docs/cohort.md."""
    print("What a case costs, and cores:\n" + overhead_table(result["full"]))
    print("\nMemory over many cases:\n" + memory_table(result["small"]))
    print(f"\n{ROWS} rows are written in {result['table_s']:.2f} s")
    full = result["full"]["Ray, 1 worker of 2 cores"]
    print(f"\nSimulated, {full['segment_s']:.1f} s a case, as here:")
    print(simulation_table(costs(result, full["segment_s"], result["models_mb"])))
    seconds = _of_bench("speed")["plain"]["seconds"]["exact"]
    models_mb = FOLDS * _of_bench("sizes")["plain"]["bundle"] / 1e6
    print(f"\nSimulated, a network of nnU-Net's own size, {FOLDS} folds, {seconds:.1f} s a case:")
    print(simulation_table(costs(result, seconds, models_mb)))


def _of_bench(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def measure_all(work: Path, cases: int, many: int) -> dict[str, Any]:
    """Run everything and return the figures."""
    load = [round(value, 1) for value in os.getloadavg()]
    full, small = make_cohort(work, "full", cases), make_cohort(work, "small", many)
    return {
        "machine": machine(),
        "load_average": load,
        "full": {way: measure(work, way, full, SECONDS) for way in WAYS},
        "small": {way: measure(work, way, small, SHORT) for way in MANY},
        "table_s": table_seconds(work),
        "volume_mb": statistics.fmean(path.stat().st_size for path in (work / "phantoms").glob("full*")) / 1e6,
        "models_mb": (DEMO_WEIGHTS / "task1" / "fold_0.safetensors").stat().st_size / 1e6,
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20, help="phantoms of full size")
    parser.add_argument("--many", type=int, default=1000, help="small phantoms")
    parser.add_argument("--work", type=Path, help="keep the phantoms and the results in this folder")
    parser.add_argument("--simulate", action="store_true", help="print the tables again, without running anything")
    options = parser.parse_args()
    if not options.simulate:
        with contextlib.ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="pantherseg-cohort-")
            work = options.work or Path(stack.enter_context(temporary))
            result = measure_all(work, options.cases, options.many)
        write_text(RESULTS / "cohort.json", json.dumps(result) + "\n")
    print_tables(json.loads((RESULTS / "cohort.json").read_text()))


if __name__ == "__main__":
    main()
