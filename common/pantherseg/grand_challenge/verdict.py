"""What a check of something says about one rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Verdict:
    """One rule: what it asks for, whether it is kept, and what was found."""

    rule: str
    kept: bool
    found: str

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for a JSON list."""
        return asdict(self)
