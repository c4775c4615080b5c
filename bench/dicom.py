"""How long DICOM takes to decode, by pydicom and by SimpleITK's GDCM, and to scan. `python -m bench.dicom`.

Writes a smooth volume as uncompressed slices, as lossless JPEG and as JPEG 2000, reads each slice by both libraries,
and checks that the values are those that were written. Then it reads the headers of 5,000 of the slices.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pantherseg.io.dicom.choice import ANY_SERIES
from pantherseg.io.dicom.gdcm import decoder_for
from pantherseg.io.dicom.select import survey

SHAPE = (40, 320, 320)
FILES = 5000
COMPRESSORS = {"uncompressed": "", "JPEG lossless": "JPEG", "JPEG 2000 lossless": "JPEG2000"}
TAGS = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3"}


def main() -> None:
    """Print a line for each way of compressing, and one for the headers."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2) * 4000 + 1000
    volume = noise.clip(0, 4095).astype(np.uint16)
    readers: dict[str, Callable[[Path], NDArray[Any]]] = {
        "pydicom alone": lambda path: _by_pydicom(path, own=False),
        "as pantherseg": lambda path: _by_pydicom(path, own=True),
        "GDCM": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0],
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, compressor in COMPRESSORS.items():
            paths = [_write(Path(folder, name), volume, z, compressor) for z in range(len(volume))]
            figures = []
            for reader, read in readers.items():
                began = time.process_time()
                same = all(np.array_equal(read(path), volume[z]) for z, path in enumerate(paths))
                taken = (time.process_time() - began) / len(paths) * 1000
                figures.append(f"{reader} {taken:.0f} ms a slice{'' if same else ', OTHER VALUES'}")
            print(f"{name:20}", "; ".join(figures))
        source, content = Path(folder, "many"), [path.read_bytes() for path in paths]
        source.mkdir()
        for number in range(FILES):
            (source / f"{number:05}").write_bytes(content[number % len(content)])
        began = time.process_time()
        survey(source, ANY_SERIES)
        print(f"headers of {FILES} files: {time.process_time() - began:.1f} s")


def _by_pydicom(path: Path, *, own: bool) -> NDArray[Any]:
    import pydicom

    data = pydicom.dcmread(path)
    if own:
        data.pixel_array_options(decoding_plugin=decoder_for(data.file_meta.TransferSyntaxUID))
    return data.pixel_array


def _write(folder: Path, volume: NDArray[np.uint16], z: int, compressor: str) -> Path:
    folder.mkdir(exist_ok=True)
    image = sitk.JoinSeries(sitk.GetImageFromArray(volume[z]))
    for key, value in {**TAGS, "0008|0018": f"1.2.3.4.{z + 1}", "0020|0032": f"0\\0\\{3 * z}"}.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    path = folder / f"{z}.dcm"
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


if __name__ == "__main__":
    main()
