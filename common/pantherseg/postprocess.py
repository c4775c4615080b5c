"""Tumour voxels -> tumour mask: components, and what to do when nothing is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pantherseg.events import Event
from pantherseg.recipe import Postprocess

# Voxels that touch in a face, an edge or a corner belong together.
TOUCHING = np.ones((3, 3, 3), bool)
# The rescued component reaches down to this share of its peak.
RESCUE_SHARE = 0.5


def tumour_mask(
    found: NDArray[np.bool_],
    probability: Callable[[], NDArray[np.float32]],
    voxel_mm3: float,
    settings: Postprocess,
    *,
    rescue: bool,
) -> tuple[NDArray[np.uint8], tuple[Event, ...]]:
    """Return the mask (z, y, x) that is left of the voxels `found` to be tumour, and what was done.

    Components are dropped as the settings say. A mask that is empty then is filled with the most probable component
    if `rescue`, for which the tumour's probability (z, y, x) is asked for; without it stays empty, with an event.
    """
    kept = _kept_components(found, settings.min_component_mm3 / voxel_mm3, settings.max_components)
    events: tuple[Event, ...] = ()
    if dropped := int(found.sum()) - int(kept.sum()):
        events += (Event("components_dropped", f"{dropped * voxel_mm3:.0f} mm3 in small components were dropped"),)
    if not kept.any():
        if rescue:
            kept = _most_probable(probability(), settings.rescue_max_mm3 / voxel_mm3)
            message = f"no tumour was found; the most probable {kept.sum() * voxel_mm3:.0f} mm3 were marked"
            events += (Event("empty_mask_rescued", message),)
        else:
            events += (Event("empty_mask", "no tumour was found"),)
    return kept.astype(np.uint8), events


def _kept_components(mask: NDArray[np.bool_], min_voxels: float, at_most: int | None) -> NDArray[np.bool_]:
    from scipy import ndimage  # takes long to import, and is not needed before the networks run

    components, count = ndimage.label(mask, TOUCHING)
    if not count:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest_first = np.argsort(-sizes, kind="stable")[:count]
    keep = np.zeros(len(sizes), bool)
    keep[largest_first[:at_most]] = True
    keep &= sizes >= max(min_voxels, 1)
    kept: NDArray[np.bool_] = keep[components]
    return kept


def _most_probable(probability: NDArray[np.float32], max_voxels: float) -> NDArray[np.bool_]:
    """Return the component around the highest probability, down to half of it and at most `max_voxels` large."""
    peak = np.unravel_index(int(probability.argmax()), probability.shape)
    component = _component_at(probability >= RESCUE_SHARE * probability[peak], peak)
    if component.sum() <= max_voxels:
        return component
    # Too large: what is nearest the peak, of that what is still connected to it.
    places = np.nonzero(component)
    distance = sum((place - int(start)) ** 2 for place, start in zip(places, peak, strict=True))
    nearest = np.argsort(distance, kind="stable")[: max(1, int(max_voxels))]
    near = np.zeros_like(component)
    near[tuple(place[nearest] for place in places)] = True
    return _component_at(near, peak)


def _component_at(mask: NDArray[np.bool_], voxel: tuple[np.intp, ...]) -> NDArray[np.bool_]:
    from scipy import ndimage

    components, _ = ndimage.label(mask, TOUCHING)
    found: NDArray[np.bool_] = components == components[voxel]
    return found
