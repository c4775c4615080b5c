"""The Python interface: load the models of a recipe once, then segment any number of volumes.

>>> session = pantherseg.load(task=1)
>>> volume = pantherseg.read_volume("scan.mha")
>>> mask = pantherseg.segment(volume, session).mask
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pantherseg import io
from pantherseg.errors import InputError
from pantherseg.inference.backends import Mode
from pantherseg.io.dicom.choice import SeriesChoice
from pantherseg.io.direction import with_orthogonal_axes
from pantherseg.io.limits import check_spacing
from pantherseg.machine.deadline import Deadline
from pantherseg.paths import DEMO_WEIGHTS, find_recipe, task_recipe
from pantherseg.pipeline import Segmentation
from pantherseg.pipeline import segment as segment_volume
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume


def load(
    task: int | None = None,
    *,
    recipe: str | Path | None = None,
    models: str | Path | None = None,
    device: str = "auto",
    mode: Mode = "exact",
    members: Sequence[str] | None = None,
) -> Session:
    """Load the models of a recipe.

    task: 1 or 2, for the recipe of that task of PANTHER; or recipe: the path of another recipe, or the name of a
    shipped one, such as "system_a_task1".
    models: folder of models, by default the demo models, which were trained on phantoms only.
    device: "auto", "cpu" or "cuda". mode: "exact" for the masks of nnU-Net's own predictor, "fast" for less work: later
    folds look only where a tumour may be, and CPUs with bfloat16 compute in it. members: the names of those of the
    recipe's members that take part, or with a minus in front of those that do not; by default all.

    Raises RecipeError, ModelError and DeviceError; ValueError for another device or mode, and unless exactly one of
    task and recipe is given.
    """
    if (task is None) == (recipe is None):
        raise ValueError("load needs either a task or a recipe")
    path = find_recipe(Path(recipe)) if recipe is not None else task_recipe(task or 0)
    settings, root = load_recipe(path), Path(models or DEMO_WEIGHTS)
    session = Session(settings, root, device=device, mode=mode, many_cases=True, members=members)
    session.load()
    return session


def segment(volume: Volume, session: Session) -> Segmentation:
    """Segment the tumour in a volume (z, y, x; arbitrary MR units), with the models that `load` returned.

    The result's `mask` is a Volume on the same grid (uint8, 1 = tumour). Raises InputError, and
    ModelError for a fold that is damaged or was replaced, as folds are verified when they are first used.
    """
    _check(volume)
    return segment_volume(volume, session, deadline=Deadline.after(session.recipe.time_budget_s))


def read_volume(path: str | Path, *, series: str = "") -> Volume:
    """Read an MR volume as float32 (z, y, x): a .mha, .mhd, .nii, .nii.gz or .nrrd file, or a DICOM series.

    series: the UID of a series, where a folder or archive of DICOM has several. Logs a warning for everything that was
    corrected, such as NaN voxels. Raises InputError.
    """
    return io.read_volume(Path(path), SeriesChoice(uid=series))


def _check(volume: Volume) -> None:
    """Raise InputError about "volume" for what readers never return, but a caller may have made."""
    check_spacing("volume", volume.grid.spacing[::-1])
    with_orthogonal_axes("volume", volume.grid)
    if not np.isfinite(volume.array).all():
        hint = "replace them by the value of the background"
        raise InputError("volume", "its array has NaN or infinite values", hint=hint)
