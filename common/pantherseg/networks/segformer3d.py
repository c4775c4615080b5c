"""System D: a variant of SegFormer3D."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from pantherseg.networks.patches import check_patch
from pantherseg.networks.registry import Architecture, register_network
from pantherseg.tables import Table

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Meta(ge=1)]
Stages = tuple[Count, Count, Count, Count]
# By how much the features of each stage are smaller than the patch.
STRIDES = (4, 8, 16, 32)


@register_network("segformer3d")
class SegFormer3D(Table, Architecture, frozen=True):
    """A hierarchical transformer (Perera et al. 2024) with a convolutional stem and a feature pyramid as its decoder.

    The defaults of the first six settings are the published ones.
    """

    embeddings: Stages = (32, 64, 160, 256)
    """Features of each stage, the first at a quarter of the resolution, each other at half of the one before."""
    depths: Stages = (2, 2, 2, 2)
    """Transformer blocks of each stage."""
    heads: Stages = (1, 2, 5, 8)
    """Heads of the attention in each stage."""
    reductions: Stages = (4, 2, 1, 1)
    """By how much keys and values are coarser than queries along each axis, in each stage."""
    expansion: Count = 4
    """By how much the hidden layer of a block is wider than its input."""
    rates: Annotated[tuple[Count, ...], Meta(min_length=1)] = (1, 2, 3)
    """Dilations of the convolutions in the spatial pyramid pooling (ASPP)."""
    decoder_features: Count = 128
    """Features of each level of the decoder."""
    squeeze: Count = 16
    """By how much the middle layer of an scSE is narrower than its input."""

    def __post_init__(self) -> None:
        if any(width % heads for width, heads in zip(self.embeddings, self.heads, strict=True)):
            raise ValueError(f"embeddings must be multiples of heads, got {self.embeddings} and {self.heads}")

    def build(self, where: Path, *, classes: int) -> nn.Module:
        """See `Architecture.build`."""
        return self._network(classes, auxiliary=False)

    def build_trainable(self, where: Path, *, classes: int) -> nn.Module:
        """See `Architecture.build_trainable`: one head at a quarter of the resolution."""
        return self._network(classes, auxiliary=True)

    def check_patch(self, patch: tuple[int, ...]) -> None:
        """See `Architecture.check_patch`. By default, each side must be a multiple of 16.

        Keys must cover whole blocks of queries. The last stage may end in half a block where its keys are not coarser.
        """
        strides = STRIDES if self.reductions[-1] > 1 else STRIDES[:-1]
        divisor = math.lcm(*(stride * rate for stride, rate in zip(strides, self.reductions, strict=False)))
        check_patch(patch, divisor=divisor, deepest=STRIDES[-1])

    def _network(self, classes: int, *, auxiliary: bool) -> nn.Module:
        from pantherseg.networks.segformer3d_layers import SegFormer3DLayers  # imports torch

        return SegFormer3DLayers(self, classes, auxiliary=auxiliary)
