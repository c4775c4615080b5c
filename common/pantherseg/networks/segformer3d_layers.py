"""The torch modules of the family `segformer3d`.

Features are (n, channels, z, y, x). Tokens are the same as (n, z * y * x, channels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pantherseg.networks.blocks import SLOPE, AttentionGate, SpatialAndChannelExcitation, convolution, resized

if TYPE_CHECKING:
    from pantherseg.networks.segformer3d import SegFormer3D

# Of the weights of linear layers at the start of training, as in SegFormer (Xie et al., NeurIPS 2021).
INITIAL_STD = 0.02


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """Return features as tokens."""
    return features.flatten(2).transpose(1, 2)


def as_features(tokens: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return tokens as features of a size (z, y, x)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from coarser features (SegFormer3D, section 3.1)."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query, self.key_value, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))
        if reduction > 1:
            self.coarsen = nn.Conv3d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Map tokens of a size (z, y, x) to as many."""
        n, count, width = tokens.shape
        others = tokens
        if self.reduction > 1:
            others = self.norm(as_tokens(self.coarsen(as_features(tokens, size))))
        queries = self.query(tokens).reshape(n, count, self.heads, -1).transpose(1, 2)
        keys, values = self.key_value(others).reshape(n, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(queries @ keys.transpose(2, 3) * (width // self.heads) ** -0.5, dim=-1)
        attended: torch.Tensor = self.out((weights @ values).transpose(1, 2).reshape(n, count, width))
        return attended


class MixedFeedForward(nn.Module):
    """Two linear layers with a depthwise convolution between them, which tells positions apart (section 3.2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.position = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Map tokens of a size (z, y, x) to as many."""
        positioned = as_tokens(self.position(as_features(self.wide(tokens), size)))
        narrowed: torch.Tensor = self.narrow(functional.gelu(positioned))
        return narrowed


class Block(nn.Module):
    """One block of the transformer."""

    def __init__(self, width: int, heads: int, reduction: int, expansion: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = ReducedAttention(width, heads, reduction)
        self.feed_forward = MixedFeedForward(width, expansion * width)

    def forward(self, tokens: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Map tokens of a size (z, y, x) to as many."""
        tokens = tokens + self.attention(self.first_norm(tokens), size)
        result: torch.Tensor = tokens + self.feed_forward(self.second_norm(tokens), size)
        return result


class Stage(nn.Module):
    """Halves the resolution by overlapping patches, then the blocks of one stage."""

    def __init__(self, inputs: int, width: int, blocks: int, heads: int, reduction: int, expansion: int) -> None:
        super().__init__()
        self.embed, self.embed_norm = nn.Conv3d(inputs, width, 3, stride=2, padding=1), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, reduction, expansion) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, *size) to (n, width, *size / 2), rounded up."""
        x = self.embed(x)
        size = tuple(int(length) for length in x.shape[2:])
        tokens = self.embed_norm(as_tokens(x))
        for block in self.blocks:
            tokens = block(tokens, size)
        return as_features(self.norm(tokens), size)


class SpatialPyramidPooling(nn.Module):
    """ASPP (Chen et al. 2017, section 3.3): convolutions of several dilations and the mean, joined."""

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        dilated = [convolution(inputs, outputs, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([convolution(inputs, outputs, kernel=1), *dilated])
        # An instance norm of a single voxel would be zero.
        self.mean = nn.Conv3d(inputs, outputs, 1)
        self.join = convolution((len(self.branches) + 1) * outputs, outputs, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, *size) to (n, outputs, *size)."""
        mean = functional.leaky_relu(self.mean(x.mean((2, 3, 4), keepdim=True)), SLOPE)
        parts = [*(branch(x) for branch in self.branches), mean.expand(-1, -1, *x.shape[2:])]
        joined: torch.Tensor = self.join(torch.cat(parts, 1))
        return joined


class PyramidLevel(nn.Module):
    """One level of the feature pyramid (Lin et al., CVPR 2017): a skip, added to coarser features and smoothed.

    The skip is weighed by an scSE and by an attention gate. The smoothing is depthwise-separable.
    """

    def __init__(self, skip: int, width: int, squeeze: int) -> None:
        super().__init__()
        self.excitation = SpatialAndChannelExcitation(skip, squeeze)
        self.lateral = nn.Conv3d(skip, width, 1)
        self.gate = AttentionGate(width, width)
        self.depthwise = nn.Conv3d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = convolution(width, width, kernel=1)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Map (n, width, *smaller) and (n, skip, *size) to (n, width, *size)."""
        gated = self.gate(self.lateral(self.excitation(skip)), coarse)
        smoothed: torch.Tensor = self.pointwise(self.depthwise(gated + resized(coarse, gated.shape[2:])))
        return smoothed


class SegFormer3DLayers(nn.Module):
    """The network. auxiliary: with the head for deep supervision, at a quarter of the resolution."""

    def __init__(self, settings: SegFormer3D, classes: int, *, auxiliary: bool) -> None:
        super().__init__()
        stem, width = max(1, settings.embeddings[0] // 2), settings.decoder_features
        self.stem = nn.Sequential(convolution(1, stem, stride=2), convolution(stem, stem))
        inputs = (stem, *settings.embeddings[:-1])
        each = (inputs, settings.embeddings, settings.depths, settings.heads, settings.reductions)
        self.stages = nn.ModuleList(Stage(*values, settings.expansion) for values in zip(*each, strict=True))
        self.pooling = SpatialPyramidPooling(settings.embeddings[-1], width, settings.rates)
        self.levels = nn.ModuleList(PyramidLevel(skip, width, settings.squeeze) for skip in reversed(inputs))
        self.head = nn.Conv3d(width, classes, 1)
        self.auxiliary_heads = nn.ModuleList([nn.Conv3d(width, classes, 1)] if auxiliary else [])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map (n, 1, *patch) to logits (n, classes, *patch); see `Architecture.build_trainable` for training mode."""
        patch = x.shape[2:]
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            skips.append(x)
            x = stage(x)
        x = self.pooling(x)
        pyramid = []
        for level in self.levels:
            x = level(x, skips.pop())
            pyramid.append(x)
        logits = resized(self.head(x), patch)
        if not self.training or not self.auxiliary_heads:
            return logits
        (quarter,) = self.auxiliary_heads
        return [logits, quarter(pyramid[-2])]
