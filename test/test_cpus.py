"""The number of CPUs is limited by the affinity of the process and by the CPU time of its container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pantherseg.machine import cpus
from pantherseg.machine.cpus import limit_cpus, usable_cpus


@pytest.mark.parametrize(
    ("affinity", "files", "expected"),
    [
        (8, {}, 8),
        (1, {}, 1),
        *((8, {"QUOTA": line}, 8) for line in ("max 100000\n", "1600000 100000\n", "400000 50000\n")),
        *((8, {"QUOTA": line}, 8) for line in ("max", "", "nonsense\n", "1 0\n")),
        (8, {"QUOTA": "200000 100000\n"}, 2),
        (8, {"QUOTA": "250000 100000\n"}, 3),
        (8, {"QUOTA": "150000 50000\n"}, 3),
        (8, {"QUOTA": "1000 100000\n"}, 1),
        (1, {"QUOTA": "200000 100000\n"}, 1),
        (8, {"OLD_QUOTA": "200000\n"}, 8),
        (8, {"OLD_QUOTA": "-1\n", "OLD_PERIOD": "100000\n"}, 8),
        (8, {"OLD_QUOTA": "200000\n", "OLD_PERIOD": "100000\n"}, 2),
        (8, {"OLD_QUOTA": "150000\n", "OLD_PERIOD": "100000\n"}, 2),
        (8, {"OLD_QUOTA": "10000\n", "OLD_PERIOD": "100000\n"}, 1),
        (8, {"OLD_QUOTA": "100000\n", "OLD_PERIOD": "100000\n", "QUOTA": "300000 100000\n"}, 3),
    ],
)
def test_rounds_up_the_lowest_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, files: dict[str, str], expected: int
) -> None:
    """QUOTA is the file of version 2 of control groups, the others are those of version 1."""
    for name in ("QUOTA", "OLD_QUOTA", "OLD_PERIOD"):
        monkeypatch.setattr(cpus, name, tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert usable_cpus() == expected


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (9, 4), (0, 4)])
def test_a_worker_leaves_cpus_to_others(monkeypatch: pytest.MonkeyPatch, limit: int, expected: int) -> None:
    monkeypatch.setattr(cpus, "_limit", 0)  # and what it was, after the test
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    limit_cpus(limit)
    assert usable_cpus() == expected
