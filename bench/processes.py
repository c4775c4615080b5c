"""Measures the time and the peak memory of whole processes."""

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

# The peak of a new process is at least that of the process that started it, so a small process starts the command.
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
    """seconds: from start to exit; peak_mb: resident memory of the largest among the process and its children."""

    seconds: float
    peak_mb: float

    def as_dict(self) -> dict[str, float]:
        """Return the run for a JSON file."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def run(command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command and write its output to a file. Raises RuntimeError with the end of the output if it fails."""
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
        raise RuntimeError(f"{' '.join(map(str, command))} ended with exit code {code}: {log.read_text()[-2000:]}")
    return Run(seconds, peak_mb)


def machine() -> dict[str, Any]:
    """Return a description of this machine and of the versions of the libraries."""
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
