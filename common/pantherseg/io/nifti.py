"""NIfTI-1 and NIfTI-2 in one file, .nii and .nii.gz, with nibabel's headers.

ITK is not used: it turns NaN into 0, refuses sizes such as (x, y, z, 1, 1) and slightly sheared sforms, takes the qform
where nibabel and FSL take the sform, and reads a.nii where a.nii.gz beside it is asked for. nibabel is imported when a
file is read or written, which the containers of the challenge do not need.
"""

from __future__ import annotations

import gzip
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.events import Event
from pantherseg.io.file_format import FileFormat, check_not_empty, dropped_axes
from pantherseg.io.header import unsupported
from pantherseg.io.limits import CHUNK_BYTES, DAMAGED, MAX_AXES, MAX_VOLUME_BYTES, check_size
from pantherseg.io.nifti_geometry import copy_geometry, grid_of, set_geometry
from pantherseg.io.streams import chunks, opened
from pantherseg.volume import Grid, Volume

# How much may follow the voxels.
SLACK_BYTES = CHUNK_BYTES
# The level of SimpleITK's own files.
COMPRESSION = 6


@dataclass(frozen=True)
class NiftiReader(FileFormat):
    """Reads and writes NIfTI files. Whether a file is compressed is told by its content, not by its name."""

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume with its voxels as stored, or scaled as the header says, then as float64.

        Events tell of dropped axes, and of a geometry that is stated in more than one way or not at all. Raises
        InputError and OSError.
        """
        check_not_empty(source)
        with opened(source) as stream:
            header = _read_header(source, stream)
            dtype, size = _voxel_type(source, header), _size(header)
            volume_bytes = check_size(source, size, voxel_bytes=dtype.itemsize)
            grid, events = grid_of(source, header)
            try:
                data = _read_voxels(source, stream, header, volume_bytes)
                array = _scaled(source, header, np.frombuffer(data, dtype).reshape(grid.shape))
            except MemoryError as error:
                raise InputError(source, expected="a volume that fits into memory", found=grid.describe()) from error
        return Volume(array, grid), dropped_axes(size) + events

    def grid(self, source: Path) -> Grid:
        """Return a volume's grid by the header alone. Raises InputError and OSError."""
        check_not_empty(source)
        with opened(source) as stream:
            header = _read_header(source, stream)
        check_size(source, _size(header), voxel_bytes=1)
        return grid_of(source, header)[0]

    def write(self, volume: Volume, path: Path, *, like: Path | None = None) -> None:
        """Write a volume, compressed if the name ends with .gz; the same volume always gives the same bytes."""
        from nibabel.nifti1 import Nifti1Header

        stored = None if like is None else self._stored_header(like, volume)
        header = (Nifti1Header if stored is None else type(stored))(endianness="<")
        header.set_data_shape(volume.array.shape[::-1])
        header.set_data_dtype(volume.array.dtype)
        if stored is None:
            set_geometry(header, volume.grid)
        else:
            copy_geometry(stored, header)
        header["vox_offset"], header["scl_slope"], header["scl_inter"] = header.single_vox_offset, 1, 0
        no_extensions = bytes(header.single_vox_offset - header.sizeof_hdr)
        array = np.ascontiguousarray(volume.array, volume.array.dtype.newbyteorder("<"))
        packed = path.name.lower().endswith(".gz")
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) if packed else nullcontext(file) as stream,
        ):
            stream.write(header.binaryblock + no_extensions)
            stream.write(array.data)

    def _stored_header(self, path: Path, volume: Volume) -> Any | None:
        """Return the header of a file on the grid of `volume`; None for another, and for an unreadable file."""
        if not self.accepts(path):
            return None
        try:
            with opened(path) as stream:
                header = _read_header(path, stream)
                check_size(path, _size(header), voxel_bytes=1)
                grid, _ = grid_of(path, header)
        except (InputError, OSError):
            return None
        return None if grid.difference(volume.grid) else header


def _read_header(path: Path, stream: BufferedIOBase) -> Any:
    """Return nibabel's header of the kind that a file has, in the byte order that it has."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    head = stream.read(Nifti1Header.sizeof_hdr)
    sizes = [int.from_bytes(head[:4], order) for order in ("little", "big")]
    kind = Nifti2Header if Nifti2Header.sizeof_hdr in sizes else Nifti1Header
    head += stream.read(kind.sizeof_hdr - len(head))
    if len(head) < kind.sizeof_hdr:
        raise InputError(path, expected=f"a NIfTI header of {kind.sizeof_hdr} bytes", found=f"{len(head)} bytes")
    # nibabel finds the byte order as NIfTI defines it, by the number of axes.
    header = kind(head, check=False)
    mark = header["magic"].item()
    if mark == kind.pair_magic:
        raise unsupported(path, "NIfTI with its voxels in another file (.hdr and .img)")
    if mark != kind.single_magic:
        raise InputError(path, expected=f"the mark {kind.single_magic!r} of a NIfTI file", found=repr(mark))
    if not 1 <= header["dim"][0] <= MAX_AXES:
        raise InputError(path, expected=f"1 to {MAX_AXES} axes", found=str(header["dim"][0]))
    return header


def _size(header: Any) -> tuple[int, ...]:
    """Return the number of voxels along (x, y, z, ...)."""
    return tuple(map(int, header["dim"][1 : header["dim"][0] + 1]))


def _voxel_type(path: Path, header: Any) -> np.dtype[Any]:
    """Return the type of the stored voxels. Raises InputError unless it is one real number of at most 8 bytes."""
    from nibabel.nifti1 import data_type_codes

    code = int(header["datatype"])
    if code not in data_type_codes.code:
        raise unsupported(path, f"NIfTI with data type {code}")
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise unsupported(path, f"NIfTI with data type {code} ({data_type_codes.label[code]})")
    return dtype


def _read_voxels(path: Path, stream: BufferedIOBase, header: Any, volume_bytes: int) -> bytearray:
    """Return the bytes of the voxels from a stream that was read up to the end of the header, and read it to its end.

    Memory is taken as the bytes arrive, not as the header promises. Raises InputError for too few bytes or too many.
    """
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_VOLUME_BYTES:  # also false for NaN
        expected = f"voxels at an offset between {header.sizeof_hdr} and {MAX_VOLUME_BYTES} bytes"
        raise InputError(path, expected=expected, found=f"the offset {offset:g}")
    expected_bytes = int(offset) + volume_bytes
    found = header.sizeof_hdr + sum(map(len, chunks(stream, int(offset) - header.sizeof_hdr)))  # skips the extensions
    data = bytearray()
    for chunk in chunks(stream, volume_bytes):
        data += chunk
    found += len(data) + sum(map(len, chunks(stream, SLACK_BYTES + 1)))
    if not expected_bytes <= found <= expected_bytes + SLACK_BYTES:
        text = f"{found} bytes" if found < expected_bytes else f"{found} bytes or more"
        raise InputError(path, expected=f"{expected_bytes} bytes of header and voxels", found=text, hint=DAMAGED)
    return data


def _scaled(path: Path, header: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return stored voxels in this machine's byte order, and scaled by slope and intercept as nibabel does."""
    from nibabel.spatialimages import HeaderDataError

    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder())
    try:
        slope, inter = header.get_slope_inter()  # None if the slope is 0 or NaN, which means no scaling
    except HeaderDataError as error:
        raise InputError(path, expected="a finite scl_inter", found=str(header["scl_inter"])) from error
    if slope is None or (slope, inter) == (1, 0):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.float64] = np.multiply(array, slope, dtype=np.float64)
        scaled += inter
    return scaled
