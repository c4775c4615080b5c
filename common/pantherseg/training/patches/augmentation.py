"""Augmentation by MONAI's transforms, on a dict of the image and the labels of a patch, each (1, z, y, x)."""

from __future__ import annotations

import math
from typing import Any

from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
)

from pantherseg.training.lightning_recipe import LightningSchedule
from pantherseg.volume import Shape, as_shape

IMAGE, LABELS = "image", "labels"
BOTH = (IMAGE, LABELS)
# nnU-Net turns a patch about z alone where its sides differ by more than this, and then by any angle.
ANISOTROPIC = 3
TURN, SCALES, ROOM = math.radians(30), (0.7, 1.4), 0.85


def make_transforms(schedule: LightningSchedule, patch: Shape) -> Compose:
    """Return the transforms for patches of `size_before(schedule, patch)`, which end in patches of the size `patch`."""
    transforms: list[Any] = []
    if schedule.augmentation == "nnunet":
        transforms += _nnunet(patch)
    elif schedule.augmentation == "intensity":
        transforms += [
            RandGaussianNoised(IMAGE, prob=0.2, std=0.1),
            RandScaleIntensityd(IMAGE, factors=0.2, prob=0.3),
            RandShiftIntensityd(IMAGE, offsets=0.2, prob=0.3),
            RandAdjustContrastd(IMAGE, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    transforms += [RandFlipd(BOTH, prob=0.5, spatial_axis=axis) for axis in schedule.mirroring_axes]
    return Compose(transforms)


def size_before(schedule: LightningSchedule, patch: Shape) -> Shape:
    """Return the size of the patches that are cut out: what turns move into the patch is in them too."""
    if schedule.augmentation != "nnunet":
        return patch
    # What a turn by the largest angle moves in, and the scale that nnU-Net allows for; what lies further out is 0.
    if _is_flat(patch):
        diagonal = math.hypot(*patch[1:])
        sides = (math.ceil(min(diagonal, math.sqrt(2) * side) / ROOM) for side in patch[1:])
        return as_shape((patch[0], *sides))
    return as_shape(math.ceil(side * (math.cos(TURN) + math.sin(TURN)) / ROOM) for side in patch)


def _is_flat(patch: Shape) -> bool:
    return max(patch) / min(patch) > ANISOTROPIC


def _nnunet(patch: Shape) -> list[Any]:
    """Return the kinds of nnU-Net's default augmentation with its probabilities and ranges.

    Source: Isensee et al., Nature Methods 2021, supplementary note 4. One draw decides on turning and scaling together.
    """
    flat = _is_flat(patch)
    turns = (math.pi, 0.0, 0.0) if flat else (TURN, TURN, TURN)
    scale = (SCALES[0] - 1, SCALES[1] - 1)
    return [
        RandAffined(
            BOTH,
            prob=0.36,  # of two independent draws with 0.2, at least one
            rotate_range=turns,
            scale_range=((0.0, 0.0) if flat else scale, scale, scale),
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        CenterSpatialCropd(BOTH, patch),
        RandGaussianNoised(IMAGE, prob=0.1, std=0.3),
        RandGaussianSmoothd(IMAGE, prob=0.1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
        RandScaleIntensityd(IMAGE, factors=0.25, prob=0.15),
        RandScaleIntensityFixedMeand(IMAGE, factors=0.25, prob=0.15, preserve_range=True),
        RandSimulateLowResolutiond(IMAGE, prob=0.125, zoom_range=(0.5, 1.0)),
        RandAdjustContrastd(IMAGE, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        RandAdjustContrastd(IMAGE, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]
