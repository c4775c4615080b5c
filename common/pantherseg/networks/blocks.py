"""Blocks of torch networks that several families use. Features are (n, channels, z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

SLOPE = 0.01


def convolution(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, activation: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, an instance norm and, if wanted, a leaky ReLU.

    The size is kept, or divided by the stride and rounded up.
    """
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = [
        nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
    ]
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE)) if activation else nn.Sequential(*layers)


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return features (n, channels, *any) interpolated trilinearly to (n, channels, *size)."""
    # The numbers become constants of an exported graph.
    numbers = [int(length) for length in size]
    return functional.interpolate(x, size=numbers, mode="trilinear", align_corners=False)


class SqueezeExcitation(nn.Module):
    """Weighs channels by their means (Hu et al., CVPR 2018). squeeze: by how much the middle layer is narrower."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        narrow = max(1, channels // squeeze)
        self.narrow, self.wide = nn.Conv3d(channels, narrow, 1), nn.Conv3d(narrow, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh (n, channels, *patch)."""
        means = x.mean((2, 3, 4), keepdim=True)
        return x * torch.sigmoid(self.wide(functional.relu(self.narrow(means))))


class SpatialAndChannelExcitation(nn.Module):
    """scSE (Roy et al., MICCAI 2018): the sum of features weighed by channel and features weighed by voxel."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.channel, self.spatial = SqueezeExcitation(channels, squeeze), nn.Conv3d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh (n, channels, *patch)."""
        weighed: torch.Tensor = self.channel(x) + x * torch.sigmoid(self.spatial(x))
        return weighed


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay et al. 2018, equations 1 and 2): weighs voxels of a skip by coarser features.

    alpha = sigmoid(psi(relu(theta(skip) + phi(coarse)))), where phi(coarse) is interpolated to the size of the skip.
    """

    def __init__(self, skip: int, coarse: int) -> None:
        super().__init__()
        middle = max(1, skip // 2)
        self.theta, self.phi = nn.Conv3d(skip, middle, 1, bias=False), nn.Conv3d(coarse, middle, 1)
        self.psi = nn.Conv3d(middle, 1, 1)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Weigh the skip (n, channels, *patch) by coarser features (n, channels, *smaller)."""
        added = self.theta(skip) + resized(self.phi(coarse), skip.shape[2:])
        return skip * torch.sigmoid(self.psi(functional.relu(added)))
