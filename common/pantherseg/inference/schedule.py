"""What of a member's work fits into its time, from how long its forward passes take.

When not everything fits, first mirroring is left out, then folds, then the overlap of tiles, then the tiles that are
farthest from the middle of the body.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pantherseg.arrays import Array
from pantherseg.events import Event
from pantherseg.inference.accumulate import Network
from pantherseg.machine.deadline import Deadline

# Overlap is given up in such steps, as fractions of the patch.
STEPS = (0.6, 0.7, 0.8, 0.9, 1.0)
# The pace is that of the slowest of so many forward passes.
RECENT = 3
# The code of the event that says that a part of the volume was not looked at.
TILES_LEFT_OUT = "tiles_left_out"
# Time for so many times the work is enough to stop watching.
ENOUGH = 3


class PlanChangedError(Exception):
    """The plan was changed in the middle of a sweep, which begins anew."""


@dataclass(frozen=True)
class Plan:
    """How folds run. step: distance of tiles as a fraction of the patch; partly: as many tiles as there is time for."""

    mirroring: bool
    step: float
    partly: bool = False


class Schedule:
    """The plan of one member over one volume, changed on the way where time gets short.

    folds: their names in order; flips: inputs a tile with mirroring; tiles: how many there are at a step.
    """

    def __init__(
        self, deadline: Deadline, plan: Plan, *, folds: Sequence[str], flips: int, tiles: Callable[[float], int]
    ) -> None:
        self.plan = plan
        self.events: list[Event] = []
        self._deadline = deadline
        self._folds = list(folds)
        self._flips, self._tiles = flips, tiles
        self._recent: deque[float] = deque(maxlen=RECENT)
        # Waiting for a device to time it costs time: done until it is clear that there is enough.
        self._watched = not math.isinf(deadline.moment)
        self._loading = 0.0
        self._seen = self._used = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time the loading of a fold."""
        began = self._now()
        yield
        self._loading = self._now() - began

    def timed(self, network: Network) -> Network:
        """Return a network whose forward passes are timed; the very first one may change the plan."""

        def run(tile: Array) -> Array:
            if not self._watched:
                return network(tile)
            began = self._now()
            logits = network(tile)
            float(logits.reshape(-1)[0])  # a device computes in the background until it is asked
            first = not self._recent
            self._recent.append(self._now() - began)
            if first and self._change():
                raise PlanChangedError
            if len(self._recent) == RECENT:
                self._watched = not self._fits(ENOUGH * len(self._folds), mirrored=self.plan.mirroring)
            return logits

        return run

    def next_fold(self) -> bool:
        """Return whether another fold is begun; if not, what is left out is an event."""
        ahead = len(self._folds) - self._seen
        if self.is_first or self._fits(ahead, mirrored=self.plan.mirroring):
            return True
        if self.plan.mirroring:
            self._drop_mirroring()
        if self._fits(1, mirrored=False):
            return True
        self.leave_out_folds()
        return False

    def fold_done(self, *, used: bool) -> None:
        """Note that a fold has given logits, or can give none."""
        self._seen += 1
        self._used += used

    def leave_out_folds(self) -> None:
        """Note that the folds from the present one on are left out."""
        names = " ".join(self._folds[self._seen :])
        self.events.append(Event("folds_left_out", f"folds {names} were left out: {self._reason()}"))

    def go_on(self) -> bool:
        """Return whether there is time for one more tile."""
        flips = self._flips if self.plan.mirroring else 1
        return self._deadline.left() >= flips * self._pace

    def cut_short(self, done: int, tiles: int) -> None:
        """Note that the first fold saw some tiles only."""
        message = f"{tiles - done} of {tiles} tiles were left out and called background: {self._reason()}"
        self.events.append(Event(TILES_LEFT_OUT, message))

    @property
    def is_first(self) -> bool:
        """Whether no fold has given logits yet."""
        return self._used == 0

    @property
    def _pace(self) -> float:
        return max(self._recent, default=0.0)

    def _now(self) -> float:
        return self._deadline.clock()

    def _fits(self, folds: int, *, mirrored: bool, step: float | None = None, spent: int = 0) -> bool:
        """Return whether so many folds fit; spent: forward passes of theirs that are done."""
        forwards = folds * self._tiles(step or self.plan.step) * (self._flips if mirrored else 1) - spent
        # The first fold is loaded by the time that this is asked.
        loads = folds - self.is_first
        return forwards * self._pace + loads * self._loading <= self._deadline.left()

    def _change(self) -> bool:
        """Choose the plan once the pace is known, and return whether it is another one than before."""
        before, every = self.plan, len(self._folds)
        if self._fits(every, mirrored=before.mirroring, spent=1):
            return False
        if before.mirroring:
            self._drop_mirroring()
        if not self._fits(1, mirrored=False, spent=int(self.plan == before)):
            steps = [step for step in STEPS if step > before.step]
            step = next((step for step in steps if self._fits(1, mirrored=False, step=step)), None)
            self.plan = replace(self.plan, step=step or max(*STEPS, before.step), partly=step is None)
            if self.plan.step > before.step:
                message = f"tiles are {self.plan.step:g} of a patch apart in place of {before.step:g}: {self._reason()}"
                self.events.append(Event("overlap_left_out", message))
        return self.plan != before

    def _drop_mirroring(self) -> None:
        self.plan = replace(self.plan, mirroring=False)
        self.events.append(Event("mirroring_left_out", f"inputs were not mirrored: {self._reason()}"))

    def _reason(self) -> str:
        return f"{max(0.0, self._deadline.left()):.0f} s were left, and a patch takes {self._pace:.2f} s"
