"""Where a NIfTI file says that its voxels lie.

A header states it up to three times: by the sform (a matrix), by the qform (a rotation, an offset and the spacing in
pixdim), and by pixdim alone. As in nibabel and FSL, the sform is used if its code is set, else the qform if its code is
set, else pixdim. Where the others contradict what is used, an event says so.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import InputError
from pantherseg.events import Event, EventCode
from pantherseg.io.direction import as_matrix, with_orthogonal_axes
from pantherseg.io.limits import check_origin, check_spacing
from pantherseg.volume import Grid, Shape, as_shape, as_triple

# By NIfTI's code: their name, and mm. Any other code means mm: 2, and 0, by which a file says nothing.
UNITS = {1: ("metres", 1e3), 3: ("microns", 1e-3)}
UNIT_BITS = 7
# NIfTI's axes point to the right, front and top (RAS), those of a Grid to the left, back and top (LPS).
RAS_TO_LPS = np.array([[-1.0], [-1.0], [1.0]])
SCANNER = 1
# What qform and sform may differ by, in voxels.
MAX_DIFFERENCE = 0.1
# What pixdim and the sform's spacing may differ by before an event says so, and what rounding to float32 makes of it.
MAX_SPACING_DIFFERENCE, ROUNDING = 0.01, 5e-7
# A unit quaternion of which the three stored numbers are longer than this is damaged, not rounded.
MAX_QUATERNION = 1.001
RESAMPLE = (
    "resample it, for example in Python: "
    'nibabel.processing.resample_to_output(nibabel.load("scan.nii.gz")).to_filename("resampled.nii.gz")'
)
GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def grid_of(path: Path, header: Any) -> tuple[Grid, tuple[Event, ...]]:
    """Return the grid of a header (nibabel's) with at least three axes, and an event for everything unusual.

    Raises InputError.
    """
    # nibabel leaves the numbers as they are, ITK converts them.
    unit, mm = UNITS.get(int(header["xyzt_units"]) & UNIT_BITS, ("mm", 1.0))
    hint = "" if mm == 1 else f"its header gives lengths in {unit}"
    # Their signs mean nothing: the direction of an axis is in the affine matrix and in qfac.
    pixdim = np.abs(header["pixdim"][1:4].astype(float)) * mm
    form, affine = _affine(path, header)
    affine[:3] *= mm
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
    check_spacing(path, as_triple(spacing), hint=hint or f"this is the spacing of its {form}")
    lps = RAS_TO_LPS * affine[:3] + 0.0  # turns -0.0 into 0.0
    origin = as_triple(lps[:, 3])
    check_origin(path, origin)
    grid = Grid(
        shape=_shape(header),
        # The same numbers as other readers take from pixdim, where the matrix differs by rounding alone.
        spacing=as_triple(np.where(np.isclose(spacing, pixdim, rtol=ROUNDING, atol=0), pixdim, spacing)[::-1]),
        origin=origin,
        direction=as_matrix(lps[:, :3] / spacing),
    )
    grid, events = with_orthogonal_axes(path, grid, hint=RESAMPLE)
    if mm != 1:
        message = f"the header gives lengths in {unit}; they were converted to mm"
        events = (Event(EventCode.CONVERTED_TO_MM, message), *events)
    return grid, (*_contradictions(header, form, affine, pixdim, mm), *events)


def copy_geometry(source: Any, target: Any) -> None:
    """Copy all that says where the voxels lie from one header to another of the same kind."""
    target["pixdim"][:4] = source["pixdim"][:4]
    for field in GEOMETRY:
        target[field] = source[field]


def set_geometry(header: Any, grid: Grid) -> None:
    """Set qform and sform of a header, which has its shape already, to a grid."""
    affine = np.eye(4)
    affine[:3, :3] = RAS_TO_LPS * grid.direction * grid.spacing[::-1]
    affine[:3, 3] = RAS_TO_LPS[:, 0] * grid.origin
    header.set_sform(affine, code=SCANNER)
    header.set_qform(affine, code=SCANNER)
    header.set_xyzt_units("mm")


def _shape(header: Any) -> Shape:
    return as_shape(header["dim"][3:0:-1])


def _affine(path: Path, header: Any) -> tuple[str, NDArray[np.float64]]:
    """Return what the position is taken from, and the matrix (4, 4) from voxels (x, y, z) to RAS in the file's unit."""
    from nibabel.volumeutils import shape_zoom_affine

    if header["sform_code"] > 0:
        return "sform", header.get_sform().astype(float)
    if header["qform_code"] > 0:
        affine = _qform(header)
        if affine is None:
            found = " ".join(f"{header[f'quatern_{letter}']:g}" for letter in "bcd")
            raise InputError(path, expected="a unit quaternion as qform", found=f"{found} (b, c, d)")
        return "qform", affine
    return "pixdim", shape_zoom_affine(_shape(header)[::-1], np.abs(header["pixdim"][1:4]), x_flip=True)


def _qform(header: Any) -> NDArray[np.float64] | None:
    """Return the qform as a matrix (4, 4), or None if its quaternion is damaged.

    As in nibabel's loading of a file, but not in `get_qform`: spacings may be negative, and qfac any number. As in the
    NIfTI library: a quaternion that is too long by rounding is shortened.
    """
    from nibabel.quaternions import fillpositive, quat2mat

    quaternion = np.array([header[f"quatern_{letter}"] for letter in "bcd"], float)
    if not np.abs(quaternion).max() <= MAX_QUATERNION:  # also true for NaN
        return None
    length = float(np.linalg.norm(quaternion))
    if length > MAX_QUATERNION:
        return None
    qfac = -1.0 if header["pixdim"][0] == -1 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(fillpositive(quaternion / max(length, 1.0), header.quaternion_threshold))
    affine[:3, :3] *= np.abs(header["pixdim"][1:4]) * [1, 1, qfac]
    affine[:3, 3] = [header[f"qoffset_{letter}"] for letter in "xyz"]
    return affine


def _contradictions(
    header: Any, form: str, affine: NDArray[np.float64], pixdim: NDArray[np.float64], mm: float
) -> list[Event]:
    """Return an event for each part of a header that says something else than the matrix that is used (in mm)."""
    events = []
    if form == "pixdim":
        message = (
            "neither qform nor sform is set; the voxels are assumed to run from right to left, back to front and "
            "bottom to top, as in FSL and nibabel"
        )
        events.append(Event(EventCode.GEOMETRY_ASSUMED, message))
    if form != "sform" and (header["pixdim"][1:4] < 0).any():
        stored = " ".join(f"{length:g}" for length in header["pixdim"][1:4])
        events.append(Event(EventCode.NEGATIVE_SPACING, f"pixdim is {stored} (x, y, z); the magnitudes were used"))
    if form == "sform":
        spacing = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
        if not np.allclose(spacing, pixdim, rtol=MAX_SPACING_DIFFERENCE, atol=0):
            stated, used = (" ".join(f"{length:.4g}" for length in lengths) for lengths in (pixdim, spacing))
            message = f"pixdim states a spacing of {stated} mm (x, y, z), the sform {used} mm; the sform was used"
            events.append(Event(EventCode.PIXDIM_CONTRADICTS_SFORM, message))
        if header["qform_code"] > 0:
            events += _difference(_qform(header), affine, mm, _shape(header))
    return events


def _difference(qform: NDArray[np.float64] | None, sform: NDArray[np.float64], mm: float, shape: Shape) -> list[Event]:
    """Return an event if the qform (in the file's unit) puts a voxel of the volume elsewhere than the sform (in mm)."""
    how = "the qform is damaged"
    if qform is not None and np.isfinite(qform).all():
        corners = np.array(list(itertools.product((0, 1), repeat=3))) * (np.array(shape[::-1]) - 1)
        offsets = corners @ (qform[:3, :3] * mm - sform[:3, :3]).T + qform[:3, 3] * mm - sform[:3, 3]
        if np.abs(np.linalg.solve(sform[:3, :3], offsets.T)).max() <= MAX_DIFFERENCE:
            return []
        how = f"qform and sform differ by up to {np.linalg.norm(offsets, axis=1).max():.3g} mm"
    return [Event(EventCode.QFORM_CONTRADICTS_SFORM, f"{how}; the sform was used, as in nibabel and FSL")]
