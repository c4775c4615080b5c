"""The folds of one model over one volume. The masks equal nnU-Net's; nnU-Net is not needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from pantherseg.arrays import Array, to_host
from pantherseg.errors import DeviceMemoryError, LostDeviceError
from pantherseg.events import Event
from pantherseg.fast import USUAL, Fast
from pantherseg.fusion import MeanLogits
from pantherseg.inference.backends import Backend
from pantherseg.inference.fold_masks import Agreement
from pantherseg.inference.fold_mean import FoldMean, Sweeps
from pantherseg.inference.one_label import mask_of
from pantherseg.inference.placement import Placement, placements
from pantherseg.inference.schedule import Schedule, SweepSettings
from pantherseg.inference.tiles import padded, tiles
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.bundle import Bundle
from pantherseg.orientation import DEFAULT_ORIENTATION, Orientation
from pantherseg.preprocessing.preprocess import Prepared, Preprocessing, WayBack
from pantherseg.results import ModelUse, Role
from pantherseg.volume import Volume


@dataclass(frozen=True)
class Logits:
    """The mean logits of a model's folds on the network's grid, and the way back to the grid of the volume.

    values: (class, z, y, x) float16, on the host or a device; events: what was left out or done differently;
    precision: that of the networks; folds: those in the mean; tile_share: the share of the tiles of all usable folds
    that was run; is_complete: whether the first fold ran all of its tiles; weight, threshold: in a fusion; agreement:
    of the folds about the tumour, None for a predictor without a label for it, or if a later fold ran a part of them;
    class_order, finds_pancreas: as for `Predictor`.
    """

    values: Array
    back: WayBack
    events: tuple[Event, ...]
    precision: str
    folds: tuple[str, ...]
    tile_share: float = 1.0
    is_complete: bool = True
    weight: float = 1.0
    agreement: Agreement | None = None
    threshold: float | None = None
    class_order: tuple[int, ...] | None = None
    finds_pancreas: bool = False

    @property
    def classes(self) -> int:
        """Number of classes, including the background."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the volume, (z, y, x)."""
        return self.back.shape

    def slab(self, start: int, stop: int) -> Array:
        """Return the logits of slices start..stop of the volume, (class, stop - start, y, x), on the volume's grid."""
        logits = self.back.slab(self.values, start, stop)
        return logits if self.class_order is None else logits[list(self.class_order)]

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return where a label other than the background is predicted, (z, y, x), as in `labels`, but sooner."""
        return mask_of(self.values, self.back, label)

    def labels(self) -> NDArray[np.uint8]:
        """Return the label map of the volume, (z, y, x)."""
        return MeanLogits().fuse([self]).labels()


@dataclass(frozen=True)
class Predictor:
    """A bundle's folds, ready for any number of volumes.

    name: of the member of a recipe, None for other uses; step: distance of tiles as a fraction of the patch; mirroring:
    average over inputs mirrored along the axes that the bundle allows; min_folds: the number of usable folds with which
    others may be damaged, None if all must be usable; keep_networks, allow_bfloat16: as in `placements`; orientation:
    of the volumes that the model was trained on, None for what the bundle says, and DEFAULT_ORIENTATION where it says
    nothing; weight, threshold: in a fusion; compared_label: about which the agreement of the folds is wanted, None for
    none; class_order: the network's classes in the order in which members are fused, None for its own; finds_pancreas:
    whether one of them is the pancreas; fast: what is left out in that mode.
    """

    bundle: Bundle
    backend: Backend
    name: str | None = None
    step: float = 0.5
    mirroring: bool = False
    min_folds: int | None = None
    keep_networks: bool = False
    allow_bfloat16: bool = False
    orientation: Orientation | None = None
    weight: float = 1.0
    compared_label: int | None = None
    threshold: float | None = None
    class_order: tuple[int, ...] | None = None
    finds_pancreas: bool = False
    fast: Fast = USUAL

    @property
    def knows_orientation(self) -> bool:
        """Whether the orientation is known rather than assumed."""
        return (self.orientation or self.bundle.manifest.orientation) is not None

    @property
    def trained_orientation(self) -> Orientation:
        """The orientation to which volumes are turned for the network."""
        return self.orientation or self.bundle.manifest.orientation or DEFAULT_ORIENTATION

    @property
    def preprocessing(self) -> Preprocessing:
        """How a volume is prepared after turning; with the same orientation too, predictors can share the result."""
        return self.bundle.manifest.preprocessing

    def use(self, role: Role, folds: tuple[str, ...], tile_share: float | UnsetType = UNSET) -> ModelUse:
        """Return how the bundle is used in a role with these of its folds and this share of their tiles."""
        return ModelUse(
            role=role,
            name=UNSET if self.name is None else self.name,
            tumour_label=UNSET if self.compared_label is None else self.compared_label,
            path=str(self.bundle.display_path),
            folds=folds,
            checkpoint=self.bundle.manifest.checkpoint,
            orientation=self.trained_orientation,
            step=self.step,
            mirroring=self.mirroring,
            sha256=replace(self.bundle, folds=folds).folds_sha256,
            tile_share=tile_share,
        )

    def prepare(self, volume: Volume) -> Prepared:
        """Return a volume (float32) preprocessed for the network. Raises InputError if that is not possible."""
        turn = volume.grid.turn_to(self.trained_orientation)
        return self.preprocessing.run(volume.array, volume.grid.spacing, turn)

    def predict(self, volume: Volume, deadline: Deadline = NEVER) -> Logits:
        """Return the mean logits of a volume. Raises what `prepare` and `logits` raise."""
        return self.logits(self.prepare(volume), deadline)

    def work(self, prepared: Prepared) -> int:
        """Return how many voxels the networks process for a prepared volume, to which their time is proportional."""
        manifest = self.bundle.manifest
        flips = 2 ** len(manifest.mirroring_axes) if self.mirroring else 1
        return len(self.bundle.folds) * flips * self._tiles(prepared.data.shape[1:], self.step) * prod(manifest.patch)

    def logits(self, prepared: Prepared, deadline: Deadline = NEVER) -> Logits:
        """Return the mean logits of all folds.

        deadline: what does not fit before it is left out, with an event. Raises ModelError if too many folds are
        damaged, LostDeviceError if the device fails, DeviceMemoryError if its memory is too small for one patch.
        """
        failure: LostDeviceError | None = None
        options = {"keep_networks": self.keep_networks, "allow_bfloat16": self.allow_bfloat16}
        for placement in placements(prepared.data, self.bundle, self.backend, **options):
            try:
                return self._mean_logits(placement, prepared.back, deadline)
            except (LostDeviceError, RuntimeError, MemoryError) as error:
                failure = self.backend.explain(error)
                if failure is None:
                    raise
            # Drop every reference to the failed attempt, so that its memory is free for the next one.
            del placement
            failure = failure.at(failure.where)
            if not isinstance(failure, DeviceMemoryError):
                break
        assert failure is not None  # there is at least one placement
        try:
            raise failure
        finally:
            del failure  # which would be a reference cycle by its traceback, and keep memory in use

    def _tiles(self, shape: tuple[int, ...], step: float) -> int:
        patch = self.bundle.manifest.patch
        return len(tiles(padded(shape, patch), patch, step))

    def _mean_logits(self, placement: Placement, back: WayBack, deadline: Deadline) -> Logits:
        """Return the mean logits of the folds, which run one after the other."""
        axes, shape = self.bundle.manifest.mirroring_axes, tuple(placement.data.shape[1:])
        schedule = Schedule(
            deadline,
            SweepSettings(self.mirroring and bool(axes), self.step),
            folds=self.bundle.folds,
            flips=2 ** len(axes),
            tiles=lambda step: self._tiles(shape, step),
        )
        with Sweeps(placement.data, self.bundle.manifest, len(self.bundle.folds)) as sweeps:
            mean = FoldMean(
                self.bundle,
                placement,
                schedule,
                sweeps,
                min_folds=self.min_folds,
                label=self.compared_label,
                fast=self.fast,
                is_fast=self.backend.mode == "fast",
            )
            values = mean.run()
        if isinstance(values, np.ndarray) or not back.resizer.local:
            values = to_host(values)
        events = (*placement.events, *mean.left_out, *schedule.events)
        return Logits(
            values,
            back,
            events,
            placement.backend.precision,
            tuple(mean.used),
            tile_share=mean.tile_share,
            is_complete=mean.is_complete,
            weight=self.weight,
            agreement=None if mean.masks is None else mean.masks.agreement(),
            threshold=self.threshold,
            class_order=self.class_order,
            finds_pancreas=self.finds_pancreas,
        )
