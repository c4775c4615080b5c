"""Logits -> tumour mask: components, and what to do when nothing is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg.errors import Event
from pantherseg.recipe import Postprocess

# Voxels that touch in a face, an edge or a corner belong together.
TOUCHING = np.ones((3, 3, 3), bool)
# The rescued component reaches down to this share of its peak.
RESCUE_SHARE = 0.5


def tumour_mask(
    logits: NDArray[np.float32], tumour: int, voxel_mm3: float, settings: Postprocess, *, rescue: bool
) -> tuple[NDArray[np.uint8], tuple[Event, ...]]:
    """Return the mask (z, y, x) of the voxels whose largest logit (class, z, y, x) is the tumour's, and what was done.

    Components are dropped as the settings say. A mask that is empty then is filled with the most probable component
    if `rescue`, and stays empty with an event if not.
    """
    mask = logits.argmax(axis=0) == tumour
    kept = _kept_components(mask, settings.min_component_mm3 / voxel_mm3, settings.max_components)
    events: tuple[Event, ...] = ()
    if dropped := int(mask.sum()) - int(kept.sum()):
        events += (Event("components_dropped", f"{dropped * voxel_mm3:.0f} mm3 in small components were dropped"),)
    if not kept.any():
        if rescue:
            kept = _most_probable(tumour_probability(logits, tumour), settings.rescue_max_mm3 / voxel_mm3)
            message = f"no tumour was found; the most probable {kept.sum() * voxel_mm3:.0f} mm3 were marked"
            events += (Event("empty_mask_rescued", message),)
        else:
            events += (Event("empty_mask", "no tumour was found"),)
    return kept.astype(np.uint8), events


def tumour_probability(logits: NDArray[np.float32], tumour: int) -> NDArray[np.float32]:
    """Return the softmax of one class, (z, y, x)."""
    shifted = np.exp(logits - logits.max(axis=0))
    probability: NDArray[np.float32] = shifted[tumour] / shifted.sum(axis=0)
    return probability


def _kept_components(mask: NDArray[np.bool_], min_voxels: float, at_most: int | None) -> NDArray[np.bool_]:
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
    components, _ = ndimage.label(mask, TOUCHING)
    found: NDArray[np.bool_] = components == components[voxel]
    return found
