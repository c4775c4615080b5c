"""From a volume to logits: the only package that runs networks."""

from pantherseg.inference.predictor import Predictor, choose_device

__all__ = ["Predictor", "choose_device"]
