"""nnU-Net's networks, built from plain data: the trainer that a checkpoint names is never looked up."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pantherseg.errors import ModelError
from pantherseg.models.bundle import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

# Architectures name classes by their import path; nothing outside these packages is ever imported for them.
NETWORK_PACKAGE = "dynamic_network_architectures."
LAYER_PACKAGE = "torch.nn."


def build_network(where: Path, architecture: Architecture, *, classes: int) -> nn.Module:
    """Return a network for one channel in evaluation mode, weights not loaded, without deep supervision.

    Raises ModelError naming `where`, from which the architecture comes, for a class outside nnU-Net's own networks or
    arguments that it does not take.
    """
    name, arguments = architecture.network, dict(architecture.arguments)
    if not name.startswith(NETWORK_PACKAGE):
        raise ModelError(where, expected=f"a network of {NETWORK_PACKAGE}*", found=name)
    try:
        for key in architecture.imported:
            if (value := arguments.get(key)) is not None:
                if not str(value).startswith(LAYER_PACKAGE):
                    raise ModelError(where, expected=f"{key} from {LAYER_PACKAGE}*", found=str(value))
                arguments[key] = _imported(value)
        network: nn.Module = _imported(name)(
            input_channels=1, num_classes=classes, **(arguments | {"deep_supervision": False})
        )
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise ModelError(where, expected=f"an architecture that {name} can be built from", found=repr(error)) from error
    return network.eval()


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def distinct_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors, each once under its first name: decoder and encoder share modules."""
    first: dict[int, str] = {}
    for name, value in network.state_dict().items():
        first.setdefault(value.data_ptr(), name)
    state = network.state_dict()
    return {name: state[name] for name in first.values()}
