"""Finding the pancreas: a box around it, or an event that gives the reason why there is none."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from pantherseg.events import Event, EventCode
from pantherseg.inference.backends import Backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io.itk import from_itk, to_itk
from pantherseg.io.limits import check_resampled
from pantherseg.machine.deadline import NEVER, Deadline
from pantherseg.models.find import Model
from pantherseg.packing.pack import Packer
from pantherseg.recipe import Localizer
from pantherseg.volume import Box, Triple, Volume

# Voxels brighter than this share of the 99th percentile count as body; air is darker in MR.
BODY_LEVEL = 0.1


# What the messages of events without a box end with.
SEARCHED_WHOLE = "; the whole volume was searched"


def searched_whole(code: EventCode, reason: str) -> Event:
    """Return an event for a volume that was searched without a box, with the reason."""
    return Event(code, reason + SEARCHED_WHOLE)


def localizer_predictor(
    model: Model,
    settings: Localizer,
    packer: Packer,
    backend: Backend,
    *,
    keep_networks: bool = False,
    allow_bfloat16: bool = False,
) -> Predictor:
    """Return a recipe's localizer, ready on a device.

    packer: of this model, and perhaps of others; keep_networks, allow_bfloat16: as for `Predictor`. Raises ModelError,
    DeviceMemoryError, and RecipeError if the model lacks the recipe's label.
    """
    bundle = packer.bundle(model)
    bundle.check_label("label", settings.label)
    return Predictor(
        bundle,
        backend,
        step=settings.step,
        keep_networks=keep_networks,
        allow_bfloat16=allow_bfloat16,
        orientation=settings.orientation,
    )


def localize(
    volume: Volume, predictor: Predictor, settings: Localizer, deadline: Deadline = NEVER
) -> tuple[Box | None, tuple[Event, ...]]:
    """Return the box around the pancreas with the recipe's margin, in voxels of `volume`, and events.

    The box is None where no plausible pancreas was found before the deadline. Raises what `Predictor.predict` raises,
    and InputError where the volume would be too large at the localizer's spacing.
    """
    resampled = _resampled(volume.turned_to(predictor.trained_orientation), settings.spacing)
    logits = predictor.predict(resampled, deadline)
    if not logits.is_complete:
        reason = "the localizer had too little time to search everywhere"
        return None, (*logits.events, searched_whole(EventCode.LOCALIZER_FAILED, reason))
    min_voxels = settings.min_component_mm3 / resampled.grid.voxel_mm3
    pancreas = _without_small_components(logits.labels() == settings.label, min_voxels)
    box = Box.around(pancreas)
    if box is None:
        reason = "the localizer found no pancreas"
        return None, (*logits.events, searched_whole(EventCode.NO_PANCREAS_FOUND, reason))
    found = volume.grid.box_from(resampled.grid, box).expanded(settings.margin_mm, volume.grid)
    if reason := _implausible(resampled, box, volume, found, settings):
        reason = f"the localizer's box {reason}"
        return None, (*logits.events, searched_whole(EventCode.IMPLAUSIBLE_BOX, reason))
    return found, logits.events


def _implausible(resampled: Volume, box: Box, volume: Volume, found: Box, settings: Localizer) -> str:
    """Return why a box cannot hold the pancreas, or an empty string.

    box: in voxels of `resampled`; found: the same with the margin, in voxels of `volume`.
    """
    sides = [size * mm for size, mm in zip(box.shape, resampled.grid.spacing, strict=True)]
    if min(sides) < settings.min_side_mm:
        return f"is {'x'.join(f'{side:.0f}' for side in sides)} mm (z, y, x) before the margin, which is too small"
    share = float(np.prod(found.shape)) / float(np.prod(volume.grid.shape))
    if share > settings.max_share:
        return f"holds {share:.0%} of the volume"
    inside = resampled.array[box.slices]
    body = float((inside > BODY_LEVEL * np.percentile(resampled.array, 99)).mean())
    if body < settings.min_body_share:
        return f"lies outside the body: {1 - body:.0%} of it is air"
    return ""


def _resampled(volume: Volume, spacing: Triple | None) -> Volume:
    """Return the volume at a spacing (z, y, x) in mm if there is one, by linear interpolation."""
    if spacing is None:
        return volume
    image = to_itk(volume)
    old = np.array(image.GetSpacing())
    new = np.array(spacing[::-1])
    size = np.maximum(1, np.rint(np.array(image.GetSize()) * old / new)).astype(int)
    check_resampled((int(size[2]), int(size[1]), int(size[0])), spacing)
    direction = np.reshape(image.GetDirection(), (3, 3))
    resample = sitk.ResampleImageFilter()
    resample.SetSize(size.tolist())
    resample.SetOutputSpacing(new.tolist())
    # Align the outer faces of the first voxels instead of their centres.
    resample.SetOutputOrigin((np.array(image.GetOrigin()) + direction @ (new - old) / 2).tolist())
    resample.SetOutputDirection(image.GetDirection())
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    return from_itk(resample.Execute(image))


def _without_small_components(mask: NDArray[np.bool_], min_voxels: float) -> NDArray[np.bool_]:
    """Return a mask without components below `min_voxels`, or the mask itself where no other is left."""
    from scipy import ndimage  # takes long to import, and is not needed before the networks run

    components, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel())
    keep = sizes >= min_voxels
    keep[0] = False
    kept: NDArray[np.bool_] = keep[components] if keep.any() else mask
    return kept
