"""A cohort on machines that are not here: a simulation whose costs are measured by `bench.cohort`.

Each worker asks the command for a case, reads the volume from the storage that all share, and segments it. The command
and the storage serve one after the other. Before its first case, each machine reads the models.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pantherseg.evaluation.tables import aligned

CASES = 10_000
MACHINES = (1, 10, 50, 100, 200, 500)
# What a file server gives all its clients together: a network of 1 Gb/s, and of 10 Gb/s.
STORAGE_MB_S = {"1 Gb/s": 120.0, "10 Gb/s": 1200.0}


@dataclass(frozen=True)
class Costs:
    """segment_s: of cases, which are repeated; worker_s: more a case, for checking and writing; command_s: in which the
    command does nothing else for a case; start_s: of a worker until its first case; volume_mb, models_mb: to be read.
    """

    segment_s: Sequence[float]
    worker_s: float
    command_s: float
    start_s: float
    volume_mb: float
    models_mb: float


@dataclass(frozen=True)
class Outcome:
    """hours: of all cases; storage, command, workers: the share of this time in which each is busy."""

    hours: float
    storage: float
    command: float
    workers: float


def simulate(costs: Costs, machines: int, storage_mb_s: float) -> Outcome:
    """Return how long CASES take on machines with a worker each."""
    reading, loading = costs.volume_mb / storage_mb_s, costs.models_mb / storage_mb_s
    storage = command = 0.0  # when each is free
    free: list[float] = []
    for _ in range(machines):
        storage += loading
        heapq.heappush(free, storage + costs.start_s)
    busy = {"storage": machines * loading, "command": 0.0, "workers": 0.0}
    for segment in itertools.islice(itertools.cycle(costs.segment_s), CASES):
        command = max(heapq.heappop(free), command) + costs.command_s
        storage = max(command, storage) + reading
        heapq.heappush(free, storage + segment + costs.worker_s)
        busy["command"] += costs.command_s
        busy["storage"] += reading
        busy["workers"] += segment
    end = max(free)
    return Outcome(
        hours=end / 3600,
        storage=busy["storage"] / end,
        command=busy["command"] / end,
        workers=busy["workers"] / end / machines,
    )


def simulation_table(costs: Costs) -> str:
    """Return the outcome for each number of machines and each storage."""
    rows = [["machines", "storage", "hours", "cases an hour", "storage busy", "command busy", "workers segment"]]
    for name, speed in STORAGE_MB_S.items():
        for machines in MACHINES:
            found = simulate(costs, machines, speed)
            shares = [f"{share:.1%}" for share in (found.storage, found.command, found.workers)]
            rows.append([str(machines), name, f"{found.hours:.2f}", f"{CASES / found.hours:.0f}", *shares])
    return aligned(rows)
