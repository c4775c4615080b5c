"""NIfTI-1: .nii and .nii.gz."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.io.header import MAX_HEADER_BYTES, Header, unsupported
from pantherseg.io.limits import CHUNK_BYTES, DAMAGED, MAX_VOLUME_BYTES, check_size, check_spacing
from pantherseg.io.streams import gunzipped_size

# By NIfTI's data type. Complex numbers and colours are refused by their names when ITK has read the header.
ELEMENT_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1792: 16}
HEADER_BYTES = 348
# How much may follow the voxels.
SLACK_BYTES = CHUNK_BYTES


def check_nifti(path: Path) -> Header:
    """Check the header, and that the voxels are as many as it states. Raises InputError and OSError."""
    compressed, other = path.name.lower().endswith(".gz"), path.with_suffix("")
    if compressed and other.is_file():
        problem = f"ITK would read the voxels of {other.name} beside it instead"
        raise InputError(path, problem, hint="move one of the two files away")
    with path.open("rb") as file:
        if compressed:
            head, found = gunzipped_size(path, file, limit=MAX_HEADER_BYTES + MAX_VOLUME_BYTES + SLACK_BYTES)
        else:
            head, found = file.read(HEADER_BYTES), path.stat().st_size
    if len(head) < HEADER_BYTES:
        raise InputError(path, expected=f"a NIfTI header of {HEADER_BYTES} bytes", found=f"{found} bytes")
    if head[4:7] == b"n+2":
        raise unsupported(path, "NIfTI-2")
    if head[344:347] != b"n+1":
        raise InputError(path, expected="the mark b'n+1' of a NIfTI-1 file", found=repr(head[344:348]))
    # As NIfTI defines it, the byte order is the one in which the number of axes makes sense.
    order = "<" if 1 <= struct.unpack_from("<h", head, 40)[0] <= 7 else ">"
    axes, *lengths = struct.unpack_from(f"{order}8h", head, 40)
    if not 1 <= axes <= 7:
        raise InputError(path, expected="1 to 7 axes", found=str(axes))
    # pixdim[1:4] are magnitudes: the sign of an axis is in qfac and the affine.
    check_spacing(path, struct.unpack_from(f"{order}{min(axes, 3)}f", head, 80))
    (datatype,) = struct.unpack_from(f"{order}h", head, 70)
    if datatype not in ELEMENT_BYTES:
        raise unsupported(path, f"NIfTI with data type {datatype}")
    (offset,) = struct.unpack_from(f"{order}f", head, 108)
    if not (math.isfinite(offset) and HEADER_BYTES <= offset <= MAX_HEADER_BYTES):
        expected = f"voxels at an offset between {HEADER_BYTES} and {MAX_HEADER_BYTES} bytes"
        raise InputError(path, expected=expected, found=f"the offset {offset}")
    expected_bytes = offset + check_size(path, lengths[:axes], voxel_bytes=ELEMENT_BYTES[datatype])
    if not expected_bytes <= found <= expected_bytes + SLACK_BYTES:
        expected = f"{expected_bytes:.0f} bytes of header and voxels"
        raise InputError(path, expected=expected, found=f"{found} bytes", hint=DAMAGED)
    return Header(tuple(lengths[:axes]))
