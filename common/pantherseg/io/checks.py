"""Checks of image files that ITK does not make.

ITK reads a MetaImage whose compressed data is damaged, a NIfTI that ends early and a header with negative spacing
without an error, and hands over wrong voxels or a wrong grid; other headers end the process or fill the memory. These
checks come before ITK: in a bounded time, and in the memory of a few chunks.
"""

from __future__ import annotations

from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.limits import Claim
from pantherseg.io.metaimage import check_metaimage
from pantherseg.io.nifti import check_nifti
from pantherseg.io.nrrd import check_nrrd

__all__ = ["Claim", "check_file"]

CHECKS = (
    ((".mha", ".mhd"), check_metaimage),
    ((".nii", ".nii.gz"), check_nifti),
    ((".nrrd",), check_nrrd),
)


def check_file(path: Path) -> Claim:
    """Check that a file is there, complete as far as its format lets one tell, and within the limits.

    Return what its header says, which must be what ITK makes of it. Raises InputError.
    """
    try:
        if not path.is_file():
            raise InputError(path, expected="a volume file", found="a folder" if path.is_dir() else "no such file")
        if path.stat().st_size == 0:
            raise InputError(path, expected="a volume", found="an empty file")
        for suffixes, check in CHECKS:
            if path.name.lower().endswith(suffixes):
                return check(path)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(path, expected="a file that can be read", found=found) from error
    names = " ".join(suffix for suffixes, _ in CHECKS for suffix in suffixes)
    raise InputError(path, expected=f"a volume in one of {names}", found=f"{path.suffix or 'no suffix'}")
