"""How much memory this process may still use, and the error for too little of it.

Grand Challenge limits the data of each process (RLIMIT_DATA) to the memory of the machine less 1 GB.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from pantherseg.errors import DeviceMemoryError, last_line

MB = 1 << 20
# Not enough even for the sample case of Task 1 with the demo models.
MIN_MB = 512
# Parts of the messages of OpenVINO, oneDNN and torch. The last two appear when a thread cannot allocate its stack.
SHORTAGE_WORDS = ("alloc", "out of memory", "enough memory", "temporarily unavailable", "Broken promise")
HINT = "a machine with more memory is needed"
NO_LIMIT = 1 << 62
# The limits of a process, each with the line of /proc/self/status that counts towards it.
PROCESS_LIMITS = (("VmData", resource.RLIMIT_DATA), ("VmSize", resource.RLIMIT_AS))
# mountinfo escapes blanks, tabs, line ends and backslashes in this way.
OCTAL = re.compile(r"\\([0-7]{3})")
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
# For version 2 of control groups and the memory controller of version 1: the files with the limit and the usage, and
# the lines of memory.stat that count as used but are file caches, which the kernel frees when needed.
CGROUP_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def reserve_memory() -> None:
    """Allocate early what cannot be allocated later. Raises DeviceMemoryError if the limit of memory is too low.

    When no memory is left, importing scipy never ends, because its OpenBLAS retries an allocation of 32 MB. Under a
    limit it is therefore imported now; otherwise only when it is needed, because the import is slow.
    """
    limit = _limit_mb()
    if limit is None:
        return
    if limit < MIN_MB:
        expected = f"a limit of at least {MIN_MB} MB for this process"
        raise DeviceMemoryError("memory", expected=expected, found=f"{limit} MB", hint=HINT)
    import_module("scipy.ndimage")


def forget_peak() -> None:
    """Begin to measure the peak of this process's memory anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)


def peak_mb() -> int:
    """Return the most memory in MB that this process has taken since `forget_peak`, or else since its start."""
    used = _numbers(Path("/proc/self/status"))
    return round(used.get("VmHWM", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024)


def room_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory this process may still allocate.

    This is the least of what the machine, its control groups (a container) and its own limits leave. proc, cgroup: the
    file systems in which the kernel describes them; a value that is missing there does not limit the result.
    """
    used = _numbers(proc / "self" / "status")
    own = [limit - used.get(name, 0) * 1024 for name, limit in _process_limits()]
    meminfo = _numbers(proc / "meminfo")
    machine = meminfo.get("MemAvailable", NO_LIMIT) + meminfo.get("SwapFree", 0)
    return max(0, min(machine * 1024, *own, *_cgroup_bytes(proc, cgroup), NO_LIMIT))


def is_in_memory(folder: Path, proc: Path = Path("/proc")) -> bool:
    """Return whether files in a folder occupy memory instead of space on a disk. proc: as in `room_bytes`."""
    mounts = (line.split(" ") for line in _text(proc / "self" / "mountinfo").splitlines())
    types = {}
    for fields in mounts:
        if "-" in fields[5:-1]:
            mount_point = OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
            types[Path(mount_point)] = fields[fields.index("-", 5) + 1]  # a later mount hides an earlier one
    folder = folder.resolve()
    return next((types[path] in MEMORY_FILE_SYSTEMS for path in (folder, *folder.parents) if path in types), False)


def _process_limits() -> list[tuple[str, int]]:
    """Return the limits of this process in bytes, each with the name of the usage that it limits."""
    limits = [(name, resource.getrlimit(kind)[0]) for name, kind in PROCESS_LIMITS]
    return [(name, limit) for name, limit in limits if limit != resource.RLIM_INFINITY]


def _cgroup_bytes(proc: Path, cgroup: Path) -> Iterator[int]:
    """Yield how many bytes each control group of this process may still allocate.

    https://docs.kernel.org/admin-guide/cgroup-v2
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        controller = "memory" if "memory" in controllers.split(",") else controllers
        if controller not in CGROUP_FILES or not path:
            continue
        limit_name, usage_name, caches = CGROUP_FILES[controller]
        base = cgroup / controller
        group = base / path.lstrip("/")  # missing in some containers, which see their own group at the base
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                limit, usage = (_number(_text(folder / name)) for name in (limit_name, usage_name))
                if limit is not None and usage is not None:
                    statistics = _numbers(folder / "memory.stat")
                    yield limit - usage + sum(statistics.get(name, 0) for name in caches)


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
    """Return the error for too little memory, None if `error` has another cause. purpose: what the memory was for."""
    reason = last_line(error)
    if not isinstance(error, MemoryError) and not any(word in reason for word in SHORTAGE_WORDS):
        return None
    limit = _limit_mb()
    found = reason if limit is None else f"{reason} (limit {limit} MB)"
    return DeviceMemoryError("memory", expected=f"enough for {purpose}", found=found, hint=HINT)


def _limit_mb() -> int | None:
    return min((limit // MB for _, limit in _process_limits()), default=None)
