"""Synthetic abdominal MR with organs, pancreas and tumour: the data that everybody can have."""

from pantherseg.phantom.acquisition import Phantom, Size, make_phantom
from pantherseg.phantom.anatomy import ORGANS
from pantherseg.phantom.dataset import case_id, write_dataset

__all__ = ["ORGANS", "Phantom", "Size", "case_id", "make_phantom", "write_dataset"]
