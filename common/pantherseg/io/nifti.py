"""NIfTI-1: .nii and .nii.gz."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.limits import (
    CHUNK_BYTES,
    DAMAGED,
    MAX_HEADER_BYTES,
    MAX_VOXEL_BYTES,
    Claim,
    check_size,
    check_spacing,
)
from pantherseg.io.streams import unpacked_size

# By NIfTI's datatype; complex numbers and colours are refused later, by that name.
ELEMENT_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1792: 16}
HEADER_BYTES = 348
# What may follow the voxels.
SLACK_BYTES = CHUNK_BYTES


def check_nifti(path: Path) -> Claim:
    """Check a header and that the voxels behind it are as many as it says. Raises InputError."""
    _check_is_alone(path)
    limit = MAX_HEADER_BYTES + MAX_VOXEL_BYTES + SLACK_BYTES
    with path.open("rb") as file:
        head, size = unpacked_size(path, file, "gzip" if path.name.lower().endswith(".gz") else "raw", limit=limit)
    if len(head) < HEADER_BYTES:
        raise InputError(path, expected=f"a NIfTI header of {HEADER_BYTES} bytes", found=f"{size} bytes")
    if head[4:7] == b"n+2":
        raise InputError(path, expected="a NIfTI-1 file", found="NIfTI-2", hint="convert it")
    if head[344:347] != b"n+1":
        raise InputError(path, expected="a NIfTI-1 file", found=f"the mark {head[344:348]!r}")
    # As NIfTI says, the order of bytes is the one in which the number of axes makes sense.
    order = "<" if 1 <= struct.unpack("<h", head[40:42])[0] <= 7 else ">"
    axes, *lengths = struct.unpack(f"{order}8h", head[40:56])
    if not 1 <= axes <= 7:
        raise InputError(path, expected="1 to 7 axes", found=str(axes))
    shape = tuple(lengths[:axes])
    # pixdim[1:4] are magnitudes: the sign of an axis lies in qfac and the affine.
    pixdim = struct.unpack(f"{order}8f", head[76:108])
    check_spacing(path, pixdim[1 : 1 + min(axes, 3)])
    (datatype,), (offset,) = struct.unpack(f"{order}h", head[70:72]), struct.unpack(f"{order}f", head[108:112])
    if datatype not in ELEMENT_BYTES:
        raise InputError(path, expected="a readable volume of numbers", found=f"data type {datatype}")
    if not (math.isfinite(offset) and HEADER_BYTES <= offset <= MAX_HEADER_BYTES):
        expected = f"voxels at an offset between {HEADER_BYTES} and {MAX_HEADER_BYTES}"
        raise InputError(path, expected=expected, found=f"{offset}")
    voxels = check_size(path, shape, voxel_bytes=ELEMENT_BYTES[datatype])
    if not offset + voxels <= size <= offset + voxels + SLACK_BYTES:
        raise InputError(path, expected=f"{offset + voxels:.0f} bytes with the voxels", found=f"{size}", hint=DAMAGED)
    return Claim(shape)


def _check_is_alone(path: Path) -> None:
    """Check that ITK takes the voxels from this file: beside x.nii, it reads the header of x.nii.gz only."""
    other = path.with_suffix("")
    if path.suffix.lower() == ".gz" and other.is_file():
        raise InputError(
            path, expected=f"no {other.name} beside it, whose voxels ITK would read", found="one", hint="move one away"
        )
