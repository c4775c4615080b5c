"""Published weights: which there are, how they are fetched, and where they are placed."""

from pantherseg.weights.downloads import Client
from pantherseg.weights.fetch import fetch
from pantherseg.weights.installed import State, states, verify
from pantherseg.weights.zoo import Weights, load_zoo, named

__all__ = ["Client", "State", "Weights", "fetch", "load_zoo", "named", "states", "verify"]
