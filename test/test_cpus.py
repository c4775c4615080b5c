"""The number of CPUs is limited by the affinity of the process and by the CPU time of its container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pantherseg.machine import cpus
from pantherseg.machine.cpus import usable_cpus


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No control group sets a limit, and the process may run on eight CPUs."""
    for name in ("QUOTA", "OLD_QUOTA", "OLD_PERIOD"):
        monkeypatch.setattr(cpus, name, tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("400000 50000\n", 8),
        ("150000 50000\n", 3),
        ("max", 8),
        ("", 8),
        ("nonsense\n", 8),
        ("1 0\n", 8),
    ],
)
def test_rounds_up_the_limit_of_cgroup_version_2(tmp_path: Path, line: str, expected: int) -> None:
    (tmp_path / "QUOTA").write_text(line)
    assert usable_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 8), ("200000\n", 2), ("10000\n", 1), ("150000\n", 2)])
def test_rounds_up_the_limit_of_cgroup_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "OLD_QUOTA").write_text(quota)
    assert usable_cpus() == 8, "a quota without a period is ignored"
    (tmp_path / "OLD_PERIOD").write_text("100000\n")
    assert usable_cpus() == expected


def test_prefers_cgroup_version_2(tmp_path: Path) -> None:
    (tmp_path / "OLD_QUOTA").write_text("100000\n")
    (tmp_path / "OLD_PERIOD").write_text("100000\n")
    (tmp_path / "QUOTA").write_text("300000 100000\n")
    assert usable_cpus() == 3


def test_uses_the_affinity_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert usable_cpus() == 1


def test_never_exceeds_the_affinity_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (tmp_path / "QUOTA").write_text("200000 100000\n")
    assert usable_cpus() == 1
