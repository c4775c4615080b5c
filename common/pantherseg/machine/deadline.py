"""The time that a case may take, and how its stages share it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# Reserved for what follows the networks: resampling, post-processing, writing. Several times what one core takes.
RESERVED_SECONDS = 2.0
RESERVED_SECONDS_PER_MVOXEL = 1.0
# The share of the time that the search for the pancreas may take.
LOCALIZER_SHARE = 1 / 3


@dataclass(frozen=True)
class Deadline:
    """The moment by which something must be done. clock: seconds of a clock that never goes back."""

    moment: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the moment in this many seconds from now."""
        return cls(clock() + seconds, clock)

    @property
    def is_never(self) -> bool:
        """Whether there is no deadline."""
        return math.isinf(self.moment)

    def left(self) -> float:
        """Return the seconds that are left, below 0 when the moment has passed."""
        return self.moment - self.clock()

    def for_networks(self, voxels: int) -> Deadline:
        """Return when the networks must end so that the rest of a case with this many voxels is done in time."""
        return Deadline(self.moment - RESERVED_SECONDS - RESERVED_SECONDS_PER_MVOXEL * voxels / 1e6, self.clock)

    def for_localizer(self) -> Deadline:
        """Return when the localizer must end so that the members have enough time."""
        return self.share(LOCALIZER_SHARE)

    def share(self, fraction: float) -> Deadline:
        """Return when a fraction (0 to 1) of the time that is left has passed."""
        return self if self.is_never else Deadline.after(max(0.0, self.left()) * fraction, self.clock)


NEVER = Deadline()
