"""How much memory this process may take, and what is said where there is none left.

Grand Challenge limits each process's data (RLIMIT_DATA) to what the machine has, less 1 GB.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from pantherseg.errors import DeviceMemoryError, last_line

MB = 1 << 20
# Less than the sample case of Task 1 takes with the demo models.
LEAST_MB = 512
# How OpenVINO, what it is made of, and torch say it; the last two where no thread finds room for its stack.
WORDS = ("alloc", "out of memory", "enough memory", "temporarily unavailable", "Broken promise")
HINT = "a machine with more memory is needed"
NO_LIMIT = 1 << 62
OWN_LIMITS = (("VmData", resource.RLIMIT_DATA), ("VmSize", resource.RLIMIT_AS))
# How mountinfo writes blanks, tabs, line ends and backslashes.
OCTAL = re.compile(r"\\([0-7]{3})")
MEMORY_DISKS = ("tmpfs", "ramfs")
# The kernel's names for what a group of processes may take and takes, and what of that is only a cache of files.
GROUP_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def reserve_memory() -> None:
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


def room_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this process may still take: of the machine, its container, and its own limits.

    proc, groups: where the kernel tells of processes and of groups of them; what it does not tell is no limit.
    """
    taken = _numbers(proc / "self" / "status")
    own = [limit - taken.get(name, 0) * 1024 for name, limit in _own_limits()]
    told = _numbers(proc / "meminfo")
    machine = told.get("MemAvailable", NO_LIMIT) + told.get("SwapFree", 0)
    return max(0, min(machine * 1024, *own, *_group_bytes(proc, groups), NO_LIMIT))


def is_in_memory(folder: Path, proc: Path = Path("/proc")) -> bool:
    """Tell whether what a folder holds takes memory, not room on a disk. proc: as in `room_bytes`."""
    mounts = (line.split(" ") for line in _text(proc / "self" / "mountinfo").splitlines())
    kinds = {}
    for fields in mounts:
        if "-" in fields[5:-1]:
            point = OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
            kinds[Path(point)] = fields[fields.index("-", 5) + 1]  # the last one hides others
    place = folder.resolve()
    return next((kinds[at] in MEMORY_DISKS for at in (place, *place.parents) if at in kinds), False)


def _own_limits() -> list[tuple[str, int]]:
    """Return the limits of this process in bytes, each with the kernel's name for what counts towards it."""
    limits = [(name, resource.getrlimit(kind)[0]) for name, kind in OWN_LIMITS]
    return [(name, limit) for name, limit in limits if limit != resource.RLIM_INFINITY]


def _group_bytes(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what each group that this process is in may still take (https://docs.kernel.org/admin-guide/cgroup-v2)."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        controller = "memory" if "memory" in controllers.split(",") else controllers
        if controller not in GROUP_FILES or not path:
            continue
        limit_name, taken_name, caches = GROUP_FILES[controller]
        base = groups / controller
        group = base / path.lstrip("/")  # which a container may not see; its own is at the base
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                limit, taken = (_number(_text(folder / name)) for name in (limit_name, taken_name))
                if limit is not None and taken is not None:
                    of_files = _numbers(folder / "memory.stat")
                    yield limit - taken + sum(of_files.get(name, 0) for name in caches)


def _numbers(path: Path) -> dict[str, int]:
    """Return the numbers of lines such as `VmData:  1204 kB`."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    found = ((name, _number(value)) for name, value, *_ in (line for line in words if len(line) > 1))
    return {name: number for name, number in found if number is not None}


def _number(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def shortage(error: Exception, purpose: str) -> DeviceMemoryError | None:
    """Return an error that says what there was too little memory for, None for one of another kind."""
    reason = last_line(error)
    if not isinstance(error, MemoryError) and not any(word in reason for word in WORDS):
        return None
    limit = _limit_mb()
    found = reason if limit is None else f"{reason} (limit {limit} MB)"
    return DeviceMemoryError("memory", expected=f"enough for {purpose}", found=found, hint=HINT)


def _limit_mb() -> int | None:
    return min((limit // MB for _, limit in _own_limits()), default=None)
