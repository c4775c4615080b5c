"""Steps that change the shape of the tumour mask: opening and closing by a ball, and the filling of holes.

The ball has its radius in mm, whatever the spacing: on slices of 3 mm a ball of 2 mm is flat. What lies outside of the
volume counts as background, so that a mask is changed in the same way wherever the volume is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.postprocess.prediction import ROUNDING, Mask, Prediction, Step
from pantherseg.tables import Positive, Table
from pantherseg.volume import Box, Triple, as_shape, uncrop

# In mm. A closing computes with so much room around the mask.
Radius = Annotated[float, Meta(gt=0, le=100)]


@Step.registry.register("opening")
class Opening(Table, Step, frozen=True):
    """Remove what is too thin for a ball to fit in, such as bridges and spikes."""

    mm: Radius
    """The radius of the ball."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Keep the voxels of all balls inside of the mask."""
        spacing = prediction.grid.spacing
        return _reshaped(prediction, 0, lambda mask: _grown(_shrunk(mask, self.mm, spacing), self.mm, spacing))


@Step.registry.register("closing")
class Closing(Table, Step, frozen=True):
    """Fill gaps that are too narrow for a ball to fit in, such as clefts, and spaces between near components."""

    mm: Radius
    """The radius of the ball."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Add the voxels that no ball outside of the mask covers."""
        spacing = prediction.grid.spacing
        return _reshaped(prediction, self.mm, lambda mask: _shrunk(_grown(mask, self.mm, spacing), self.mm, spacing))


@Step.registry.register("fill_holes")
class FillHoles(Table, Step, frozen=True):
    """Fill holes: background that the mask encloses, where only faces of voxels connect the background."""

    max_mm3: Positive | None = None
    """Larger holes are left; without it all are filled."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Add the holes to the mask."""
        max_voxels = np.inf if self.max_mm3 is None else self.max_mm3 / prediction.grid.voxel_mm3
        return _reshaped(prediction, 0, lambda mask: mask | _holes(mask, max_voxels + ROUNDING))


def depth_mm(mask: Mask, spacing: Triple) -> NDArray[np.float64]:
    """Return how far each voxel of a mask (z, y, x) is from the nearest centre outside of it, in mm; 0 outside."""
    from scipy import ndimage  # takes long to import, and is not needed before the networks run

    padded = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)
    depth: NDArray[np.float64] = padded[1:-1, 1:-1, 1:-1]
    return depth


def _shrunk(mask: Mask, radius: float, spacing: Triple) -> Mask:
    """Return the centres of all balls inside of a mask."""
    inside: Mask = depth_mm(mask, spacing) > radius + ROUNDING
    return inside


def _grown(mask: Mask, radius: float, spacing: Triple) -> Mask:
    """Return the voxels of all balls around the voxels of a mask, within the array."""
    from scipy import ndimage

    if not mask.any():
        return mask
    inside: Mask = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius + ROUNDING
    return inside


def _holes(mask: Mask, max_voxels: float) -> Mask:
    from scipy import ndimage

    holes: Mask = ndimage.binary_fill_holes(mask) & ~mask
    if np.isinf(max_voxels):
        return holes
    numbers, _ = ndimage.label(holes)
    small = np.bincount(numbers.ravel()) <= max_voxels
    small[0] = False
    return small[numbers]


def _reshaped(prediction: Prediction, margin_mm: float, reshape: Callable[[Mask], Mask]) -> Prediction:
    """Return the prediction with another shape of the mask.

    reshape: takes and returns the mask in a box with room for `margin_mm` on each side, which may lie outside of the
    volume.
    """
    mask, spacing = prediction.mask, prediction.grid.spacing
    box = Box.around(mask)
    if box is None:
        return prediction
    room = [int(margin_mm / mm + ROUNDING) for mm in spacing]
    changed = reshape(np.pad(mask[box.slices], [(voxels, voxels) for voxels in room]))
    # The box with its room, of which only what lies inside of the volume is kept.
    start = np.subtract(box.start, room)
    stop = np.add(box.stop, room)
    inside = Box(as_shape(np.maximum(start, 0)), as_shape(np.minimum(stop, mask.shape)))
    kept = changed[tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, start, strict=True))]
    return prediction.changed(uncrop(kept, inside, as_shape(mask.shape)))
