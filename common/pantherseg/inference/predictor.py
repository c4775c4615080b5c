"""The folds of one model over one volume: nnU-Net's masks, without nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array, namespace, to_host
from pantherseg.bundle import Bundle, needed
from pantherseg.errors import DeviceMemoryError, Event, LostDeviceError, ModelError
from pantherseg.fuse import mean_logits
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.backends import Backend
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing, WayBack
from pantherseg.volume import Volume


@dataclass(frozen=True)
class Logits:
    """Mean logits of a model's folds, (class, z, y, x) in the network's grid, and the way back to the volume's.

    values: float16, on the host or a device; events: what a user should know about how they were computed.
    """

    values: Array
    back: WayBack
    events: tuple[Event, ...] = ()

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

    def labels(self, volume: Volume) -> NDArray[np.uint8]:
        """Return the label map of a volume, (z, y, x) on its own grid. Raises as `prepare` and `logits`."""
        return mean_logits([self.logits(self.prepare(volume))]).labels()

    def logits(self, prepared: Prepared) -> Logits:
        """Return the mean logits of all folds, summed where the backend has room for that.

        Raises ModelError for a fold that is damaged, LostDeviceError where the device ends on the way or lacks the
        memory for a single patch.
        """
        failure: LostDeviceError | None = None
        for data, events in self.backend.placements(prepared.data, self.bundle):
            try:
                values, left_out = self._mean_logits(data)
                values = values if prepared.back.resizer.local else to_host(values)
                return Logits(values, prepared.back, events + left_out)
            except RuntimeError as error:
                failure = self.backend.explained(error)
                if failure is None:
                    raise
            # Outside of the handler, so that what the failed sweep held is free for the next one.
            del data
            if not isinstance(failure, DeviceMemoryError):
                break
        assert failure is not None  # there is at least one place
        raise failure

    def _mean_logits(self, data: Array) -> tuple[Array, tuple[Event, ...]]:
        """Return the mean logits (class, z, y, x) of the folds, float16, where the data lie, and what was left out.

        The folds are loaded one after the other, so memory does not grow with their number.
        """
        from tqdm import tqdm

        manifest, folds = self.bundle.manifest, self.bundle.folds
        axes = manifest.mirroring_axes if self.mirroring else ()
        sweep = Sweep(data, manifest.patch, step=self.step, mirroring_axes=axes)
        total: Array = None
        left_out: list[Event] = []
        with tqdm(total=len(sweep.tiles) * len(folds), unit="tile", disable=None, leave=False) as bar:
            for fold, upcoming in zip(folds, (*folds[1:], None), strict=True):
                try:
                    logits = self._fold_logits(sweep, fold, upcoming, bar.update)
                except ModelError as error:
                    left_out.append(Event("fold_left_out", str(error)))
                    if len(folds) - len(left_out) < needed(len(folds), self.min_folds):
                        raise
                    continue
                if total is None:
                    total = logits
                else:
                    total += logits
        total /= len(folds) - len(left_out)
        return total, tuple(left_out)

    def _fold_logits(self, sweep: Sweep, fold: str, upcoming: str | None, on_tile: Callable[[], object]) -> Array:
        """Return one fold's logits; its network ends with this function, before the next one is loaded."""
        network = self.backend.network(self.bundle, fold, upcoming)
        logits = sweep.run(network, self.bundle.manifest.classes, on_tile=on_tile)
        xp = namespace(logits)
        if not xp.all(xp.isfinite(logits)):
            found = "NaN, or logits too large for float16"
            raise ModelError(self.bundle.weights_path(fold), expected="weights of finite logits", found=found)
        return logits
