"""Networks of torch, as the plans of a trained model describe them."""

from pantherseg.networks.build import build_network, distinct_tensors
from pantherseg.networks.plan import Plan, read_plan

__all__ = ["Plan", "build_network", "distinct_tensors", "read_plan"]
