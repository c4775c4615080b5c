"""Networks of torch, as the plans of a trained model describe them."""

from pantherseg.networks.nnunet import Plan, read_plan
from pantherseg.networks.registry import build_network, distinct_tensors

__all__ = ["Plan", "build_network", "distinct_tensors", "read_plan"]
