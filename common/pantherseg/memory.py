"""How much memory this process may take, and what is said where there is none left.

Grand Challenge limits each process's data (RLIMIT_DATA) to what the machine has, less 1 GB.
"""

from __future__ import annotations

import resource
from importlib import import_module

from pantherseg.errors import DeviceMemoryError

MB = 1 << 20
# Less than the sample case of Task 1 takes with the demo models.
LEAST_MB = 512
# How OpenVINO and what it is made of say it.
WORDS = ("alloc", "out of memory", "enough memory")
HINT = "a machine with more memory is needed"


def begin() -> None:
    """Take what cannot be asked for later. Raises DeviceMemoryError where this process may take too little to begin.

    Where no memory is left, scipy waits for ever while it is imported: its OpenBLAS asks for 32 MB again and again. So
    under a limit it is imported now, and otherwise, as it takes long, when it is needed.
    """
    limit = _limit_mb()
    if limit is None:
        return
    if limit < LEAST_MB:
        expected = f"at least {LEAST_MB} MB that this process may take"
        raise DeviceMemoryError("memory", expected=expected, found=f"a limit of {limit} MB", hint=HINT)
    import_module("scipy.ndimage")


def shortage(error: Exception, purpose: str) -> DeviceMemoryError | None:
    """Return an error that says what there was too little memory for, None for one of another kind."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if not isinstance(error, MemoryError) and not any(word in reason for word in WORDS):
        return None
    limit = _limit_mb()
    found = reason if limit is None else f"{reason} (limit {limit} MB)"
    return DeviceMemoryError("memory", expected=f"enough for {purpose}", found=found, hint=HINT)


def _limit_mb() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else limit // MB
