"""Pancreatic-tumour masks from abdominal MR volumes. Not for clinical use."""

__version__ = "0.1.0"
