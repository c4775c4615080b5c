"""Runs `pantherseg predict` up to its first forward pass, and prints the seconds since the start of the process.

python -m bench.first_tile ARGUMENTS OF pantherseg
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def seconds_since_start() -> float:
    """Return the age of this process."""
    # Field 22 of proc(5)'s stat is the start of the process in clock ticks since boot; field 2 ends with a bracket.
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / TICKS_PER_SECOND
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    """Run pantherseg up to the first forward pass."""
    from pantherseg.cli import main as command

    backend: Any
    if "cuda" in sys.argv:  # importing the backend that is not used would take time
        from pantherseg.inference.backends.torch_backend import TorchBackend

        backend = TorchBackend
    else:
        from pantherseg.inference.backends.openvino_backend import OpenVinoBackend

        backend = OpenVinoBackend
    load_network = backend.network

    def stop(*_: Any) -> None:
        print(f"{seconds_since_start():.3f}", flush=True)
        os._exit(0)

    def network(*arguments: Any, **options: Any) -> Any:
        load_network(*arguments, **options)
        return stop

    backend.network = network
    command()


if __name__ == "__main__":
    main()
