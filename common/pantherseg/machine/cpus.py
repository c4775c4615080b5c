"""The number of CPUs that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

# The CPU time of a container, in version 2 and 1 of control groups: quota and period in microseconds.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
OLD_QUOTA, OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")

# What this process leaves to others of the same machine; see `limit_cpus`.
_limit = 0


def limit_cpus(cpus: int) -> None:
    """Let this process, one of several workers of a machine, use at most so many CPUs; 0 for all."""
    global _limit
    _limit = cpus


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1. A container's limit is rounded up."""
    allowed = len(os.sched_getaffinity(0))
    allowed = min(allowed, _limit or allowed)
    try:
        quota, period = QUOTA.read_text().split() if QUOTA.exists() else (OLD_QUOTA.read_text(), OLD_PERIOD.read_text())
        share = math.ceil(int(quota) / int(period)) if quota.strip() != "max" else allowed
    except (OSError, ValueError, ZeroDivisionError):
        return allowed
    return min(allowed, share) if share > 0 else allowed
