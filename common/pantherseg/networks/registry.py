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


# With what the names of the tensors of heads that only training needs begin.
AUXILIARY = "auxiliary_heads."


class Architecture:
    """The settings of a network of one family."""

    registry: ClassVar[Registry[Architecture]] = Registry("network family", tag="family")

    def build(self, where: Path, *, classes: int) -> nn.Module:
        """Return a network that maps a patch (1, 1, *patch) to logits (1, classes, *patch), weights not loaded.

        Norms may keep running statistics, as in training.

        Raises ModelError naming the file `where`, which holds the settings.
        """
        raise NotImplementedError

    def build_trainable(self, where: Path, *, classes: int) -> nn.Module:
        """Return the network of `build` with the heads that only training needs, if the family has any.

        In training mode it maps patches (n, 1, *patch) to a list of logits: at full resolution (n, classes, *patch),
        then of each auxiliary head at its own lower resolution. In evaluation mode it returns the first alone. The
        names of the heads' tensors begin with AUXILIARY, and all other tensors have the names that `build` gives them.
        A family without such heads returns the logits alone in both modes. Raises ModelError as `build` does.
        """
        return self.build(where, classes=classes)

    def check_patch(self, patch: tuple[int, ...]) -> None:
        """Raise ValueError for a patch (z, y, x) that the network cannot process."""


register_network = Architecture.registry.register


def build_network(
    where: Path,
    architecture: Mapping[str, Any],
    *,
    classes: int,
    running_statistics: bool = False,
    trainable: bool = False,
) -> nn.Module:
    """Return the network that plain data describe, in evaluation mode and without its weights.

    classes: number of classes, background included. running_statistics: keep norms that track running statistics, as
    training saves them; by default, each of them is replaced by a `RunningNorm`. trainable: keep these norms, and the
    heads that only training needs, as `Architecture.build_trainable` describes. Raises ModelError naming the file
    `where`, which holds the data, for an unknown family and for settings from which the network cannot be built.
    """
    try:
        settings = Architecture.registry.decode(architecture)
    except ValueError as error:
        raise ModelError(where, expected="a network that can be built", found=str(error)) from error
    build = settings.build_trainable if trainable else settings.build
    network = build(where, classes=classes).eval()
    if running_statistics or trainable:
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
