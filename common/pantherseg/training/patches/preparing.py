"""Plans, and cases prepared for training by the same code as at inference, so that networks see the same voxels."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import map_classes_to_indices
from numpy.typing import NDArray

from pantherseg import __version__
from pantherseg.datasets.raw import RawDataset
from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import InputError, last_line, os_reason
from pantherseg.files import written_beside
from pantherseg.model_sources.lightning_plans import LightningPlans, read_plans, write_plans
from pantherseg.orientation import DEFAULT_ORIENTATION
from pantherseg.preprocessing.resample import SPLINE, Resampling
from pantherseg.training.lightning_recipe import LightningSettings
from pantherseg.training.patches.folders import IMAGE, LABELS, VOXELS, PatchFolders
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

# Of each label, patches are centred on at most this many voxels of a case, as in nnU-Net.
MAX_VOXELS = 10_000
# nnU-Net's label maps are resampled linearly, one label at a time; the most probable label of a voxel is then taken.
LABEL_RESAMPLING = Resampling(function=SPLINE, order=1, order_z=0)
PACKAGES = ("torch", "lightning", "monai")


def plans_of(folders: PatchFolders, settings: LightningSettings) -> LightningPlans:
    """Return the plans of the models that a data set is trained for. Raises InputError."""
    dataset, plan = RawDataset.open(folders.dataset), settings.plan
    return LightningPlans(
        task=folders.name.partition("_")[2],
        architecture=plan.network,
        labels=dict(dataset.labels),
        spacing_zyx=plan.spacing,
        patch_size_zyx=plan.patch_size,
        normalization=plan.normalization,
        orientation=dataset.orientation or DEFAULT_ORIENTATION,
        trained_with={"pantherseg": __version__, **{name: version(name) for name in PACKAGES}},
        mirroring_axes=settings.schedule.mirroring_axes,
    )


def prepare_cases(folders: PatchFolders, settings: LightningSettings) -> None:
    """Write the plans and every case of a data set, in place of what was prepared before. Raises InputError."""
    folders.check()
    dataset, plans = RawDataset.open(folders.dataset), plans_of(folders, settings)
    shutil.rmtree(folders.preprocessed, ignore_errors=True)
    folders.preprocessed.mkdir(parents=True)
    for number, case in enumerate(dataset.cases):
        label = dataset.label(case)
        assert label is not None  # a stage has labels
        image, labels = prepare(dataset.image(case), label, plans)
        voxels = map_classes_to_indices(labels[None], len(plans.labels), max_samples_per_class=MAX_VOXELS)
        np.save(folders.case(case, IMAGE), image)
        np.save(folders.case(case, LABELS), labels)
        named: dict[str, Any] = {f"label_{k}": np.asarray(each) for k, each in enumerate(voxels)}
        np.savez(folders.case(case, VOXELS), **named)
        logger.debug("%s: %s prepared, %d of %d", folders.name, case, number + 1, len(dataset.cases))
    write_plans(folders.preprocessed, plans)
    with written_beside(folders.preprocessed / SPLITS) as beside:  # last: see `is_preprocessed`
        shutil.copyfile(folders.dataset / SPLITS, beside)


def prepare(image: Volume, label: Volume, plans: LightningPlans) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a case as the network sees it (z, y, x), and its labels on the same grid.

    The image is exactly the input at inference. Raises InputError as `Preprocessing.run`.
    """
    turn = image.grid.turn_to(plans.orientation)
    prepared = plans.preprocessing.run(image.array, image.grid.spacing, turn)
    box, data = prepared.back.box, prepared.data[0]
    given = turn.order(image.grid.spacing)
    turned = turn.view(label.array)[box.slices]
    resizer = LABEL_RESAMPLING.resizer(box.shape, data.shape, given, plans.spacing_zyx)
    each = np.stack([turned == k for k in range(len(plans.labels))]).astype(np.float32)
    return data, resizer.resize(each).argmax(0).astype(np.uint8)


def check_prepared(folders: PatchFolders, plans: LightningPlans, cases: Iterable[str]) -> None:
    """Raise InputError unless these cases of a data set are prepared, as the plans say, and their files complete."""
    folders.check()
    if not folders.is_preprocessed:
        raise InputError(folders.preprocessed, expected="a preprocessed data set", found="none, or an incomplete one")
    found = read_plans(folders.preprocessed)
    if (found.preprocessing, found.labels) != (plans.preprocessing, plans.labels):
        raise InputError(folders.preprocessed, expected="cases prepared by the same plans", found="other plans")
    for case in cases:
        for what in (IMAGE, LABELS, VOXELS):
            _check_complete(folders.case(case, what), len(plans.labels))


def _check_complete(path: Path, classes: int) -> None:
    """Raise InputError unless a file of a prepared case can be read. Images and labels are only mapped, not read."""
    try:
        if path.name.endswith(VOXELS):
            # NumPy leaves a damaged archive open that it opens itself.
            with path.open("rb") as file, np.load(file) as voxels:
                for label in range(classes):
                    voxels[f"label_{label}"]
        else:
            np.load(path, mmap_mode="r")
    except MemoryError:
        raise
    # The kind of error depends on which byte of the file is damaged.
    except Exception as error:
        reason = os_reason(error) if isinstance(error, OSError) else last_line(error)
        hint = f"remove the folder {path.parent.name} that it is in, and run the command again"
        raise InputError(path, expected="a file of a preprocessed case", found=reason, hint=hint) from error
