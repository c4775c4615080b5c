"""nnU-Net's networks, built from the plans alone: the trainer that a checkpoint names is never looked up."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pantherseg.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Plans name classes by their import path; nothing outside these packages is ever imported for them.
NETWORK_PACKAGE = "dynamic_network_architectures."
LAYER_PACKAGE = "torch.nn."


def build_network(plans_file: Path, configuration: Any, *, channels: int, classes: int) -> nn.Module:
    """Return the network of an nnU-Net ConfigurationManager, weights not loaded, without deep supervision.

    Raises ModelError for a class outside nnU-Net's own networks or arguments that it does not take.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    name = configuration.network_arch_class_name
    arguments = dict(configuration.network_arch_init_kwargs)
    imported = list(configuration.network_arch_init_kwargs_req_import)
    if not str(name).startswith(NETWORK_PACKAGE):
        raise ModelError(plans_file, expected=f"a network of {NETWORK_PACKAGE}*", found=str(name))
    for key in imported:
        value = arguments.get(key)
        if value is not None and not str(value).startswith(LAYER_PACKAGE):
            raise ModelError(plans_file, expected=f"{key} from {LAYER_PACKAGE}*", found=str(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class that is not where the plans say; what follows is the error
            network: nn.Module = get_network_from_plans(
                name, arguments, imported, channels, classes, allow_init=False, deep_supervision=False
            )
    except (ImportError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise ModelError(plans_file, expected=f"plans that {name} can be built from", found=repr(error)) from error
    return network


def distinct_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors, each once under its first name: decoder and encoder share modules."""
    first: dict[int, str] = {}
    for name, value in network.state_dict().items():
        first.setdefault(value.data_ptr(), name)
    state = network.state_dict()
    return {name: state[name] for name in first.values()}
