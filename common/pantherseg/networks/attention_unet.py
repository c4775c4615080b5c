"""System B: a residual U-Net with squeeze-and-excitation and attention gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from pantherseg.networks.patches import check_patch
from pantherseg.networks.registry import Architecture, register_network
from pantherseg.tables import Table

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Meta(ge=1)]


@register_network("attention_unet")
class AttentionUnet(Table, Architecture, frozen=True):
    """A 3-D U-Net of residual blocks. The defaults of the first two settings are the published ones."""

    base_features: Count = 32
    """Features at full resolution; each level below has twice as many."""
    depth: Annotated[int, Meta(ge=1, le=8)] = 4
    """How often the resolution is halved."""
    squeeze: Count = 16
    """By how much the middle layer of a squeeze-and-excitation is narrower than its input."""

    def build(self, where: Path, *, classes: int) -> nn.Module:
        """See `Architecture.build`."""
        return self._network(classes, auxiliary=False)

    def build_trainable(self, where: Path, *, classes: int) -> nn.Module:
        """See `Architecture.build_trainable`: a head at every level between full resolution and the lowest."""
        return self._network(classes, auxiliary=True)

    def check_patch(self, patch: tuple[int, ...]) -> None:
        """See `Architecture.check_patch`. Each side must be a multiple of 2^depth."""
        check_patch(patch, divisor=2**self.depth, deepest=2**self.depth)

    def _network(self, classes: int, *, auxiliary: bool) -> nn.Module:
        from pantherseg.networks.attention_unet_layers import AttentionUnetLayers  # imports torch

        features = [self.base_features * 2**level for level in range(self.depth + 1)]
        return AttentionUnetLayers(features, classes, squeeze=self.squeeze, auxiliary=auxiliary)
