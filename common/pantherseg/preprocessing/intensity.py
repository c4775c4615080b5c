"""How the intensities of a volume are normalised: nnU-Net's schemes under nnU-Net's names, and others.

A scheme is a Table of its parameters that is registered under its name; see `pantherseg.registry`. The last bits of
the results depend on the order and the dtype of each operation, which are nnU-Net's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.registry import Registry
from pantherseg.tables import Table

Percentage = Annotated[float, Meta(ge=0, le=100)]
# nnU-Net never divides by less.
SMALLEST_DIVISOR = 1e-8


class IntensityScheme:
    """A way to normalise intensities."""

    registry: ClassVar[Registry[IntensityScheme]] = Registry("intensity scheme", tag="scheme")

    def run(self, image: NDArray[np.float32]) -> None:
        """Normalise an image (z, y, x) in place. Raises InputError for values that the scheme does not accept."""
        raise NotImplementedError


register_intensity_scheme = IntensityScheme.registry.register


@register_intensity_scheme("ZScoreNormalization")
class ZScore(Table, IntensityScheme, frozen=True):
    """Subtract the mean of the image and divide by its standard deviation."""

    use_mask: bool = False
    """Leave out the voxels that are 0, except for those enclosed by others."""

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""
        if not self.use_mask:
            mean, std = image.mean(), image.std()
            image -= mean
            image /= max(std, SMALLEST_DIVISOR)
            return
        from scipy import ndimage  # takes long to import, and most models do not need it

        mask = ndimage.binary_fill_holes(image != 0)
        if not mask.any():
            return
        inside = image[mask]
        image[mask] = (inside - inside.mean()) / max(inside.std(), SMALLEST_DIVISOR)


@register_intensity_scheme("NonZeroZScoreNormalization")
class NonZeroZScore(Table, IntensityScheme, frozen=True):
    """Subtract the mean of the voxels that are not 0, and divide by their standard deviation. Voxels of 0 stay 0."""

    percentiles: tuple[Percentage, Percentage] | None = None
    """First clip to these two percentiles of the voxels that are not 0."""

    def __post_init__(self) -> None:
        if self.percentiles is not None and self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles must be a lower and a higher one, got {self.percentiles}")

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""
        mask = image != 0
        if not mask.any():
            return
        inside = image[mask]
        if self.percentiles is not None:
            np.clip(inside, *np.percentile(inside, self.percentiles).astype(np.float32), out=inside)
        image[mask] = (inside - inside.mean()) / max(inside.std(), SMALLEST_DIVISOR)


@register_intensity_scheme("CTNormalization")
class FixedZScore(Table, IntensityScheme, frozen=True):
    """Clip to percentiles of the foreground of the training images, then subtract their mean and divide by their SD."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""
        np.clip(image, self.percentile_00_5, self.percentile_99_5, out=image)
        image -= self.mean
        image /= max(self.std, SMALLEST_DIVISOR)


@register_intensity_scheme("NoNormalization")
class Unchanged(Table, IntensityScheme, frozen=True):
    """Leave the image as it is."""

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""


@register_intensity_scheme("RescaleTo01Normalization")
class RescaleTo01(Table, IntensityScheme, frozen=True):
    """Map the smallest value to 0 and the largest to 1."""

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""
        image -= image.min()
        image /= max(image.max(), SMALLEST_DIVISOR)


@register_intensity_scheme("RGBTo01Normalization")
class ColourTo01(Table, IntensityScheme, frozen=True):
    """Divide colour values, from 0 to 255, by 255."""

    def run(self, image: NDArray[np.float32]) -> None:
        """See `IntensityScheme.run`."""
        low, high = image.min(), image.max()
        if low < 0 or high > 255:
            raise InputError("volume", expected="values from 0 to 255", found=f"{low:g} to {high:g}")
        image /= 255.0
