"""Settings of the C library's memory allocator.

By default glibc returns large freed blocks to the system, so that every tensor of a forward pass is mapped and zeroed
again. On two cores this takes longer than the convolutions of a small network.
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 256 << 20
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make malloc reuse freed memory from now on. Return False where the C library does not support this."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD_BYTES))
    accepted = [mallopt(option, value) == 1 for option, value in settings]
    return all(accepted)
