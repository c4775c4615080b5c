"""The time limit of a case, and the shares of its stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# Reserved for the stages after the networks (resampling, post-processing, writing): several times what they take on
# one core.
RESERVED_SECONDS = 2.0
RESERVED_SECONDS_PER_MVOXEL = 1.0
# The fraction of the time that the localizer may take.
LOCALIZER_SHARE = 1 / 3


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

    def for_networks(self, voxels: int) -> Deadline:
        """Return the deadline of the networks, which leaves time for the rest of a case with this many voxels."""
        return Deadline(self.moment - RESERVED_SECONDS - RESERVED_SECONDS_PER_MVOXEL * voxels / 1e6, self.clock)

    def for_localizer(self) -> Deadline:
        """Return the deadline of the localizer, which leaves enough time for the members."""
        return self.share(LOCALIZER_SHARE)

    def share(self, fraction: float) -> Deadline:
        """Return the deadline after a fraction (0 to 1) of the remaining time."""
        return self if self.is_never else Deadline.after(max(0.0, self.left()) * fraction, self.clock)


NEVER = Deadline()
