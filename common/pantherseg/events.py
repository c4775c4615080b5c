"""What happened on the way of a case without stopping it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Event:
    """Something unusual on the way of a case that did not stop it: a short code and a sentence."""

    code: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """Return the event for results.json."""
        return asdict(self)
