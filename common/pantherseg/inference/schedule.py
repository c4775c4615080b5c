"""What of a member's work fits into its time: the only place that decides what a deadline leaves out.

The schedule measures how long forward passes take and is asked after each of them. When not everything fits, it first
leaves out mirroring, then folds, then the overlap of tiles, then the tiles farthest from the middle of the body.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum

from pantherseg.events import Event, EventCode
from pantherseg.machine.deadline import Deadline

# The steps in which the overlap of tiles is reduced: distances of tiles as fractions of the patch.
STEPS = (0.6, 0.7, 0.8, 0.9, 1.0)
# The slowest of this many recent forward passes is what the next ones are expected to take.
RECENT_PASSES = 3
# With time for this many times the remaining work, passes are no longer timed.
ENOUGH = 3


class Next(Enum):
    """What follows a forward pass."""

    CONTINUE = "continue with the next pass"
    RESTART = "start this fold again, with the settings that the schedule has now"
    STOP = "stop here"


@dataclass(frozen=True)
class SweepSettings:
    """How a fold sweeps over a volume.

    mirroring: also run mirrored inputs; step: distance of tiles as a fraction of the patch; partial: run only as many
    tiles as there is time for, those nearest to the middle of the body first.
    """

    mirroring: bool
    step: float
    partial: bool = False


class Schedule:
    """The settings of one member over one volume, changed on the way where time gets short.

    settings: what is wanted; folds: their names in order; flips: inputs for each tile with mirroring; tiles: computes
    the number of tiles at a step.
    """

    def __init__(
        self,
        deadline: Deadline,
        settings: SweepSettings,
        *,
        folds: Sequence[str],
        flips: int,
        tiles: Callable[[float], int],
    ) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self._deadline = deadline
        self._folds = list(folds)
        self._flips, self._tiles = flips, tiles
        self._recent: deque[float] = deque(maxlen=RECENT_PASSES)
        self.is_timing = not deadline.is_never
        """Whether passes are timed. This ends when there is clearly enough time, as a device must be waited for."""
        self._mark = 0.0
        self._loading_seconds = 0.0
        self._tried = self._used = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time the loading of a fold."""
        start = self._now()
        yield
        self._loading_seconds = self._now() - start

    def next_fold(self) -> bool:
        """Return whether another fold is started; if not, an event says what is left out."""
        remaining = len(self._folds) - self._tried
        if self.is_first or self._fits(remaining, mirrored=self.settings.mirroring):
            return True
        if self.settings.mirroring:
            self._drop_mirroring()
        if self._fits(1, mirrored=False):
            return True
        self.leave_out_folds()
        return False

    def start_passes(self) -> None:
        """Note that forward passes start now."""
        if self.is_timing:
            self._mark = self._now()

    def pass_done(self, *, tile_done: bool) -> Next:
        """Decide what follows a forward pass. tile_done: whether it was the last pass of its tile.

        The first pass of a member shows the speed of the device, and may change the settings.
        """
        if self.is_timing:
            is_first_pass = not self._recent
            now = self._now()
            self._recent.append(now - self._mark)
            self._mark = now
            if is_first_pass and self._settings_changed():
                return Next.RESTART
            if len(self._recent) == RECENT_PASSES:
                self.is_timing = not self._fits(ENOUGH * len(self._folds), mirrored=self.settings.mirroring)
        if tile_done and self._deadline.left() < self._passes_per_tile * self._pace:
            return Next.STOP
        return Next.CONTINUE

    def fold_done(self, *, used: bool) -> None:
        """Note that a fold has given logits, or that it cannot."""
        self._tried += 1
        self._used += used

    def leave_out_folds(self) -> None:
        """Note that the folds from the present one on are left out."""
        names = " ".join(self._folds[self._tried :])
        self.events.append(Event(EventCode.FOLDS_LEFT_OUT, f"folds {names} were left out: {self._reason()}"))

    def leave_out_tiles(self, done: int, tiles: int) -> None:
        """Note that the first fold has run some tiles only."""
        message = f"{tiles - done} of {tiles} tiles were left out and are background: {self._reason()}"
        self.events.append(Event(EventCode.TILES_LEFT_OUT, message))

    @property
    def is_first(self) -> bool:
        """Whether no fold has given logits yet."""
        return self._used == 0

    @property
    def _pace(self) -> float:
        return max(self._recent, default=0.0)

    @property
    def _passes_per_tile(self) -> int:
        return self._flips if self.settings.mirroring else 1

    def _now(self) -> float:
        return self._deadline.clock()

    def _fits(self, folds: int, *, mirrored: bool, step: float | None = None, spent: int = 0) -> bool:
        """Return whether this many folds fit. spent: their forward passes that are done already."""
        passes = folds * self._tiles(step or self.settings.step) * (self._flips if mirrored else 1) - spent
        # The first fold has been loaded by the time that this is asked.
        loads = folds - self.is_first
        return passes * self._pace + loads * self._loading_seconds <= self._deadline.left()

    def _settings_changed(self) -> bool:
        """Choose the settings once the pace is known, and return whether they differ from those before."""
        before = self.settings
        if self._fits(len(self._folds), mirrored=before.mirroring, spent=1):
            return False
        if before.mirroring:
            self._drop_mirroring()
        if not self._fits(1, mirrored=False, spent=int(self.settings == before)):
            steps = [step for step in STEPS if step > before.step]
            step = next((step for step in steps if self._fits(1, mirrored=False, step=step)), None)
            self.settings = replace(self.settings, step=step or max(*STEPS, before.step), partial=step is None)
            if self.settings.step > before.step:
                change = f"tiles are {self.settings.step:g} of a patch apart instead of {before.step:g}"
                self.events.append(Event(EventCode.OVERLAP_LEFT_OUT, f"{change}: {self._reason()}"))
        return self.settings != before

    def _drop_mirroring(self) -> None:
        self.settings = replace(self.settings, mirroring=False)
        self.events.append(Event(EventCode.MIRRORING_LEFT_OUT, f"inputs were not mirrored: {self._reason()}"))

    def _reason(self) -> str:
        return f"{max(0.0, self._deadline.left()):.0f} s were left, and a forward pass takes {self._pace:.2f} s"
