"""The time limit of a case, and the shares of its stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """The moment by which something must be done. clock: returns the seconds of a monotonic clock."""

    moment: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the deadline that is this many seconds from now."""
        return cls(clock() + seconds, clock)

    @property
    def is_never(self) -> bool:
        """Whether there is no deadline."""
        return math.isinf(self.moment)

    def left(self) -> float:
        """Return the remaining seconds, negative once the moment has passed."""
        return self.moment - self.clock()

    def earlier(self, seconds: float) -> Deadline:
        """Return the moment this many seconds before."""
        return Deadline(self.moment - seconds, self.clock)

    def share(self, fraction: float) -> Deadline:
        """Return the deadline after a fraction (0 to 1) of the remaining time."""
        return self if self.is_never else Deadline.after(max(0.0, self.left()) * fraction, self.clock)


NEVER = Deadline()
