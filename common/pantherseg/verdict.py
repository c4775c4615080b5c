"""The result of checking one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pantherseg.errors import printable


@dataclass(frozen=True)
class Verdict:
    """A rule, whether it is kept, and what was found."""

    rule: str
    kept: bool
    found: str

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for a JSON list."""
        return asdict(self)

    def as_line(self) -> str:
        """Return the verdict in one printable line, whatever characters the names in it have."""
        return printable(" ".join(f"{self.rule}: {self.found}".split()))
