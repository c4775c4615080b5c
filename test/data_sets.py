"""Tiny data sets in the layouts in which they are published, written with SimpleITK and nibabel alone."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

SHAPE = (6, 8, 10)
SPACING = (3.0, 1.25, 1.0)
# Some voxels of PANTHER's labels: 5 of the tumour in a pancreas of 24 (z, y, x).
TUMOUR_VOXELS, PANCREAS_VOXELS = 5, 19


def panther_labels() -> NDArray[np.uint8]:
    """Return a label map with 1 for the tumour and 2 for the pancreas; nothing about it is symmetric."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 2:5, 3:7] = 2
    labels[1, 2, 3:7] = labels[2, 4, 5] = 1
    return labels


def voxels(seed: int) -> NDArray[np.int16]:
    """Return the voxels of an image, (z, y, x)."""
    return np.random.default_rng(seed).integers(0, 1000, SHAPE, dtype=np.int16)


def write_itk(path: Path, array: NDArray[Any], order: str = "LPS", origin: tuple[float, ...] = (-20, 30, 100)) -> Path:
    """Write an array (z, y, x), whose axes run to LPS, as a file in another voxel order at the same place."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, order), str(path), useCompression=True)
    return path


def write_nibabel(path: Path, array: NDArray[Any]) -> Path:
    """Write an array (z, y, x), whose axes run to RAS, as most NIfTI files do."""
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = (-20, -30, 100)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    return path


def write_panther(
    folder: Path, *names: str, images: str = "imagesTr", labels: str | None = "labelsTr", order: str = "LPS"
) -> Path:
    """Write a data set in PANTHER's layout; the image of a case depends on its name. labels: None for images alone."""
    for name in names:
        write_itk(folder / images / f"{name}_0000.mha", image_of(name), order)
        if labels is not None:
            write_itk(folder / labels / f"{name}.mha", panther_labels(), order)
    return folder


def image_of(name: str) -> NDArray[np.int16]:
    """Return the voxels of the image of a case in PANTHER's layout."""
    return voxels(zlib.crc32(name.encode()))


def tumour_centre(path: Path, number: int = 1) -> NDArray[np.float64]:
    """Return the centroid of a label in mm (x, y, z; LPS), read with SimpleITK, or with nibabel for NIfTI."""
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        index = np.argwhere(np.asarray(image.dataobj) == number).mean(axis=0)
        return (image.affine @ [*index, 1])[:3] * (-1, -1, 1)
    image = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayFromImage(image) == number).mean(axis=0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))
