"""nnU-Net's preprocessing of a volume and the way back for its logits: data of a bundle, and numpy."""

from pantherseg.preprocessing.preprocess import Normalization, Prepared, Preprocessing, WayBack
from pantherseg.preprocessing.resample import Resampling, Resizer

__all__ = ["Normalization", "Prepared", "Preprocessing", "Resampling", "Resizer", "WayBack"]
