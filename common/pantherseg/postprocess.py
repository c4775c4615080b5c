"""Post-processing: an ordered list of steps that change the tumour mask of one prediction.

A step is a table of the recipe, for example

    [[postprocess]]
    kind = "components"
    min_mm3 = 50.0

and a new step is a class with one registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.events import Event, EventCode
from pantherseg.registry import Registry
from pantherseg.tables import Fraction, NotNegative, Positive, Table
from pantherseg.volume import Box, Grid, as_shape, uncrop

Mask = NDArray[np.bool_]

# Voxels are connected that touch in a face, an edge or a corner.
CONNECTIVITY = np.ones((3, 3, 3), bool)
# The rescued component reaches down to this share of its highest probability.
RESCUE_SHARE = 0.5


@dataclass(frozen=True)
class Prediction:
    """One case after fusion: the tumour mask, which steps change, and what they may look at.

    mask: the tumour, (z, y, x); labels: computes the label map of the members, (z, y, x), when it is called;
    tumour_label, pancreas_label: the numbers in it, the latter None where the members have no pancreas in common;
    probability: computes the probability of a label, (z, y, x), when it is called; events: what the steps did.
    """

    mask: Mask
    labels: Callable[[], NDArray[np.uint8]]
    tumour_label: int
    pancreas_label: int | None
    probability: Callable[[int], NDArray[np.float32]]
    grid: Grid
    events: tuple[Event, ...] = ()

    @property
    def pancreas(self) -> Mask | None:
        """The pancreas without the tumour, (z, y, x), None where the members have no such label."""
        if self.pancreas_label is None:
            return None
        pancreas: Mask = self.labels() == self.pancreas_label
        return pancreas

    @property
    def tumour_mm3(self) -> float:
        """Volume of the tumour mask."""
        return int(self.mask.sum()) * self.grid.voxel_mm3

    def changed(self, mask: Mask, *events: Event) -> Prediction:
        """Return the prediction with another mask, and with events that say why."""
        return replace(self, mask=mask, events=self.events + events)


class Step:
    """A post-processing step."""

    registry: ClassVar[Registry[Step]] = Registry("post-processing step")

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction with another mask, or as it is."""
        raise NotImplementedError


@Step.registry.register("threshold")
class Threshold(Table, Step, frozen=True):
    """Mark the tumour by its probability alone, in place of the mask so far."""

    probability: Fraction
    """The tumour is where its fused probability is at least this."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Replace the mask."""
        return prediction.changed(prediction.probability(prediction.tumour_label) >= self.probability)


@Step.registry.register("components")
class Components(Table, Step, frozen=True):
    """Keep connected components by volume and number."""

    min_mm3: NotNegative = 0.0
    """Smaller components are dropped."""
    max_count: Annotated[int, Meta(ge=1)] | None = None
    """At most this many components are kept, the largest first; without it all."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Drop components that are too small, or too many."""
        kept = self._kept(prediction.mask, prediction.grid.voxel_mm3)
        dropped = (int(prediction.mask.sum()) - int(kept.sum())) * prediction.grid.voxel_mm3
        if not dropped:
            return prediction
        message = f"{dropped:.0f} mm3 in small components were dropped"
        return prediction.changed(kept, Event(EventCode.COMPONENTS_DROPPED, message))

    def _kept(self, mask: Mask, voxel_mm3: float) -> Mask:
        from scipy import ndimage  # takes long to import, and is not needed before the networks run

        box = Box.around(mask)
        if box is None:
            return mask
        components, count = ndimage.label(mask[box.slices], CONNECTIVITY)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0  # the background
        largest_first = np.argsort(-sizes, kind="stable")[:count]
        keep = np.zeros(len(sizes), bool)
        keep[largest_first[: self.max_count]] = True
        keep &= sizes >= max(self.min_mm3 / voxel_mm3, 1)
        return uncrop(keep[components], box, as_shape(mask.shape))


@Step.registry.register("rescue")
class Rescue(Table, Step, frozen=True):
    """Fill an empty mask with the most probable component: in a challenge every case has a tumour."""

    max_mm3: Positive = 20_000.0
    """The component never grows beyond this volume."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Fill the mask if it is empty."""
        if prediction.mask.any():
            return prediction
        probability = prediction.probability(prediction.tumour_label)
        rescued = prediction.changed(_most_probable(probability, self.max_mm3 / prediction.grid.voxel_mm3))
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
