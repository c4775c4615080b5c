"""The time of a case."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# For what follows the networks, resampling, post-processing and writing: an allowance several times what it takes on
# one core.
REST_SECONDS = 2.0
REST_SECONDS_PER_MVOXEL = 1.0


@dataclass(frozen=True)
class Deadline:
    """A moment by which something must be done. clock: seconds that only go forward, whatever the wall clock does."""

    moment: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """Return the moment in so many seconds from now."""
        return cls(clock() + seconds, clock)

    def left(self) -> float:
        """Return the seconds until then, below 0 when it has passed."""
        return self.moment - self.clock()

    def before(self, voxels: int) -> Deadline:
        """Return when the networks must end so that the rest of a case with so many voxels is done by then."""
        return Deadline(self.moment - REST_SECONDS - REST_SECONDS_PER_MVOXEL * voxels / 1e6, self.clock)

    def share(self, part: float) -> Deadline:
        """Return when a part (0 to 1) of the time that is left has passed."""
        return self if math.isinf(self.moment) else Deadline.after(max(0.0, self.left()) * part, self.clock)


NEVER = Deadline()
