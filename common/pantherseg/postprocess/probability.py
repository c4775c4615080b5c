"""Steps that look at the tumour's probability: a threshold, limits of the volume, and the rescue of an empty mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pantherseg.events import Event, EventCode
from pantherseg.postprocess.prediction import CONNECTIVITY, ROUNDING, Mask, Prediction, Step
from pantherseg.postprocess.shape import depth_mm
from pantherseg.tables import Fraction, NotNegative, Positive, Table
from pantherseg.volume import Box, as_shape, uncrop

# The rescued component reaches down to this share of its highest probability.
RESCUE_SHARE = 0.5


@Step.registry.register("threshold")
class Threshold(Table, Step, frozen=True):
    """Mark the tumour by its probability alone, in place of the mask so far."""

    probability: Fraction
    """The tumour is where its fused probability is at least this."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Replace the mask."""
        return prediction.changed(prediction.probability() >= self.probability)


@Step.registry.register("volume")
class VolumeLimits(Table, Step, frozen=True):
    """Limit the volume of the whole tumour mask. One that is too small is emptied, for a rescue to fill."""

    min_mm3: NotNegative = 0.0
    """A smaller mask is emptied."""
    max_mm3: Positive | None = None
    """Of a larger mask the most probable voxels are kept, at least one, and of equal ones those deepest inside."""

    def __post_init__(self) -> None:
        if self.max_mm3 is not None and self.max_mm3 < self.min_mm3:
            raise ValueError(f"max_mm3 = {self.max_mm3} is less than min_mm3 = {self.min_mm3}")

    def apply(self, prediction: Prediction) -> Prediction:
        """Empty or cut the mask where it is outside of the limits."""
        mask, voxel_mm3 = prediction.mask, prediction.grid.voxel_mm3
        found, voxels = prediction.tumour_mm3, int(mask.sum())
        if voxels == 0:
            return prediction
        if voxels < self.min_mm3 / voxel_mm3 - ROUNDING:
            message = f"{found:.0f} mm3 of tumour are less than {self.min_mm3:g}; the mask was emptied"
            return prediction.changed(np.zeros_like(mask), Event(EventCode.VOLUME_LIMITED, message))
        if self.max_mm3 is None or voxels <= self.max_mm3 / voxel_mm3 + ROUNDING:
            return prediction
        kept = _most_certain(prediction, max(1, int(self.max_mm3 / voxel_mm3 + ROUNDING)))
        message = f"{found:.0f} mm3 of tumour are more than {self.max_mm3:g}; the most probable of them were kept"
        return prediction.changed(kept, Event(EventCode.VOLUME_LIMITED, message))


def _most_certain(prediction: Prediction, count: int) -> Mask:
    """Return as many voxels of the mask, with the highest probability, and of equal ones those deepest inside."""
    box = Box.around(prediction.mask)
    assert box is not None  # the mask is too large, so it is not empty
    depth = depth_mm(prediction.mask[box.slices], prediction.grid.spacing)[prediction.mask[box.slices]]
    voxels = np.nonzero(prediction.mask)
    order = np.lexsort((-depth, -prediction.probability()[voxels]))[:count]
    kept = np.zeros_like(prediction.mask)
    kept[tuple(axis[order] for axis in voxels)] = True
    return kept


@Step.registry.register("rescue")
class Rescue(Table, Step, frozen=True):
    """Fill an empty mask with the most probable component: in a challenge every case has a tumour."""

    max_mm3: Positive = 20_000.0
    """The component never grows beyond this volume."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Fill the mask if it is empty."""
        if prediction.mask.any():
            return prediction
        probability = prediction.probability()
        rescued = prediction.changed(_most_probable(probability, self.max_mm3 / prediction.grid.voxel_mm3 + ROUNDING))
        message = f"no tumour was found; the most probable {rescued.tumour_mm3:.0f} mm3 were marked"
        return rescued.changed(rescued.mask, Event(EventCode.EMPTY_MASK_RESCUED, message))


def _most_probable(probability: NDArray[np.float32], max_voxels: float) -> Mask:
    """Return the component around the highest probability, down to half of it and of at most `max_voxels` voxels."""
    peak = np.unravel_index(int(probability.argmax()), probability.shape)
    component = _component_at(probability >= RESCUE_SHARE * probability[peak], peak)
    if component.sum() <= max_voxels:
        return component
    # Too large: keep the voxels nearest to the peak, and of those the ones that are still connected to it.
    voxels = np.nonzero(component)
    distance = sum((axis - int(start)) ** 2 for axis, start in zip(voxels, peak, strict=True))
    nearest = np.argsort(distance, kind="stable")[: max(1, int(max_voxels))]
    near = np.zeros_like(component)
    near[tuple(axis[nearest] for axis in voxels)] = True
    return _component_at(near, peak)


def _component_at(mask: Mask, voxel: tuple[np.intp, ...]) -> Mask:
    from scipy import ndimage

    box = Box.around(mask)
    assert box is not None  # the voxel is in the mask
    components, _ = ndimage.label(mask[box.slices], CONNECTIVITY)
    found = components == components[tuple(np.subtract(voxel, box.start))]
    return uncrop(found, box, as_shape(mask.shape))
