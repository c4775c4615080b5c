"""Norms that keep running statistics, as batch norm does, in the form that they have in inference."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class RunningNorm(nn.Module):
    """A norm with the statistics of its training: one scale and one shift for each channel.

    scale = weight / sqrt(running_var + eps) and shift = bias - running_mean * scale, without weight and bias for a norm
    that has none. They are computed once; torch's kernel for CPUs computes the same values for every input.
    """

    def __init__(self, norm: nn.modules.batchnorm._NormBase) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale = 1 / torch.sqrt(norm.running_var + norm.eps)
            if norm.affine:
                scale = scale * norm.weight
            shift = -norm.running_mean * scale
            if norm.affine:
                shift = norm.bias + shift
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift (1, channel, *patch)."""
        mean, variance = torch.zeros_like(self.shift), torch.ones_like(self.scale)
        # A batch norm computes in float32 for float16 features too. torch refuses eps = 0; the smallest positive
        # float32 does not change a variance of 1.
        eps = torch.finfo(torch.float32).tiny
        return functional.batch_norm(x, mean, variance, self.scale, self.shift, eps=eps)


def running_norms(network: nn.Module) -> dict[str, nn.modules.batchnorm._NormBase]:
    """Return the norms of a network that keep running statistics, each once under its first name."""
    kind = nn.modules.batchnorm._NormBase
    return {
        name: norm for name, norm in network.named_modules() if isinstance(norm, kind) and norm.running_mean is not None
    }


def use_running_statistics(network: nn.Module) -> nn.Module:
    """Replace every norm that keeps running statistics, also where modules share one, and return the network."""
    replaced = {norm: RunningNorm(norm) for norm in running_norms(network).values()}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in replaced:
                setattr(module, name, replaced[child])
    return network
