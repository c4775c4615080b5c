"""How many CPUs are used: no more than the process may run on, nor than a container's share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pantherseg.machine import cpus
from pantherseg.machine.cpus import usable_cpus


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cgroup says anything, and the process may run on eight CPUs."""
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
def test_a_containers_share(tmp_path: Path, line: str, expected: int) -> None:
    (tmp_path / "QUOTA").write_text(line)
    assert usable_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 8), ("200000\n", 2), ("10000\n", 1), ("150000\n", 2)])
def test_a_containers_share_in_cgroup_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "OLD_QUOTA").write_text(quota)
    assert usable_cpus() == 8, "a quota without its period says nothing"
    (tmp_path / "OLD_PERIOD").write_text("100000\n")
    assert usable_cpus() == expected


def test_version_2_counts_where_both_are_there(tmp_path: Path) -> None:
    (tmp_path / "OLD_QUOTA").write_text("100000\n")
    (tmp_path / "OLD_PERIOD").write_text("100000\n")
    (tmp_path / "QUOTA").write_text("300000 100000\n")
    assert usable_cpus() == 3


def test_outside_of_a_container_the_processs_own_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert usable_cpus() == 1


def test_a_machine_with_one_cpu_and_a_larger_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (tmp_path / "QUOTA").write_text("200000 100000\n")
    assert usable_cpus() == 1
