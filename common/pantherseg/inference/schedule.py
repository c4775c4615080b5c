"""Which part of a member's work fits into its time. Only this module decides what a deadline leaves out.

The schedule measures how long forward passes take and decides after each of them what follows. If not everything fits,
it leaves out first mirroring, then the tiles of later folds that matter least, then folds, then the overlap of tiles,
then the tiles far from the middle of the body.
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
# The next forward passes are expected to take as long as the slowest of this many recent ones.
RECENT_PASSES = 3
# Passes are no longer timed once there is time for this many times the work.
ENOUGH = 3


# Reserved for what follows the networks (resampling, post-processing, writing): several times what one core takes.
RESERVED_SECONDS = 2.0
RESERVED_SECONDS_PER_MVOXEL = 1.0
# The share of the time that the search for the pancreas may take.
LOCALIZER_SHARE = 1 / 3


def networks_deadline(deadline: Deadline, voxels: int) -> Deadline:
    """Return when the networks must end so that the rest of a case with this many voxels is done in time."""
    return deadline.earlier(RESERVED_SECONDS + RESERVED_SECONDS_PER_MVOXEL * voxels / 1e6)


def localizer_deadline(deadline: Deadline) -> Deadline:
    """Return when the localizer must end so that the members have enough time. deadline: of all networks."""
    return deadline.share(LOCALIZER_SHARE)


def member_deadline(deadline: Deadline, work: Sequence[int], number: int) -> Deadline:
    """Return when a member must end so that those after it have their share of the time. work: of each member."""
    return deadline.share(work[number] / sum(work[number:]))


class Next(Enum):
    """What follows a forward pass."""

    CONTINUE = "continue with the next pass"
    RESTART = "start this fold again, with the settings that the schedule has now"
    STOP = "stop here"


@dataclass(frozen=True)
class SweepSettings:
    """How a fold sweeps over a volume.

    mirroring: run mirrored inputs, too; step: distance of tiles as a fraction of the patch; partial: run as many tiles
    as there is time for, beginning with those nearest to the middle of the body.
    """

    mirroring: bool
    step: float
    partial: bool = False


class Schedule:
    """The settings of one member over one volume, which change when time gets short.

    settings: those of the recipe; folds: their names in order; flips: forward passes per tile with mirroring; tiles:
    returns the number of tiles for a step.
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
        """Whether passes are timed. This ends when time clearly suffices, because it means waiting for the device."""
        self._mark = 0.0
        self._loading_seconds = self._choosing_seconds = 0.0
        self._tried = self._used = 0
        self._shortened: list[str] = []
        self._shortened_by = ""

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time the loading of a fold."""
        start = self._now()
        yield
        self._loading_seconds = self._now() - start

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Time the choice of the tiles of a fold."""
        start = self._now()
        yield
        self._choosing_seconds = self._now() - start

    def next_fold(self, tiles: int, *, can_shorten: bool = True) -> int:
        """Return how many of so many tiles the next fold runs, such that there is time for as many of all later ones.

        If there is time for none, it is 0, and an event names the folds that are left out. can_shorten: whether fewer
        than all of the tiles make sense.
        """
        if tiles == 0 or self._fits(self.folds_left, mirrored=self.settings.mirroring, tiles=tiles):
            return tiles
        if not self._fits(1, mirrored=False, tiles=1 if can_shorten else tiles):
            self.leave_out_folds()
            return 0
        if self.settings.mirroring:
            self._drop_mirroring()
        if not can_shorten or self._pace == 0:
            return tiles
        seconds = self._deadline.left() / self.folds_left - self._loading_seconds - self._choosing_seconds
        count = min(tiles, max(1, int(seconds / self._pace)))
        if count < tiles:
            self.shorten_fold()
        return count

    def start_passes(self) -> None:
        """Record that forward passes start now."""
        if self.is_timing:
            self._mark = self._now()

    def pass_done(self, *, tile_done: bool) -> Next:
        """Return what follows a forward pass. tile_done: whether it was the last pass of its tile.

        The first pass of a member shows the speed of the device and may change the settings.
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
        """Record that a fold is done. used: whether it gave logits."""
        if used and self._shortened_by:
            self._shortened.append(self._folds[self._tried])
            message = f"folds {' '.join(self._shortened)} ran only a part of their tiles: {self._shortened_by}"
            self.events = [event for event in self.events if event.code != EventCode.FOLDS_SHORTENED]
            self.events.append(Event(EventCode.FOLDS_SHORTENED, message))
        self._shortened_by = ""
        self._tried += 1
        self._used += used

    def shorten_fold(self) -> None:
        """Record that the present fold runs fewer tiles than it should. An event says so once it is done."""
        self._shortened_by = self._shortened_by or self._reason()

    def leave_out_folds(self) -> None:
        """Record that the present fold and all later ones are left out."""
        names = " ".join(self._folds[self._tried :])
        self.events.append(Event(EventCode.FOLDS_LEFT_OUT, f"folds {names} were left out: {self._reason()}"))

    def leave_out_tiles(self, done: int, tiles: int) -> None:
        """Record that the first fold ran only `done` of all tiles."""
        message = f"{tiles - done} of {tiles} tiles were left out and are background: {self._reason()}"
        self.events.append(Event(EventCode.TILES_LEFT_OUT, message))

    @property
    def is_first(self) -> bool:
        """Whether no fold has given logits so far."""
        return self._used == 0

    @property
    def folds_left(self) -> int:
        """The number of folds that have not been tried."""
        return len(self._folds) - self._tried

    @property
    def _pace(self) -> float:
        return max(self._recent, default=0.0)

    @property
    def _passes_per_tile(self) -> int:
        return self._flips if self.settings.mirroring else 1

    def _now(self) -> float:
        return self._deadline.clock()

    def _fits(
        self, folds: int, *, mirrored: bool, step: float | None = None, spent: int = 0, tiles: int | None = None
    ) -> bool:
        """Return whether this many folds fit into the remaining time.

        spent: forward passes that are already done; tiles: of each fold, by default all of them.
        """
        every = self._tiles(step or self.settings.step) if tiles is None else tiles
        passes = folds * every * (self._flips if mirrored else 1) - spent
        # The first fold is loaded already when this is called.
        loads = folds - self.is_first
        seconds = passes * self._pace + loads * (self._loading_seconds + self._choosing_seconds)
        return seconds <= self._deadline.left()

    def _settings_changed(self) -> bool:
        """Choose the settings once the pace is known, and return whether they have changed."""
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
        inputs = "inputs" if self.is_first else f"inputs of folds {' '.join(self._folds[self._tried :])}"
        self.events.append(Event(EventCode.MIRRORING_LEFT_OUT, f"{inputs} were not mirrored: {self._reason()}"))

    def _reason(self) -> str:
        return f"{max(0.0, self._deadline.left()):.0f} s remained, and a forward pass takes {self._pace:.2f} s"
