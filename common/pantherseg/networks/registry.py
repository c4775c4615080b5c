"""Families of networks, and how a network is built from the plain data that describes it.

A family is a Table of settings that is registered under its name:

    @register_network("my_family")
    class MyFamily(Table, Architecture, frozen=True):
        width: int

        def build(self, where: Path, *, classes: int) -> nn.Module: ...

The plain data are then `{"family": "my_family", "width": 8}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pantherseg.errors import ModelError
from pantherseg.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn


class Architecture:
    """The settings of a network of one family."""

    registry: ClassVar[Registry[Architecture]] = Registry("network family", tag="family")

    def build(self, where: Path, *, classes: int) -> nn.Module:
        """Return a network that maps a patch (1, 1, *patch) to logits (1, classes, *patch), weights not loaded.

        Norms may keep running statistics, as in training.

        Raises ModelError naming the file `where`, which holds the settings.
        """
        raise NotImplementedError


register_network = Architecture.registry.register


def build_network(
    where: Path, architecture: Mapping[str, Any], *, classes: int, running_statistics: bool = False
) -> nn.Module:
    """Return the network that plain data describe, in evaluation mode and without its weights.

    classes: number of classes, background included. running_statistics: keep norms that track running statistics, as
    training saves them; by default, each of them is replaced by a `RunningNorm`. Raises ModelError naming the file
    `where`, which holds the data, for an unknown family and for settings from which the network cannot be built.
    """
    try:
        settings = Architecture.registry.decode(architecture)
    except ValueError as error:
        raise ModelError(where, expected="a network that can be built", found=str(error)) from error
    network = settings.build(where, classes=classes).eval()
    if running_statistics:
        return network
    from pantherseg.networks.running_norm import use_running_statistics

    return use_running_statistics(network)


def distinct_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network, each once under its first name: modules may share them."""
    first: dict[int, str] = {}
    state = network.state_dict()
    for name, value in state.items():
        first.setdefault(value.data_ptr(), name)
    return {name: state[name] for name in first.values()}
