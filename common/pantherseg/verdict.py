"""The result of checking one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
        """Return the verdict in one line of valid UTF-8, whatever characters the names in it have."""
        text = " ".join(f"{self.rule}: {self.found}".split())
        return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
