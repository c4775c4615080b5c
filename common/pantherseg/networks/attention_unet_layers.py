"""The torch modules of the family `attention_unet`. Features are (n, channels, z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from pantherseg.networks.blocks import SLOPE, AttentionGate, SqueezeExcitation, convolution


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input, then a squeeze-and-excitation.

    The input passes a convolution of one voxel where its channels or its size change. The excitation comes after the
    sum and its activation (SE-POST in section 6.5 of Hu et al.): before them, each channel has just passed an instance
    norm, and so its mean would be the norm's bias whatever the input.
    """

    def __init__(self, inputs: int, outputs: int, *, squeeze: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs, activation=False)
        self.excitation = SqueezeExcitation(outputs, squeeze)
        changes = inputs != outputs or stride != 1
        self.shortcut = (
            convolution(inputs, outputs, kernel=1, stride=stride, activation=False) if changes else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, *patch) to (n, outputs, *patch / stride)."""
        added = self.second(self.first(x)) + self.shortcut(x)
        weighed: torch.Tensor = self.excitation(functional.leaky_relu(added, SLOPE))
        return weighed


class DecoderLevel(nn.Module):
    """Doubles the resolution of coarse features and joins them with the skip, weighed by an attention gate."""

    def __init__(self, coarse: int, skip: int, *, squeeze: int) -> None:
        super().__init__()
        self.upwards = nn.ConvTranspose3d(coarse, skip, 2, stride=2)
        self.gate = AttentionGate(skip, coarse)
        self.block = ResidualBlock(2 * skip, skip, squeeze=squeeze)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Map (n, coarse, *patch / 2) and (n, skip, *patch) to (n, skip, *patch)."""
        joined: torch.Tensor = self.block(torch.cat([self.upwards(coarse), self.gate(skip, coarse)], 1))
        return joined


class AttentionUnetLayers(nn.Module):
    """The network. features: of each level, from full resolution down. auxiliary: with heads for deep supervision."""

    def __init__(self, features: Sequence[int], classes: int, *, squeeze: int, auxiliary: bool) -> None:
        super().__init__()
        downwards = [ResidualBlock(above, below, squeeze=squeeze, stride=2) for above, below in pairwise(features)]
        self.encoder = nn.ModuleList([ResidualBlock(1, features[0], squeeze=squeeze), *downwards])
        upwards = [DecoderLevel(below, above, squeeze=squeeze) for above, below in pairwise(features)]
        self.decoder = nn.ModuleList(reversed(upwards))
        self.head = nn.Conv3d(features[0], classes, 1)
        # From the finest to the coarsest.
        self.auxiliary_heads = nn.ModuleList(
            nn.Conv3d(width, classes, 1) for width in (features[1:-1] if auxiliary else ())
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map (n, 1, *patch) to logits (n, classes, *patch); see `Architecture.build_trainable` for training mode."""
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        decoded: list[torch.Tensor] = []
        for level in self.decoder:
            x = level(x, skips.pop())
            decoded.insert(0, x)
        logits: torch.Tensor = self.head(x)
        if not self.training or not self.auxiliary_heads:
            return logits
        coarser = zip(self.auxiliary_heads, decoded[1:], strict=True)
        return [logits, *(head(features) for head, features in coarser)]
