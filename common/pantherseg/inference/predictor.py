"""The folds of one model over one volume: nnU-Net's masks, without nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.bundle import Bundle
from pantherseg.errors import ModelError
from pantherseg.fuse import mean_logits
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.backends import Backend
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing, WayBack
from pantherseg.volume import Volume


@dataclass(frozen=True)
class Logits:
    """Mean logits of a model's folds, (class, z, y, x) in the network's grid, and the way back to the volume's."""

    values: NDArray[np.float16]
    back: WayBack

    @property
    def classes(self) -> int:
        """Number of classes, the background's included."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The volume's shape, (z, y, x)."""
        return self.back.shape

    def slab(self, start: int, stop: int) -> NDArray[Any]:
        """Return the logits of the volume's slices start..stop, (class, stop - start, y, x) on its own grid."""
        return self.back.slab(self.values, start, stop)


@dataclass(frozen=True)
class Predictor:
    """A bundle's folds, ready for any number of volumes.

    step: distance of tiles as a fraction of the patch; mirroring: average over inputs mirrored along the axes that the
    bundle allows.
    """

    bundle: Bundle
    backend: Backend
    step: float = 0.5
    mirroring: bool = False

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
        """Return the mean logits of all folds. Raises ModelError for a fold that is damaged.

        The folds are loaded one after the other, so memory does not grow with their number.
        """
        from tqdm import tqdm

        manifest = self.bundle.manifest
        axes = manifest.mirroring_axes if self.mirroring else ()
        sweep = Sweep(prepared.data, manifest.patch, step=self.step, mirroring_axes=axes)
        total: NDArray[np.float16] | None = None
        with tqdm(total=len(sweep.tiles) * len(self.bundle.folds), unit="tile", disable=None, leave=False) as bar:
            for fold in self.bundle.folds:
                logits = self._fold_logits(sweep, fold, bar.update)
                total = logits if total is None else np.add(total, logits, out=total)
        assert total is not None  # a bundle has at least one fold
        return Logits(total / np.float16(len(self.bundle.folds)), prepared.back)

    def _fold_logits(self, sweep: Sweep, fold: str, on_tile: Callable[[], object]) -> NDArray[np.float16]:
        """Return one fold's logits; its network ends with this function, before the next one is loaded."""
        network = self.backend.network(self.bundle, fold)
        logits = sweep.run(network, self.bundle.manifest.classes, on_tile=on_tile)
        if not np.isfinite(logits).all():
            found = "NaN, or logits too large for float16"
            raise ModelError(self.bundle.weights_path(fold), expected="weights of finite logits", found=found)
        return logits
