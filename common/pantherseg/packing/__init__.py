"""nnU-Net's model folders into bundles: the only package that reads .pth files."""

from pantherseg.packing.checkpoint import check_archive, check_fit, read_checkpoint, read_origin
from pantherseg.packing.pack import Packer, as_bundle, missing_packages, pack, pack_models

__all__ = [
    "Packer",
    "as_bundle",
    "check_archive",
    "check_fit",
    "missing_packages",
    "pack",
    "pack_models",
    "read_checkpoint",
    "read_origin",
]
