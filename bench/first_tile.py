"""Ends a `pantherseg predict` where its first forward pass begins, and prints the seconds since the process started.

python -m bench.first_tile ARGUMENTS OF pantherseg
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

# In clock ticks since the machine started: the process's start is field 22.
TICKS = os.sysconf("SC_CLK_TCK")


def seconds_since_start() -> float:
    """Return the age of this process."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / TICKS
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    """Run pantherseg up to the first forward pass of the members."""
    from pantherseg.cli import main as command
    from pantherseg.inference import accumulate

    def stop(*_: Any) -> None:
        print(f"{seconds_since_start():.3f}", flush=True)
        os._exit(0)

    accumulate.FoldSums.passes = stop  # type: ignore[assignment,method-assign]
    command()


if __name__ == "__main__":
    main()
