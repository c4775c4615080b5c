"""The folds of one model over one volume: nnU-Net's masks, without nnU-Net."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, namespace, to_host
from pantherseg.errors import DeviceMemoryError, LostDeviceError, ModelError
from pantherseg.events import Event
from pantherseg.fusion import mean_logits
from pantherseg.inference.accumulate import Network, Sweep
from pantherseg.inference.backends import Backend
from pantherseg.inference.schedule import Plan, PlanChangedError, Schedule
from pantherseg.inference.tiles import padded, tiles
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import Bundle, needed
from pantherseg.models.manifest import Manifest
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing, WayBack
from pantherseg.volume import Volume

# Logits, the folds that are in them, and what was left out.
Mean = tuple[Array, tuple[str, ...], tuple[Event, ...]]


@dataclass(frozen=True)
class Logits:
    """Mean logits of a model's folds, (class, z, y, x) in the network's grid, and the way back to the volume's.

    values: float16, on the host or a device; events: what a user should know about how they were computed; precision:
    of the networks; folds: those that are in the mean.
    """

    values: Array
    back: WayBack
    events: tuple[Event, ...]
    precision: str
    folds: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes, the background's included."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The volume's shape, (z, y, x)."""
        return self.back.shape

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of the volume's slices start..stop, (class, stop - start, y, x) on its own grid."""
        return self.back.slab(self.values, start, stop)


@dataclass(frozen=True)
class Predictor:
    """A bundle's folds, ready for any number of volumes.

    step: distance of tiles as a fraction of the patch; mirroring: average over inputs mirrored along the axes that the
    bundle allows; min_folds: with so many folds the others may be damaged, without it none.
    """

    bundle: Bundle
    backend: Backend
    step: float = 0.5
    mirroring: bool = False
    min_folds: int | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How a volume is prepared; predictors for which it is equal can share what `prepare` returns."""
        return self.bundle.manifest.preprocessing

    def prepare(self, volume: Volume) -> Prepared:
        """Return a volume (float32) as the network wants it. Raises InputError where nothing of it is left."""
        return self.preprocessing.run(volume.array, volume.grid.spacing)

    def labels(self, volume: Volume, deadline: Deadline = NEVER) -> tuple[NDArray[np.uint8], tuple[Event, ...]]:
        """Return the label map of a volume, (z, y, x) on its own grid, and events; as `prepare` and `logits`."""
        logits = self.logits(self.prepare(volume), deadline)
        return mean_logits([logits]).labels(), logits.events

    def work(self, prepared: Prepared) -> int:
        """Return how many voxels the networks see of a prepared volume, which is what their time goes with."""
        manifest = self.bundle.manifest
        flips = 2 ** len(manifest.mirroring_axes) if self.mirroring else 1
        return len(self.bundle.folds) * flips * self._tiles(prepared.data.shape[1:], self.step) * prod(manifest.patch)

    def logits(self, prepared: Prepared, deadline: Deadline = NEVER) -> Logits:
        """Return the mean logits of all folds, summed where the backend has room for that.

        deadline: when to be done; what there is no time for is left out, and an event. Raises ModelError where too many
        folds are damaged, LostDeviceError where the device ends on the way or lacks the memory for a single patch.
        """
        failure: LostDeviceError | None = None
        for place in self.backend.placements(prepared.data, self.bundle):
            try:
                values, used, left_out = replace(self, backend=place.backend)._mean_logits(place.data, deadline)
                on_device = not isinstance(values, np.ndarray)
                values = values if on_device and prepared.back.resizer.local else to_host(values)
                return Logits(values, prepared.back, place.events + left_out, place.backend.precision, used)
            except (LostDeviceError, RuntimeError, MemoryError) as error:
                failure = self.backend.explained(error)
                if failure is None:
                    raise
            # What the failed sweep held must be free for the next one, and so nothing may lead to its frames.
            del place
            failure = failure.at(failure.where)
            if not isinstance(failure, DeviceMemoryError):
                break
        assert failure is not None  # there is at least one place
        try:
            raise failure
        finally:
            del failure  # an error that is kept by its own traceback keeps everything else

    def _tiles(self, shape: tuple[int, ...], step: float) -> int:
        patch = self.bundle.manifest.patch
        return len(tiles(padded(shape, patch), patch, step))

    def _mean_logits(self, data: Array, deadline: Deadline) -> Mean:
        """Return the mean logits (class, z, y, x) of the folds, float16, where the data lie, and what is in them.

        The folds are loaded one after the other, so memory does not grow with their number.
        """
        folds, axes = self.bundle.folds, self.bundle.manifest.mirroring_axes
        schedule = Schedule(
            deadline,
            Plan(self.mirroring and bool(axes), self.step),
            folds=folds,
            flips=2 ** len(axes),
            tiles=lambda step: self._tiles(tuple(data.shape[1:]), step),
        )
        with Sweeps(data, self.bundle.manifest, len(folds)) as sweeps:
            return self._over_folds(sweeps, schedule)

    def _over_folds(self, sweeps: Sweeps, schedule: Schedule) -> Mean:
        folds = self.bundle.folds
        total: Array = None
        used: list[str] = []
        left_out: list[Event] = []
        for fold, upcoming in zip(folds, (*folds[1:], None), strict=True):
            if not schedule.next_fold():
                break
            try:
                logits = self._fold_logits(sweeps, schedule, fold, upcoming)
            except ModelError as error:
                left_out.append(Event("fold_left_out", str(error)))
                if len(folds) - len(left_out) < needed(len(folds), self.min_folds):
                    raise
                schedule.fold_done(used=False)
                continue
            if logits is None:
                break
            if total is None:
                total = logits
            else:
                total += logits
            used.append(fold)
            schedule.fold_done(used=True)
        total /= len(used)
        return total, tuple(used), (*left_out, *schedule.events)

    def _fold_logits(self, sweeps: Sweeps, schedule: Schedule, fold: str, upcoming: str | None) -> Array | None:
        """Return one fold's logits, or None where there is no time for them and another fold has given some.

        Its network ends with this function, before the next one is loaded.
        """
        with schedule.loading():
            network = schedule.timed(self.backend.network(self.bundle, fold, upcoming))
        logits, complete = sweeps.run(network, schedule)
        if not complete and not schedule.is_first:
            schedule.leave_out_folds()
            return None
        xp = namespace(logits)
        if not all(xp.all(xp.isfinite(one)) for one in logits):  # a class at a time: it takes memory
            found = "NaN, or logits too large for float16"
            if self.backend.device != "cpu":  # features are float16, too: a CPU may get through
                raise LostDeviceError(self.backend.device, expected="finite logits", found=found)
            raise ModelError(self.bundle.weights_path(fold), expected="weights of finite logits", found=found)
        return logits


class Sweeps:
    """The sweeps over one prepared volume, each made once for all folds, with a bar that shows their progress."""

    def __init__(self, data: Array, manifest: Manifest, folds: int) -> None:
        self._data, self._manifest, self._folds = data, manifest, folds
        self._made: tuple[Plan, Sweep] | None = None

    def __enter__(self) -> Sweeps:
        from tqdm import tqdm

        self._bar = tqdm(unit="tile", disable=None, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def run(self, network: Network, schedule: Schedule) -> tuple[Array, bool]:
        """Return a network's logits by the schedule's plan, and whether every tile is in them."""
        while True:
            sweep = self._of(schedule.plan)
            try:
                logits, done = sweep.run(
                    network, self._manifest.classes, on_tile=self._bar.update, go_on=schedule.go_on
                )
            except PlanChangedError:
                continue
            if done < len(sweep.tiles) and schedule.is_first:
                schedule.cut_short(done, len(sweep.tiles))
            return logits, done == len(sweep.tiles)

    def _of(self, plan: Plan) -> Sweep:
        if self._made is None or self._made[0] != plan:
            axes = self._manifest.mirroring_axes if plan.mirroring else ()
            sweep = Sweep(self._data, self._manifest.patch, step=plan.step, mirroring_axes=axes, nearest=plan.partly)
            self._made = plan, sweep
            self._bar.reset(len(sweep.tiles) * self._folds)
        return self._made[1]
