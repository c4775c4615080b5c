"""Patches of prepared cases, each drawn by random numbers of its own, so that no order of work changes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from monai.transforms.utils import generate_label_classes_crop_centers
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from pantherseg.model_sources.lightning_plans import LightningPlans
from pantherseg.training.lightning_recipe import LightningSchedule
from pantherseg.training.patches import augmentation
from pantherseg.training.patches.folders import IMAGE, LABELS, VOXELS, PatchFolders
from pantherseg.training.patches.losses import signed_distances
from pantherseg.volume import Shape

T = TypeVar("T", bound=np.generic)
Patch = dict[str, torch.Tensor]


class Patches(Dataset[Patch]):
    """Patches of some cases by their number; the same number always gives the same patch.

    `image` is (1, z, y, x) and `target` (1 + k, z, y, x), see `losses`. augment: whether patches are augmented.
    """

    def __init__(
        self,
        folders: PatchFolders,
        cases: Sequence[str],
        plans: LightningPlans,
        schedule: LightningSchedule,
        *,
        seed: tuple[int, ...],
        augment: bool,
    ) -> None:
        self._folders, self._cases, self._plans, self._schedule = folders, cases, plans, schedule
        self._seed, self._augment = seed, augment
        self._size = augmentation.size_before(schedule, plans.patch_size_zyx) if augment else plans.patch_size_zyx

    @cached_property
    def ratios(self) -> list[float]:
        """How often patches are centred on each label, by its number."""
        names = sorted(self._plans.labels, key=self._plans.labels.__getitem__)
        return [self._schedule.sampling.get(name, 0.0) if self._schedule.sampling else 1.0 for name in names]

    @cached_property
    def _transforms(self) -> Any:
        return augmentation.make_transforms(self._schedule, self._plans.patch_size_zyx)

    def __getitem__(self, number: int) -> Patch:
        """Return a patch; numbers are not limited."""
        seeds = np.random.SeedSequence((*self._seed, number)).generate_state(2)
        image, labels = self._draw(np.random.RandomState(seeds[0]))
        patch = {augmentation.IMAGE: torch.from_numpy(image)[None], augmentation.LABELS: torch.from_numpy(labels)[None]}
        if self._augment:
            self._transforms.set_random_state(seed=int(seeds[1]))
            patch = self._transforms(patch)
        labels = np.asarray(patch[augmentation.LABELS][0]).astype(np.uint8)
        target = labels[None].astype(np.float32)
        if self._schedule.loss.boundary:
            distances = signed_distances(labels, len(self._plans.labels), self._plans.spacing_zyx)
            target = np.concatenate((target, distances))
        return {"image": patch[augmentation.IMAGE].contiguous(), "target": torch.from_numpy(target)}

    def _draw(self, random: np.random.RandomState) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the image and the labels around a voxel of a label that is drawn by the ratios, in a random case."""
        case = self._cases[random.randint(len(self._cases))]
        image, labels = (np.load(self._folders.case(case, what), mmap_mode="r") for what in (IMAGE, LABELS))
        with np.load(self._folders.case(case, VOXELS)) as voxels:
            indices = [voxels[f"label_{label}"] for label in range(len(self._plans.labels))]
        ratios = self.ratios if any(r and len(i) for r, i in zip(self.ratios, indices, strict=True)) else None
        (centre,) = generate_label_classes_crop_centers(
            self._plans.patch_size_zyx, 1, labels.shape, indices, ratios, random, allow_smaller=True, warn=False
        )
        return cut(image, centre, self._size), cut(labels, centre, self._size)


def cut(array: NDArray[T], centre: Sequence[int], size: Shape) -> NDArray[T]:
    """Return a copy of the box of a size (z, y, x) around a voxel, with 0 outside of the array."""
    result = np.zeros(size, array.dtype)
    starts = [middle - side // 2 for middle, side in zip(centre, size, strict=True)]
    inside = [
        (max(start, 0), min(start + side, whole)) for start, side, whole in zip(starts, size, array.shape, strict=True)
    ]
    source = tuple(slice(first, last) for first, last in inside)
    target = tuple(slice(first - start, last - start) for (first, last), start in zip(inside, starts, strict=True))
    result[target] = array[source]
    return result


class EpochNumbers(Sampler[int]):
    """The numbers of the patches of an epoch. Lightning calls `set_epoch` before each epoch.

    patches: how many an epoch has. An epoch, counted from 0, has other patches than those before it.
    """

    def __init__(self, patches: int) -> None:
        self._patches, self._epoch = patches, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of patches of an epoch."""
        return self._patches

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the epoch's patches."""
        first = self._epoch * self._patches
        yield from range(first, first + self._patches)
