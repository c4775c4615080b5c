"""The result of checking one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Names listed in a verdict.
MAX_NAMES = 5


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


def first_few(names: list[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
