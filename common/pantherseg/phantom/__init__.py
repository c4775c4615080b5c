"""Synthetic abdominal volumes, MR or CT-like, with organs, pancreas and tumour; no data agreement is needed."""

from pantherseg.phantom.acquisition import Modality, Phantom, Size, make_phantom
from pantherseg.phantom.dataset import case_id, write_dataset

__all__ = ["Modality", "Phantom", "Size", "case_id", "make_phantom", "write_dataset"]
