"""nnU-Net's model folders into bundles: the only package that reads .pth files."""

from pantherseg.packing.checkpoint import check_fit, read_checkpoint
from pantherseg.packing.pack import as_bundle, pack, pack_models

__all__ = ["as_bundle", "check_fit", "pack", "pack_models", "read_checkpoint"]
