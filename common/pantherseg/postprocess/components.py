"""Steps that keep or drop whole connected components of the tumour mask.

The components of a step are those that the mask has when the step's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.events import Event, EventCode
from pantherseg.postprocess.prediction import CONNECTIVITY, ROUNDING, Mask, PancreasOf, Prediction, Step
from pantherseg.tables import Fraction, NotNegative, Table
from pantherseg.volume import Box, Triple, as_shape, uncrop

Count = Annotated[int, Meta(ge=1)]


class Parts:
    """The connected components of a mask.

    numbers: in `box` (z, y, x), 0 where there is none; voxels: of each number, 0 for the background.
    """

    def __init__(self, mask: Mask, box: Box) -> None:
        from scipy import ndimage  # takes long to import, and is not needed before the networks run

        self.box = box
        self.numbers, self.count = ndimage.label(mask[box.slices], CONNECTIVITY)
        self.voxels = np.bincount(self.numbers.ravel())
        self.voxels[0] = 0

    def with_voxels_in(self, other: Mask) -> NDArray[np.int64]:
        """Return the voxels of each number in another mask (z, y, x) of the volume."""
        inside = self.numbers[other[self.box.slices]]
        return np.bincount(inside, minlength=len(self.voxels))

    def mask_of(self, keep: NDArray[np.bool_], shape: tuple[int, ...]) -> Mask:
        """Return a mask of a shape (z, y, x) of the components that are kept, by number."""
        keep[0] = False
        return uncrop(keep[self.numbers], self.box, as_shape(shape))


@Step.registry.register("components")
class Components(Table, Step, frozen=True):
    """Keep connected components by volume and number."""

    min_mm3: NotNegative = 0.0
    """Smaller components are dropped."""
    min_voxels: Count = 1
    """Components of fewer voxels are dropped."""
    max_count: Count | None = None
    """At most this many components are kept, the largest first; without it all."""
    second_share: Fraction | None = None
    """Those after the largest are kept only if they have at least this share of its volume."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Drop components that are too small, or too many."""
        box = Box.around(prediction.mask)
        if box is None:
            return prediction
        parts = Parts(prediction.mask, box)
        largest_first = np.argsort(-parts.voxels, kind="stable")[: parts.count]
        keep = np.zeros(len(parts.voxels), bool)
        keep[largest_first[: self.max_count]] = True
        keep &= parts.voxels >= max(self.min_mm3 / prediction.grid.voxel_mm3, self.min_voxels) - ROUNDING
        if self.second_share is not None:
            keep &= parts.voxels >= self.second_share * parts.voxels.max() - ROUNDING
        return _kept(prediction, parts, keep, "in small components")


@Step.registry.register("overlap")
class Overlap(Table, Step, frozen=True):
    """Keep connected components that lie in the pancreas.

    In a label map no voxel is both tumour and pancreas, so this is for a pancreas that the localizer found, or other
    members than the tumour.
    """

    min_share: Fraction | None = None
    """Of a component's volume, at least this share must lie in the pancreas."""
    min_voxels: Count = 1
    """At least so many of its voxels must lie in the pancreas."""
    of: PancreasOf = "members"
    """Whose pancreas: that of the members with a label for it, or of the localizer."""

    @property
    def needs(self) -> PancreasOf:
        """Whose pancreas the step looks at."""
        return self.of

    def apply(self, prediction: Prediction) -> Prediction:
        """Drop components with too little of the pancreas; where no pancreas was found, the mask is as it was."""

        def keep(parts: Parts, pancreas: Mask) -> NDArray[np.bool_]:
            inside = parts.with_voxels_in(pancreas)
            enough = inside >= self.min_voxels
            if self.min_share is not None:
                enough &= inside >= self.min_share * parts.voxels - ROUNDING
            return enough

        return _kept_by_pancreas(prediction, self, self.of, keep, "in components with too little in the pancreas")


@Step.registry.register("near")
class Near(Table, Step, frozen=True):
    """Keep connected components by their distance to the pancreas, that of the two nearest voxel centres."""

    max_mm: NotNegative
    """Components further away are dropped."""
    of: PancreasOf = "members"
    """As for `overlap`."""

    @property
    def needs(self) -> PancreasOf:
        """Whose pancreas the step looks at."""
        return self.of

    def apply(self, prediction: Prediction) -> Prediction:
        """Drop components that are too far away; where no pancreas was found, the mask is as it was."""

        def keep(parts: Parts, pancreas: Mask) -> NDArray[np.bool_]:
            return _within(parts, pancreas, self.max_mm, prediction.grid.spacing)

        why = f"in components more than {self.max_mm:g} mm from the pancreas"
        return _kept_by_pancreas(prediction, self, self.of, keep, why)


def _within(parts: Parts, other: Mask, max_mm: float, spacing: Triple) -> NDArray[np.bool_]:
    """Return which components, by number, have a voxel within max_mm of a voxel of another mask (z, y, x)."""
    from scipy.spatial import KDTree

    voxels = np.nonzero(parts.numbers)
    centres = (np.stack(voxels, axis=1) + parts.box.start) * spacing
    limit = max_mm + ROUNDING
    distance, _ = KDTree(np.argwhere(other) * spacing).query(centres, distance_upper_bound=2 * limit)
    near = np.zeros(len(parts.voxels), bool)
    near[np.unique(parts.numbers[voxels][distance <= limit])] = True
    return near


def _kept_by_pancreas(
    prediction: Prediction,
    step: Step,
    of: PancreasOf,
    keep: Callable[[Parts, Mask], NDArray[np.bool_]],
    why: str,
) -> Prediction:
    """Return the prediction with the components, by number, that a function of them and the pancreas keeps.

    Where no pancreas was found, the mask is as it was, with an event.
    """
    box, pancreas = Box.around(prediction.mask), prediction.pancreas(of)
    if box is None:
        return prediction
    if pancreas is None or not pancreas.any():
        return _without_pancreas(prediction, step.registry.name_of(step), of)
    parts = Parts(prediction.mask, box)
    return _kept(prediction, parts, keep(parts, pancreas), why)


def _kept(prediction: Prediction, parts: Parts, keep: NDArray[np.bool_], why: str) -> Prediction:
    """Return the prediction with some of its components, by number, and an event if any was dropped."""
    mask = parts.mask_of(keep, prediction.mask.shape)
    dropped = (int(prediction.mask.sum()) - int(mask.sum())) * prediction.grid.voxel_mm3
    if not dropped:
        return prediction
    return prediction.changed(mask, Event(EventCode.COMPONENTS_DROPPED, f"{dropped:.0f} mm3 {why} were dropped"))


def _without_pancreas(prediction: Prediction, step: str, of: PancreasOf) -> Prediction:
    who = "the members" if of == "members" else "the localizer"
    message = f"{who} found no pancreas, so the step '{step}' kept all components"
    return prediction.changed(prediction.mask, Event(EventCode.STEP_SKIPPED, message))
