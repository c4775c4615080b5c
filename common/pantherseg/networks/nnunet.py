"""nnU-Net's networks. The trainer class that a checkpoint names is never imported."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pantherseg.errors import ModelError
from pantherseg.networks.registry import Architecture, register_network
from pantherseg.tables import Table

if TYPE_CHECKING:
    from torch import nn

# Architectures name classes by their import path. Nothing outside of these packages is imported.
NETWORK_PACKAGE = "dynamic_network_architectures."
LAYER_PACKAGE = "torch.nn."


@register_network("nnunet")
class NnunetNetwork(Table, Architecture, frozen=True):
    """A class of dynamic_network_architectures and its arguments, as in nnU-Net's plans."""

    network: str
    """Import path of the class."""
    arguments: dict[str, Any]
    imported: tuple[str, ...]
    """Names of the arguments whose values are import paths."""

    def build(self, where: Path, *, classes: int) -> nn.Module:
        """Return a network for one channel without deep supervision; see `Architecture.build`."""
        name, arguments = self.network, dict(self.arguments)
        if not name.startswith(NETWORK_PACKAGE):
            raise ModelError(where, expected=f"a network of {NETWORK_PACKAGE}*", found=name)
        try:
            for key in self.imported:
                if (value := arguments.get(key)) is not None:
                    if not str(value).startswith(LAYER_PACKAGE):
                        raise ModelError(where, expected=f"{key} from {LAYER_PACKAGE}*", found=str(value))
                    arguments[key] = _import_object(value)
            arguments["deep_supervision"] = False
            network: nn.Module = _import_object(name)(input_channels=1, num_classes=classes, **arguments)
        except (ImportError, AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
            expected = f"an architecture that {name} can be built from"
            raise ModelError(where, expected=expected, found=repr(error)) from error
        return network


def _import_object(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
