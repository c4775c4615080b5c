"""Finding the pancreas: a box around it, or an event that gives the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from pantherseg.orientation import Orientation, Turn
from pantherseg.packing.pack import Packer
from pantherseg.recipe import Localizer
from pantherseg.volume import Box, Grid, Shape, Triple, Volume, as_triple

# Voxels brighter than this share of the 99th percentile count as body; air is darker in MR.
BODY_LEVEL = 0.1
# The orientation in which the axes z, y, x of a recipe's margin and extent run.
PATIENT: Orientation = "LPS"
# Of the components that the largest plausible one is chosen from.
MAX_CANDIDATES = 5

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
        mirroring=settings.mirroring,
        keep_networks=keep_networks,
        allow_bfloat16=allow_bfloat16,
        orientation=settings.orientation,
    )


@dataclass(frozen=True)
class Pancreas:
    """The pancreas as a localizer marks it.

    box: the smallest around it, in voxels of the volume; centre_mm: its centroid, (x, y, z) in LPS; ml: its volume;
    left_out_ml: volume of what the localizer marks elsewhere, which the recipe leaves out.
    """

    box: Box
    centre_mm: Triple
    ml: float
    left_out_ml: float

    def turned(self, turn: Turn, shape: Shape) -> Pancreas:
        """Return the same after a turn of a volume of a shape (z, y, x)."""
        return replace(self, box=self.box.turned(turn, shape))


@dataclass(frozen=True)
class Located:
    """Where to look in a volume.

    box, pancreas, marked: None where no plausible pancreas was found; events say why. marked: the voxels of the
    pancreas (uint8, 1 where it is) on the grid that the localizer saw.
    """

    box: Box | None
    events: tuple[Event, ...]
    pancreas: Pancreas | None = None
    marked: Volume | None = None

    def pancreas_on(self, grid: Grid) -> NDArray[np.bool_]:
        """Return the pancreas, (z, y, x) on a grid, of whose voxel centres each gets the value of the nearest voxel."""
        if self.marked is None:
            return np.zeros(grid.shape, bool)
        empty = to_itk(Volume(np.zeros(grid.shape, np.uint8), grid))
        found = from_itk(sitk.Resample(to_itk(self.marked), empty, sitk.Transform(), sitk.sitkNearestNeighbor))
        mask: NDArray[np.bool_] = found.array > 0
        return mask


def localize(volume: Volume, predictor: Predictor, settings: Localizer, deadline: Deadline = NEVER) -> Located:
    """Return the box around the pancreas with the recipe's margin, in voxels of `volume`.

    There is no box where no plausible pancreas was found before the deadline. Raises what `Predictor.predict` raises,
    and InputError where the volume would be too large at the localizer's spacing.
    """
    resampled = copy_to_search(volume.turned_to(predictor.trained_orientation), settings)
    logits = predictor.predict(resampled, deadline)
    if not logits.is_complete:
        reason = "the localizer had too little time to search everywhere"
        return Located(None, (*logits.events, searched_whole(EventCode.LOCALIZER_FAILED, reason)))
    components = Components.of(logits.mask(settings.label))
    if not components.numbers:
        reason = "the localizer found no pancreas"
        return Located(None, (*logits.events, searched_whole(EventCode.NO_PANCREAS_FOUND, reason)))
    reasons = []
    for chosen in _candidates(components, settings, resampled.grid):
        mask = components.mask(chosen)
        inner = Box.around(mask)
        assert inner is not None  # there is at least one component
        box = volume.grid.box_from(resampled.grid, inner)
        reason = _implausible(resampled, inner, volume, with_margin(box, settings, volume.grid), settings)
        if not reason:
            found = _pancreas(components, mask, resampled.grid, box)
            marked = Volume(mask.astype(np.uint8), resampled.grid)
            return Located(with_surroundings(box, settings, volume.grid), logits.events, found, marked)
        reasons.append(f"the localizer's box {reason}")
    return Located(None, (*logits.events, searched_whole(EventCode.IMPLAUSIBLE_BOX, reasons[0])))


def copy_to_search(volume: Volume, settings: Localizer) -> Volume:
    """Return the copy of a volume that the localizer sees by the recipe: coarser, or the volume itself.

    Raises InputError for a copy that would be too large.
    """
    if settings.half_resolution:
        return _resampled(volume, as_triple(2 * np.array(volume.grid.spacing)))
    return volume if settings.spacing is None else _resampled(volume, settings.spacing)


def with_margin(box: Box, settings: Localizer, grid: Grid) -> Box:
    """Return a box of a grid of any orientation with the recipe's margin, clipped to the grid."""
    return box.expanded(_on_axes_of(grid, settings.margin_mm), grid)


def with_surroundings(box: Box, settings: Localizer, grid: Grid) -> Box:
    """Return a box of a grid of any orientation with the recipe's margin and at least its minimum extent."""
    return with_margin(box, settings, grid).grown(_on_axes_of(grid, settings.min_extent_mm), grid)


def _on_axes_of(grid: Grid, lengths: float | tuple[float, ...]) -> float | Triple:
    """Return lengths (z, y, x), along, from front to back of and across the patient, in the order of a grid's axes."""
    if not isinstance(lengths, tuple):
        return lengths
    return Turn.between(PATIENT, grid.orientation).order(as_triple(lengths))


@dataclass(frozen=True)
class Components:
    """The connected components of a mask (z, y, x).

    array: number of the component of each voxel, 0 for none; numbers: of the components, the largest first; voxels: of
    each number.
    """

    array: NDArray[np.integer]
    numbers: tuple[int, ...]
    voxels: NDArray[np.int64]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Components:
        """Find the components of a mask; voxels are neighbours if they share a face."""
        from scipy import ndimage  # takes long to import, and is not needed before the networks run

        array, count = ndimage.label(mask)
        voxels = np.bincount(array.ravel(), minlength=count + 1)
        voxels[0] = 0
        largest_first = np.argsort(-voxels, kind="stable")[:count]
        return cls(array, tuple(map(int, largest_first)), voxels)

    def mask(self, chosen: Sequence[int]) -> NDArray[np.bool_]:
        """Return the mask of some of the components."""
        wanted = np.zeros(len(self.voxels), bool)
        wanted[list(chosen)] = True
        mask: NDArray[np.bool_] = wanted[self.array]
        return mask


def _candidates(components: Components, settings: Localizer, grid: Grid) -> list[tuple[int, ...]]:
    """Return what may be the pancreas, each as numbers of components: first what is the most likely."""
    min_voxels = settings.min_component_mm3 / grid.voxel_mm3
    large = tuple(number for number in components.numbers if components.voxels[number] >= min_voxels)
    kept = large or components.numbers
    return [kept] if settings.components == "all" else [(number,) for number in kept[:MAX_CANDIDATES]]


def _pancreas(components: Components, mask: NDArray[np.bool_], grid: Grid, box: Box) -> Pancreas:
    """Return what is said about the mask of chosen components of a grid, which are in a box of the volume."""
    voxels = int(mask.sum())
    centre = np.argwhere(mask).mean(axis=0)[::-1] * grid.spacing[::-1]
    return Pancreas(
        box,
        centre_mm=as_triple(np.array(grid.origin) + np.array(grid.direction) @ centre),
        ml=voxels * grid.voxel_mm3 / 1000,
        left_out_ml=(int(components.voxels.sum()) - voxels) * grid.voxel_mm3 / 1000,
    )


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


def _resampled(volume: Volume, spacing: Triple) -> Volume:
    """Return the volume at a spacing (z, y, x) in mm, by linear interpolation."""
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
