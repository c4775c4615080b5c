"""What a check of something says about one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Names in what was found.
SHOWN = 5


@dataclass(frozen=True)
class Verdict:
    """One rule: what it asks for, whether it is kept, and what was found."""

    rule: str
    kept: bool
    found: str

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for a JSON list."""
        return asdict(self)

    def as_line(self) -> str:
        """Return the verdict as one line, whatever the names in it hold."""
        text = " ".join(f"{self.rule}: {self.found}".split())
        return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def first_few(names: list[str]) -> str:
    """Return names for what was found: the first of them, and how many there are more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
