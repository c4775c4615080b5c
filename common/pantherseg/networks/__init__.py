"""Networks in torch, built from the plain data in a bundle's manifest. Every family of networks is registered."""

# Each registers its family.
from pantherseg.networks import attention_unet as attention_unet
from pantherseg.networks import nnunet as nnunet
from pantherseg.networks import segformer3d as segformer3d
from pantherseg.networks.registry import AUXILIARY, Architecture, build_network, distinct_tensors, register_network

__all__ = ["AUXILIARY", "Architecture", "build_network", "distinct_tensors", "register_network"]
