"""Networks in torch, built from the plain data in a bundle's manifest. Every family of networks is registered."""

from pantherseg.networks import nnunet as nnunet  # registers its family
from pantherseg.networks.registry import AUXILIARY, Architecture, build_network, distinct_tensors, register_network

__all__ = ["AUXILIARY", "Architecture", "build_network", "distinct_tensors", "register_network"]
