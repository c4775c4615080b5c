"""A decoder of compressed frames for pydicom, by the GDCM in SimpleITK.

pydicom has decoders of its own, or by pillow and pyjpegls, for all but lossless JPEG and JPEG of 12 bits; the usual
package for these, pylibjpeg-libjpeg, is under the GPL.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
    generate_uid,
)

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "simpleitk"
# pydicom asks a module with a decoder for this, by transfer syntax, and for `is_available`.
DECODER_DEPENDENCIES = dict.fromkeys((JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit), ("SimpleITK",))


def is_available(uid: str) -> bool:
    """Return whether frames of a transfer syntax can be decoded."""
    return uid in DECODER_DEPENDENCIES


def decoder_for(transfer_syntax: str) -> str:
    """Return the name of the decoder that pydicom is to use for a transfer syntax; empty for its own choice.

    Raises NotImplementedError for a transfer syntax that pydicom does not know, such as a private one.
    """
    decoder = get_decoder(UID(transfer_syntax))
    if not is_available(transfer_syntax):
        return ""
    if NAME not in decoder.available_plugins:
        decoder.add_plugin(NAME, (__name__, "decode_frame"))
    return NAME


def decode_frame(encoded: bytes, runner: DecodeRunner) -> bytes:
    """Return the pixels of a frame as bytes, in the type that its header states. Raises RuntimeError."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    image.Rows, image.Columns, image.SamplesPerPixel = runner.rows, runner.columns, runner.samples_per_pixel
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", runner.pixel_representation
    image.BitsAllocated, image.BitsStored = runner.bits_allocated, runner.bits_stored
    image.HighBit = runner.bits_stored - 1
    image.PixelData = encapsulate([encoded])
    image["PixelData"].VR = "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = runner.transfer_syntax
    with tempfile.TemporaryDirectory() as folder:  # GDCM reads files only; this one has nothing of the patient's header
        path = Path(folder, "frame.dcm")
        image.save_as(path, enforce_file_format=True)
        reader: Any = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        pixels = sitk.GetArrayFromImage(reader.Execute())
    return bytes(pixels.astype(runner.pixel_dtype).tobytes())
