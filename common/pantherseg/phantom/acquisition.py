"""Turns an anatomy into an MR or CT volume: grid, contrast, partial volume, texture, bias field and noise.

The grids imitate those of PANTHER: Task 1 median 72x258x318 voxels (z, y, x) at 3.0x1.1875x1.1875 mm, in-plane
0.69 to 1.31 mm, at most 19.1 M voxels; Task 2 about 2x1x1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pantherseg.phantom.anatomy import Anatomy, Part, draw_anatomy
from pantherseg.phantom.shapes import Field, Points, Vector
from pantherseg.volume import Grid, Triple, Volume

Size = Literal["full", "small"]
Modality = Literal["mri", "ct"]

MAX_VOXELS = 19.0e6
SMALL_SHAPE = (40, 104, 128)
# Offsets within a slice, as fractions of its thickness, at which a voxel is sampled.
SUB_SLICES = (-0.25, 0.25)
# Points of the texture's lattice along (z, y, x), independent of the size of the volume.
TEXTURE_LATTICE = (48, 112, 128)
# Mean intensity per tissue, pancreas about 0.7 in Task 1 and 0.4 in Task 2: (Task 1, Task 2).
# Task 1 is T1-weighted, arterial phase, fat-suppressed; Task 2 is T2-weighted turbo spin echo without suppression.
CONTRAST: dict[str, tuple[float, float]] = {
    "skin_fat": (0.20, 0.80), "fat": (0.17, 0.78), "muscle": (0.33, 0.18), "bone": (0.16, 0.20),
    "marrow": (0.26, 0.38), "disc": (0.30, 0.24), "csf": (0.12, 1.00), "cord": (0.28, 0.36), "lung": (0.03, 0.03),
    "liver": (0.48, 0.27), "portal": (0.62, 0.12), "cava": (0.42, 0.14), "artery": (1.12, 0.06),
    "spleen": (0.66, 0.42), "cortex": (0.92, 0.48), "medulla": (0.52, 0.62), "bile": (0.14, 1.05),
    "wall": (0.56, 0.30), "fluid": (0.13, 0.95), "chyme": (0.30, 0.50), "gas": (0.04, 0.04),
    "pancreas": (0.72, 0.40), "tumour": (0.42, 0.54), "lesion": (0.40, 0.54), "cyst": (0.15, 0.95),
}  # fmt: skip
# The same in CT in the portal-venous phase, typical values in HU; ductal carcinoma is darker than the pancreas.
CT_CONTRAST: dict[str, float] = {
    "skin_fat": -100, "fat": -100, "muscle": 55, "bone": 550, "marrow": 200, "disc": 90, "csf": 15, "cord": 40,
    "lung": -820, "liver": 110, "portal": 170, "cava": 130, "artery": 160, "spleen": 120, "cortex": 180,
    "medulla": 160, "bile": 10, "wall": 60, "fluid": 10, "chyme": 30, "gas": -980, "pancreas": 100, "tumour": 60,
    "lesion": 50, "cyst": 10, "air": -1000,
}  # fmt: skip
# Standard deviation of the noise of a CT volume in HU, lowest and highest, and of the texture of tissues.
CT_NOISE, CT_GRAIN = (6.0, 14.0), 40.0
# Relative amplitude of the texture; other tissues have the default.
TEXTURE = {"pancreas": 0.11, "tumour": 0.10, "liver": 0.07, "spleen": 0.08, "fat": 0.08, "skin_fat": 0.05,
           "chyme": 0.22, "fluid": 0.04, "cyst": 0.03, "bile": 0.03, "csf": 0.04, "artery": 0.04,
           "lung": 0.5}  # fmt: skip
DEFAULT_TEXTURE = 0.08


@dataclass(frozen=True)
class Phantom:
    """A synthetic case: three volumes on one grid.

    image: int16, arbitrary MR units, or HU in CT; labels: uint8, 1 tumour, 2 pancreas; organs: uint8, numbered as
    `labels.ORGANS`, with the tumour as part of the pancreas.
    """

    image: Volume
    labels: Volume
    organs: Volume


@dataclass(frozen=True)
class _Canvas:
    """The volumes that parts are painted on, all (z, y, x). grain: amplitude of the texture at each voxel."""

    image: Field
    grain: Field
    labels: NDArray[np.uint8]
    organs: NDArray[np.uint8]


def make_phantom(seed: int, *, task: int, size: Size = "full", modality: Modality = "mri") -> Phantom:
    """Return the phantom of a seed. The same arguments give the same voxels.

    Both sizes and modalities of a seed have the same anatomy and field of view. Raises ValueError for a task other than
    1 and 2, an unknown size or modality, or a negative seed.
    """
    if task not in (1, 2):
        raise ValueError(f"task must be 1 or 2, got {task}")
    if size not in ("full", "small"):
        raise ValueError(f"size must be full or small, got {size!r}")
    if modality not in ("mri", "ct"):
        raise ValueError(f"modality must be mri or ct, got {modality!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    # Separate random streams, so that an additional draw in one does not change the others.
    body, scanner, tissue, noise = (np.random.default_rng([seed, task, i]) for i in range(4))
    anatomy = draw_anatomy(body)
    grid, points = _draw_grid(scanner, anatomy, task=task, size=size)
    if modality == "ct":
        image_of, contrast = _acquire_ct, _draw_ct_contrast(tissue)
    else:
        image_of, contrast = _acquire, _draw_contrast(tissue, task)
    canvas = _paint(anatomy, points, contrast)
    image = image_of(canvas, noise, size)
    return Phantom(Volume(image, grid), Volume(canvas.labels, grid), Volume(canvas.organs, grid))


def _draw_grid(rng: np.random.Generator, anatomy: Anatomy, *, task: int, size: Size) -> tuple[Grid, Points]:
    """Return the grid of the volume in world coordinates, and its sample points in patient coordinates."""
    width, depth = 2 * anatomy.trunk.half_width, 2 * anatomy.trunk.half_depth
    if task == 1:
        extent = np.array([rng.normal(216, 12), rng.normal(306, 12), rng.normal(378, 14)])
        plane = rng.normal(1.1875, 0.05) if rng.random() < 0.7 else rng.uniform(0.69, 1.31)
        plane, slices = float(np.clip(plane, 0.69, 1.31)), float(rng.choice([2.5, 3.0, 3.0, 3.0, 3.5, 4.0]))
    else:
        extent = np.array([rng.normal(205, 10), rng.normal(300, 15), rng.normal(370, 15)])
        plane, slices = float(np.clip(rng.normal(1.0, 0.08), 0.83, 1.2)), float(rng.uniform(1.7, 2.2))
    extent = np.clip(extent, [180, depth * 1.04, width * 1.03], [240, 400, 430])
    if np.prod(extent) / (slices * plane**2) > MAX_VOXELS:
        plane = float(np.sqrt(np.prod(extent) / (slices * MAX_VOXELS)))
    spacing = np.array([slices, plane, plane])
    z, y, x = (int(n) for n in np.floor(extent / spacing))
    extent = spacing * [z, y, x]
    if size == "small":
        z, y, x = SMALL_SHAPE
        spacing = extent / SMALL_SHAPE
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(rng.uniform(1, 6))).as_matrix()
    centre = np.array([rng.normal(0, 4), rng.normal(0, 5), rng.normal(-6, 8)])
    table = np.array([rng.normal(0, 15), rng.uniform(-60, 20), rng.uniform(-120, 120)])
    steps = turn * spacing[::-1]
    first = centre - steps @ ((np.array([x, y, z]) - 1) / 2)
    grid = Grid(
        shape=(z, y, x),
        spacing=_triple(spacing),
        origin=_triple(first + table),
        direction=(_triple(turn[0]), _triple(turn[1]), _triple(turn[2])),
    )
    return grid, Points(first, steps, (z, y, x))


def _draw_contrast(rng: np.random.Generator, task: int) -> dict[str, float]:
    """Return the intensity of each tissue in this scan. That of the tumour is relative to the pancreas."""
    contrast = {name: pair[task - 1] * float(rng.uniform(0.88, 1.12)) for name, pair in CONTRAST.items()}
    low, high = (0.46, 0.72) if task == 1 else (1.2, 1.5)
    contrast["tumour"] = contrast["pancreas"] * float(rng.uniform(low, high))
    contrast["lesion"] = contrast["tumour"] * float(rng.uniform(0.9, 1.1))
    return contrast | {"air": 0.0}


def _draw_ct_contrast(rng: np.random.Generator) -> dict[str, float]:
    """Return the attenuation of each tissue in this scan in HU. That of the tumour is relative to the pancreas."""
    contrast = {name: value + float(rng.normal(0, 6)) for name, value in CT_CONTRAST.items()}
    contrast["tumour"] = contrast["pancreas"] - float(rng.uniform(20, 60))
    contrast["lesion"] = contrast["tumour"] + float(rng.normal(0, 6))
    return contrast


def _paint(anatomy: Anatomy, points: Points, contrast: dict[str, float]) -> _Canvas:
    edge = float(np.linalg.norm(points.steps[:, 0]))
    distance = anatomy.trunk.distance(points)
    image = np.full(points.shape, contrast["air"], np.float32)
    grain = np.zeros(points.shape, np.float32)
    layers = ((0.0, "skin_fat"), (anatomy.fat, "muscle"), (anatomy.fat + anatomy.muscle, "fat"))
    for depth, tissue in layers:
        cover = np.clip(0.5 - (distance + np.float32(depth)) / np.float32(edge), 0, 1)
        image += cover * (np.float32(contrast[tissue]) - image)
        grain += cover * (np.float32(TEXTURE.get(tissue, DEFAULT_TEXTURE)) - grain)
    canvas = _Canvas(image, grain, np.zeros(points.shape, np.uint8), np.zeros(points.shape, np.uint8))
    for part in anatomy.parts:
        _paint_part(canvas, part, points, contrast[part.tissue] * part.gain, edge)
    return canvas


def _paint_part(canvas: _Canvas, part: Part, points: Points, value: float, voxel: float) -> None:
    """Paint one part over the canvas. Its labels are set in voxels of which it covers more than half."""
    edge = np.float32(max(voxel, part.edge))
    low, high = part.shape.bounds()
    window = points.window(low - edge, high + edge)
    if window is None:
        return
    block = points.block(window)
    cover = np.zeros(block.shape, np.float32)
    for offset in SUB_SLICES:
        cover += np.clip(0.5 - part.shape.distance(block.shifted(offset)) / edge, 0, 1)
    cover /= len(SUB_SLICES)
    image, grain = canvas.image[window], canvas.grain[window]
    image += cover * (np.float32(value) - image)
    grain += cover * (np.float32(TEXTURE.get(part.tissue, DEFAULT_TEXTURE)) - grain)
    covered = cover > 0.5
    if part.organ is not None:
        canvas.organs[window][covered] = part.organ
    if part.label is not None:
        canvas.labels[window][covered] = part.label


def _draw_texture(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    rough = rng.standard_normal(TEXTURE_LATTICE, dtype=np.float32)
    texture = ndimage.gaussian_filter(rough, 0.7)
    texture = texture / texture.std() + 0.7 * _unit(ndimage.gaussian_filter(rough, 2.5))
    return _stretch(texture, shape)


def _acquire_ct(canvas: _Canvas, rng: np.random.Generator, size: Size) -> NDArray[np.int16]:
    """Return the attenuation in HU, with texture and noise of the same standard deviation everywhere."""
    shape = canvas.image.shape
    hu = canvas.image + CT_GRAIN * canvas.grain * _draw_texture(rng, shape)
    sigma = np.float32(rng.uniform(*CT_NOISE) * (0.6 if size == "small" else 1))
    hu += sigma * rng.standard_normal(shape, dtype=np.float32)
    voxels: NDArray[np.int16] = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return voxels


def _acquire(canvas: _Canvas, rng: np.random.Generator, size: Size) -> NDArray[np.int16]:
    """Return the measured intensities, with texture, bias field, Rician noise and an arbitrary scale."""
    shape = canvas.image.shape
    signal = canvas.image * (1 + canvas.grain * _draw_texture(rng, shape))
    signal *= np.exp(_stretch(0.13 * _unit(ndimage.gaussian_filter(rng.standard_normal((6, 8, 8)), 1.5)), shape))
    sigma = np.float32(rng.uniform(0.02, 0.045) * (0.6 if size == "small" else 1))
    scale = np.float32(np.exp(rng.uniform(np.log(500), np.log(1400))))
    real = signal + sigma * rng.standard_normal(shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(shape, dtype=np.float32)
    measured = np.hypot(real, imaginary) * scale
    voxels: NDArray[np.int16] = np.clip(np.rint(measured), 0, np.iinfo(np.int16).max).astype(np.int16)
    return voxels


def _triple(values: Vector) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _unit(values: NDArray[np.floating]) -> Field:
    unit: Field = (values / values.std()).astype(np.float32)
    return unit


def _stretch(lattice: Field, shape: tuple[int, ...]) -> Field:
    """Resize a lattice to `shape` by linear interpolation along one axis after the other."""
    for axis, count in enumerate(shape):
        at = np.linspace(0, lattice.shape[axis] - 1, count)
        low = np.minimum(at.astype(int), lattice.shape[axis] - 2)
        weight = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        first, second = np.take(lattice, low, axis), np.take(lattice, low + 1, axis)
        lattice = first + weight * (second - first)
    return lattice.astype(np.float32, copy=False)
