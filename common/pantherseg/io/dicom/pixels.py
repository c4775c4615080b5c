"""The pixels of a stack, decoded by pydicom and scaled as the headers say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError, last_line
from pantherseg.io.dicom.instance import HeaderError, first_text, levels_of
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.io.dicom.places import dicom_files
from pantherseg.io.dicom.stack import Slice, Stack
from pantherseg.io.limits import DAMAGED, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_pixels(source: Path, stack: Stack) -> NDArray[Any]:
    """Return the voxels (z, y, x) of a stack with a grid.

    In their stored type where no frame is rescaled, else as float32: `slope * stored + intercept`, of each frame its
    own (DICOM PS3.3, C.7.6.16.2.9 and C.11.1). Raises InputError and OSError.
    """
    size = stack.slices[0].instance.size
    if size is None:
        raise InputError(source, expected="MR images", found="objects without pixels")
    rows, columns = size
    check_size(source, (columns, rows, len(stack.slices)), voxel_bytes=np.dtype(np.float32).itemsize)
    by_place: dict[Any, list[int]] = {}
    for z, one in enumerate(stack.slices):
        by_place.setdefault(one.instance.place, []).append(z)
    frames: list[NDArray[Any]] = [np.empty(0)] * len(stack.slices)
    with quiet_pydicom(source):
        for place, file in dicom_files(list(by_place)):
            wanted = by_place[place]
            try:
                for z, frame in zip(wanted, _frames(file, [stack.slices[z] for z in wanted]), strict=True):
                    frames[z] = frame
            except MemoryError:
                raise
            except Exception as error:  # pydicom and its decoders raise errors of many types for damaged pixels
                expected, known = (
                    f"{rows} x {columns} pixels that can be decoded",
                    isinstance(error, PixelError | HeaderError),
                )
                hint = "" if known else DAMAGED
                raise InputError(str(place), expected=expected, found=last_line(error), hint=hint) from error
    return np.stack(frames)


def stored_pixels(file: BinaryIO) -> bytes | None:
    """Return the pixels of a file as they are stored; None if they cannot be read. Within `library.quiet_pydicom`."""
    import pydicom

    try:
        data = pydicom.dcmread(file, force=True)
        return next((bytes(data[key].value) for key in PIXELS if key in data), None)
    except MemoryError:
        raise
    except Exception:  # pydicom raises errors of many types for damaged files
        return None


class PixelError(Exception):
    """Pixels that cannot be used, and why in words that may follow "found"."""


def _frames(file: Any, slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    """Yield the frames of a file that some slices are, decoded and scaled."""
    import pydicom
    from pydicom.pixels.utils import iter_pixels

    from pantherseg.io.dicom.gdcm import decoder_for

    data = pydicom.dcmread(file, force=True)
    if not any(key in data for key in PIXELS):
        raise PixelError("no pixel data")
    meta = getattr(data, "file_meta", None)
    if meta is None:
        data.file_meta = meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = data.original_encoding
        known = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        meta.TransferSyntaxUID = known if little else pydicom.uid.ExplicitVRBigEndian
    syntax = meta.TransferSyntaxUID
    try:
        plugin = decoder_for(syntax)
    except NotImplementedError as error:
        raise PixelError(f"the transfer syntax {syntax.name}, for which there is no decoder") from error
    levels = levels_of(data)
    numbers = [one.frame.number for one in slices]
    for one, pixels in zip(slices, iter_pixels(data, indices=numbers, decoding_plugin=plugin), strict=True):
        if pixels.shape != one.instance.size:
            raise PixelError(f"{pixels.shape} pixels")
        yield _scaled(_without_overlay(pixels, data), levels[one.frame.number])


def _without_overlay(pixels: NDArray[Any], data: Dataset) -> NDArray[Any]:
    """Return pixels without what older scanners keep in the unused bits above them, such as overlays."""
    unused = data.get("BitsAllocated", 0) - data.get("BitsStored", 0)
    if pixels.dtype.kind not in "iu" or not 0 < unused < pixels.dtype.itemsize * 8:
        return pixels
    shifted: NDArray[Any] = (pixels << unused) >> unused
    return shifted


def _scaled(pixels: NDArray[Any], levels: Sequence[Dataset]) -> NDArray[Any]:
    slope, intercept = (first_text(levels, key) for key in ("RescaleSlope", "RescaleIntercept"))
    values = float(slope or 1), float(intercept or 0)
    if values[0] == 0 or not np.isfinite(values).all():
        raise PixelError(f"the rescale slope {slope} and intercept {intercept}")
    return pixels if values == (1, 0) else (pixels * values[0] + values[1]).astype(np.float32)
