"""The pinned packages of lock files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pantherseg.sbom import normalised


@dataclass(frozen=True)
class Requirement:
    """One pinned package of a lock file."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def is_for(self, python: str) -> bool:
        """Whether it is installed on 64-bit Linux by this version of Python, such as 3.11.2."""
        from packaging.markers import Marker

        environment = {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": python,
            "python_version": ".".join(python.split(".")[:2]),
            "sys_platform": "linux",
        }
        return not self.marker or Marker(self.marker).evaluate(environment)


def locked(path: Path) -> list[Requirement]:
    """Return the pinned packages of a lock file. Raises AssertionError for a line of another form."""
    text = path.read_text().replace("\\\n", " ")
    requirements = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+?)(?:\s*;\s*(.*?))?((?:\s+--hash=\S+)*)\s*", line)
        assert match, f"expected a pinned package, found {line[:80]!r}"
        name, version, marker, hashes = match.groups()
        requirements.append(Requirement(normalised(name), version, marker or "", tuple(hashes.split())))
    return requirements
