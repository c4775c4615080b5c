"""nnU-Net's preprocessing of one volume, and the way back for its logits.

Transpose, crop to the voxels that are not 0, normalise, resample: in nnU-Net's order and with its dtypes and memory
layouts, as the last bit of a mean depends on them. Arrays are (z, y, x), spacings mm along (z, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.arrays import Array, namespace, zeros_like
from pantherseg.errors import InputError
from pantherseg.io.limits import check_resampled
from pantherseg.preprocessing.resample import Resampling, Resizer
from pantherseg.tables import Positive, Table
from pantherseg.volume import Box, Shape, Triple

# A logit at which the background is certain: where the crop to voxels that are not 0 has cut the volume.
CERTAIN = 50.0
# nnU-Net divides by nothing smaller.
SMALLEST_DIVISOR = 1e-8


class Normalization(Table, frozen=True):
    """How a volume's intensities are scaled; the names are nnU-Net's."""

    scheme: Literal[
        "ZScoreNormalization",
        "CTNormalization",
        "NoNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
    ]
    use_mask: bool
    """For z-scores: leave out the voxels that are 0 and not enclosed by others."""
    mean: float | None = None
    """Of the training foreground, as are the next three; for CTNormalization, which needs all of them."""
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None

    def __post_init__(self) -> None:
        foreground = (self.mean, self.std, self.percentile_00_5, self.percentile_99_5)
        if self.scheme == "CTNormalization" and None in foreground:
            raise ValueError("CTNormalization needs mean, std, percentile_00_5 and percentile_99_5")

    def run(self, image: NDArray[np.float32]) -> None:
        """Normalise an image (z, y, x) in place. Raises InputError where the scheme cannot take its values."""
        if self.scheme == "ZScoreNormalization":
            self._z_score(image)
        elif self.scheme == "CTNormalization":
            assert self.mean is not None  # see __post_init__
            assert self.std is not None
            np.clip(image, self.percentile_00_5, self.percentile_99_5, out=image)
            image -= self.mean
            image /= max(self.std, SMALLEST_DIVISOR)
        elif self.scheme == "RescaleTo01Normalization":
            image -= image.min()
            image /= max(image.max(), SMALLEST_DIVISOR)
        elif self.scheme == "RGBTo01Normalization":
            low, high = image.min(), image.max()
            if low < 0 or high > 255:
                raise InputError("volume", expected="values from 0 to 255", found=f"{low:g} to {high:g}")
            image /= 255.0

    def _z_score(self, image: NDArray[np.float32]) -> None:
        if not self.use_mask:
            mean, std = image.mean(), image.std()
            image -= mean
            image /= max(std, SMALLEST_DIVISOR)
            return
        from scipy import ndimage  # takes long to import, and most models need none of it

        mask = ndimage.binary_fill_holes(image != 0)
        if not mask.any():
            return
        inside = image[mask]
        image[mask] = (inside - inside.mean()) / max(inside.std(), SMALLEST_DIVISOR)


class Preprocessing(Table, frozen=True):
    """What one model's plans do to a volume before the network sees it."""

    spacing: Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=3)]
    """The network's, in its own axes; two entries for a 2-D network, whose slices stay where they are."""
    transpose: tuple[int, int, int]
    """The network's axes: which of the volume's axes comes first, second and third."""
    normalization: Normalization
    images: Resampling
    logits: Resampling

    def __post_init__(self) -> None:
        if sorted(self.transpose) != [0, 1, 2]:
            raise ValueError(f"transpose must name the axes 0, 1 and 2 once each, got {self.transpose}")

    def run(self, array: NDArray[np.float32], spacing: Triple) -> Prepared:
        """Return a volume (z, y, x) as the network sees it, at least a voxel a side; the array is left as it is.

        spacing: mm along (z, y, x). Raises InputError for a volume that is too large at the network's spacing.
        """
        shape: Shape = array.shape
        given: Triple = tuple(spacing[axis] for axis in self.transpose)  # type: ignore[assignment]
        target: Triple = (given[0], *self.spacing)[-3:]  # type: ignore[assignment]
        data = array[None].astype(np.float32).transpose(0, *(axis + 1 for axis in self.transpose))
        box = Box.around(data[0] != 0) or Box.whole(data.shape[1:])
        # nnU-Net has no answer to what is thinner than half a voxel of the network's.
        new_shape: Shape = tuple(  # type: ignore[assignment]
            max(1, round(old / new * n)) for old, new, n in zip(given, target, box.shape, strict=True)
        )
        check_resampled(new_shape, target)
        data = data[:, *box.slices]
        self.normalization.run(data[0])
        back = WayBack(shape, self.transpose, box, self.logits.resizer(new_shape, box.shape, target, given))
        return Prepared(self.images.resizer(box.shape, new_shape, given, target).resize(data), back)


@dataclass(frozen=True, eq=False)
class WayBack:
    """From logits on the network's grid to the volume's own.

    shape: the volume's (z, y, x); transpose: the network's axes among the volume's; box: what was cropped to, and
    resizer: from the network's grid to that box, both in the network's axes.
    """

    shape: Shape
    transpose: tuple[int, int, int]
    box: Box
    resizer: Resizer

    def slab(self, logits: Array, start: int, stop: int) -> Array:
        """Return logits (class, z, y, x) of the network as (class, stop - start, y, x) of the volume.

        start, stop: slices of the volume along z. Outside the box class 0 has the logit CERTAIN, and others 0.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"slices {start} to {stop} are no slab of a volume of {self.shape[0]}")
        axis = self.transpose.index(0)
        shape = [self.shape[own] for own in self.transpose]
        shape[axis] = stop - start
        result = zeros_like(logits, (len(logits), *shape), self.resizer.result_type(logits))
        result[0] = CERTAIN
        # The slices that lie in the box, counted from the slab's first.
        first, last = max(self.box.start[axis] - start, 0), min(self.box.stop[axis] - start, stop - start)
        if first < last:
            inside: list[slice] = list(self.box.slices)
            inside[axis] = slice(first, last)
            offset = start - self.box.start[axis]
            result[:, *inside] = self.resizer.slab(logits, axis, first + offset, last + offset)
        return namespace(logits).permute_dims(result, (0, *(int(own) + 1 for own in np.argsort(self.transpose))))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as the network sees it: data (1, z, y, x) in the network's axes, and the way back for its logits."""

    data: NDArray[np.float32]
    back: WayBack
