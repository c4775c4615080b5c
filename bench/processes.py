"""Whole processes, timed from start to exit, with the memory of the largest one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A process's peak begins with that of the process that started it, so a small one stands between.
LAUNCHER = """
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss / 1024], file)
"""


@dataclass(frozen=True)
class Run:
    """seconds: from start to exit; peak_mb: resident memory of the largest process among it and its children."""

    seconds: float
    peak_mb: float

    def as_dict(self) -> dict[str, float]:
        """Return the run for a JSON file."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def run(command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command; what it prints goes to a file. Raises RuntimeError with the file's end where it fails."""
    figures = log.with_suffix(".json")
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, figures, *map(str, command)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            check=True,
        )
    code, seconds, peak_mb = json.loads(figures.read_text())
    if code != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {code}: {log.read_text()[-2000:]}")
    return Run(seconds, peak_mb)


def machine() -> dict[str, Any]:
    """Return what a reader must know about the machine on which something was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpus": len(os.sched_getaffinity(0)),
        "bfloat16": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "versions": {name: version(name) for name in ("pantherseg", "openvino", "torch", "nnunetv2", "numpy", "scipy")},
    }
