"""Published weights: the catalogue, fetching, and what is installed."""

from pantherseg.weights.fetch import fetch
from pantherseg.weights.installed import Installation, installations, verify
from pantherseg.weights.zoo import Weights, find_weights, load_zoo

__all__ = ["Installation", "Weights", "fetch", "find_weights", "installations", "load_zoo", "verify"]
