"""The mean over the folds of one member with one placement. The folds run one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pantherseg.arrays import Array, namespace, wait_for
from pantherseg.errors import Float16Error, ModelError
from pantherseg.events import Event, EventCode
from pantherseg.fast import Fast
from pantherseg.inference.accumulate import FoldSums, Network, Sweep
from pantherseg.inference.focus import Focus
from pantherseg.inference.fold_masks import FoldMasks
from pantherseg.inference.placement import Placement
from pantherseg.inference.schedule import Next, Schedule, SweepSettings
from pantherseg.models.bundle import Bundle, needed
from pantherseg.models.manifest import Manifest


class FoldMean:
    """The mean of the folds of a bundle.

    After the first fold the others may run only the tiles that matter for a label. min_folds: as for `Predictor`;
    label: None where there is none to look for; fast: what `fast` leaves out; is_fast: whether it is left out.
    """

    def __init__(
        self,
        bundle: Bundle,
        placement: Placement,
        schedule: Schedule,
        sweeps: Sweeps,
        *,
        min_folds: int | None,
        label: int | None,
        fast: Fast,
        is_fast: bool,
    ) -> None:
        self._bundle, self._min_folds = bundle, min_folds
        self._placement, self._schedule, self._sweeps = placement, schedule, sweeps
        self._label, self._fast, self._is_fast = label, fast, is_fast and label is not None
        self._total: Array = None
        self._tiles = self._tiles_done = 0
        self.used: list[str] = []
        self.left_out: list[Event] = []
        self.is_complete = True
        self.masks = None if label is None else FoldMasks(label)
        """Of the folds that were used; None without a label, or if a later fold ran only a part of its tiles."""

    @property
    def tile_share(self) -> float:
        """The share of the tiles of all usable folds that were run."""
        return self._tiles_done / ((len(self._bundle.folds) - len(self.left_out)) * self._tiles)

    @property
    def _sweep(self) -> Sweep:
        return self._sweeps.of(self._schedule.settings)

    def run(self) -> Array:
        """Return the mean logits, (class, z, y, x) float16. Raises ModelError, LostDeviceError."""
        folds, schedule = self._bundle.folds, self._schedule
        for fold, upcoming in zip(folds, (*folds[1:], None), strict=True):
            numbers = None if schedule.is_first else self._next_tiles()
            if numbers is not None and not numbers:
                break
            try:
                logits = self._fold_logits(fold, upcoming, numbers)
            except ModelError as error:
                self.left_out.append(Event(EventCode.FOLD_LEFT_OUT, str(error)))
                if len(folds) - len(self.left_out) < needed(len(folds), self._min_folds):
                    raise
                schedule.fold_done(used=False)
                continue
            if logits is None:
                break
            if self.masks is not None:
                self.masks.add(logits)
            if self._total is None:
                self._total = logits
            else:
                self._total += logits
            del logits  # the next fold needs the memory
            self.used.append(fold)
            schedule.fold_done(used=True)
        self._total /= len(self.used)
        return self._total

    def _next_tiles(self) -> Sequence[int]:
        """Return the numbers of the tiles that the next fold runs; none if there is no time, or if no tile matters.

        Tiles are run in nnU-Net's order, because sums in float16 depend on it, unless time is short for them.
        Without a label there is nothing by which tiles could be chosen: folds are run as a whole or left out.
        """
        schedule, every = self._schedule, range(len(self._sweep.tiles))
        if self._label is None:
            return every[: schedule.next_fold(len(every), can_shorten=False)]
        focus = Focus(self._sweep, self._label, self._fast)
        done, left = len(self.used), schedule.folds_left
        if self._is_fast:
            with schedule.choosing():
                ranking = focus.ranking(self._total, done=done, left=left, every=False)
            count = schedule.next_fold(ranking.needed)
            return sorted(ranking.order[:count]) if count == ranking.needed else ranking.order[:count]
        count = schedule.next_fold(len(every))
        if count in (0, len(every)):
            return every[:count]
        with schedule.choosing():
            return focus.ranking(self._total, done=done, left=left).order[:count]

    def _fold_logits(self, fold: str, upcoming: str | None, numbers: Sequence[int] | None) -> Array | None:
        """Return the logits of one fold, or None if its time was over and it cannot be used in part.

        Unless networks are kept, this one is freed when the function ends, before the next one is loaded.
        """
        placement, schedule = self._placement, self._schedule
        with schedule.loading():
            network = placement.backend.network(self._bundle, fold, upcoming, keep=placement.keep_networks)
        sums = self._run_tiles(network, numbers)
        if not sums.is_complete:
            if schedule.is_first:
                schedule.leave_out_tiles(sums.tiles_done, len(self._sweep.tiles))
                self.is_complete = False
            elif self._label is None:
                schedule.leave_out_folds()
                return None
            else:
                schedule.shorten_fold()
        logits = sums.logits(self._total, len(self.used))
        self._check_finite(logits, fold)
        self._tiles = len(self._sweep.tiles)
        self._tiles_done += sums.tiles_done
        if self.used and sums.tiles_done < self._tiles:
            self.masks = None  # where a fold has the logits of others, it would agree with them
        return logits

    def _run_tiles(self, network: Network, numbers: Sequence[int] | None) -> FoldSums:
        """Run a network over tiles, None for all, until the schedule stops it."""
        schedule = self._schedule
        tiles = len(self._sweep.tiles)
        if numbers is not None:
            self._sweeps.bar.total -= tiles - len(numbers)
        while True:
            sums = self._sweep.start(network, self._bundle.manifest.classes, numbers)
            schedule.start_passes()
            follows = Next.CONTINUE
            for logits, tile_done in sums.passes():
                if schedule.is_timing:
                    wait_for(logits)
                if tile_done:
                    self._sweeps.bar.update()
                follows = schedule.pass_done(tile_done=tile_done)
                if follows is not Next.CONTINUE:
                    break
            if follows is not Next.RESTART:
                return sums

    def _check_finite(self, logits: Array, fold: str) -> None:
        xp = namespace(logits)
        if all(xp.all(xp.isfinite(one)) for one in logits):  # class by class, to save memory
            return
        problem = "the network computed logits that are NaN or too large for float16"
        if self._placement.backend.device != "cpu":  # a GPU's features are float16, too, so the CPU may succeed
            raise Float16Error(self._placement.backend.device, problem)
        raise ModelError(self._bundle.weights_path(fold), problem)


class Sweeps:
    """The sweep over one prepared volume, made once for all folds, with a progress bar."""

    def __init__(self, data: Array, manifest: Manifest, folds: int) -> None:
        self._data, self._manifest, self._folds = data, manifest, folds
        self._made: tuple[SweepSettings, Sweep] | None = None

    def __enter__(self) -> Sweeps:
        from tqdm import tqdm

        self.bar: Any = tqdm(unit="tile", disable=None, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def of(self, settings: SweepSettings) -> Sweep:
        """Return the sweep with these settings."""
        if self._made is None or self._made[0] != settings:
            axes = self._manifest.mirroring_axes if settings.mirroring else ()
            sweep = Sweep(
                self._data, self._manifest.patch, step=settings.step, mirroring_axes=axes, nearest=settings.partial
            )
            self._made = settings, sweep
            self.bar.reset(len(sweep.tiles) * self._folds)
        return self._made[1]
