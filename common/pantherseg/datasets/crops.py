"""Cuts the cases of a raw data set to the region around the pancreas in which a recipe's members look at inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from pantherseg.datasets.case_checks import CHECKS, CaseVolumes, read_case
from pantherseg.datasets.raw import CASES, Crop, RawDataset, new_dataset
from pantherseg.datasets.splits import splits_of, write_splits
from pantherseg.errors import InputError, ModelError, RecipeError, first_few
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import BACKGROUND
from pantherseg.localize import SEARCHED_WHOLE, localize, localizer_predictor, with_surroundings
from pantherseg.model_sources.nnunet import DATASET
from pantherseg.models.find import find_localizer
from pantherseg.orientation import NO_TURN, Orientation
from pantherseg.packing.pack import Packer
from pantherseg.recipe import Localizer, Recipe
from pantherseg.volume import Box, Volume

# The share of the labelled voxels that a localizer's box must hold; a network learns little from a smaller one.
MIN_INSIDE = 0.5


def load_localizer(recipe: Recipe, root: Path, *, device: str = "auto") -> tuple[Predictor, Localizer]:
    """Return a recipe's localizer, from a folder of models, ready on a device, and its settings.

    Raises RecipeError for a recipe without a localizer, ModelError if the folder lacks it or it cannot be used, and
    DeviceError.
    """
    settings = recipe.localizer
    if settings is None:
        raise RecipeError(recipe.name, expected="a recipe with a localizer to crop by", found="none")
    model = find_localizer(root, settings)
    if model is None:
        raise ModelError(root, expected=f"the localizer '{settings.model}'", found="none")
    backend = choose_backend(device)
    return localizer_predictor(model, settings, Packer([model]), backend, keep_networks=True), settings


def crop_dataset(
    source: RawDataset,
    raw: Path,
    dataset_id: int,
    name: str,
    *,
    localizer: Predictor,
    settings: Localizer,
    keep_splits: bool = False,
    on_case: Callable[[str], object] | None = None,
) -> RawDataset:
    """Write a data set as raw/Dataset<id>_<name> whose cases are cut to the localizer's boxes, and return it.

    Where the localizer finds no box, or one with less than half of the labelled voxels, the box is that around the
    label map with the same margin; a case without labels stays whole, as at inference. cases.json has each case's box,
    and a remark where it is not the localizer's or leaves labelled voxels out. keep_splits: give the new data set the
    splits of the old one; on_case: called with each case that is done.

    Raises InputError for a case that breaks a rule of CHECKS, a data set that has no orientation, is cropped already or
    has splits that do not suit it, OutputError, and what `Predictor.predict` raises.
    """
    orientation = _check_source(source)
    splits = splits_of(source) if keep_splits else None
    with new_dataset(
        raw, dataset_id, name, labels=source.labels, orientation=orientation, file_ending=source.file_ending
    ) as new:
        for case, known in source.cases.items():
            volumes = _checked(source, case)
            image, label = volumes.image, volumes.label
            crop, remark = _crop_of(image, label, localizer, settings)
            known = msgspec.structs.replace(known, crop=crop, remark=remark)
            new.add(case, known, image.crop(crop.box), None if label is None else label.crop(crop.box))
            if on_case is not None:
                on_case(case)
        if splits is not None:
            write_splits(new.folder, splits)
    return RawDataset.open(new.target)


def _check_source(source: RawDataset) -> Orientation:
    """Return the orientation of a data set that can be cropped. Raises InputError."""
    if source.orientation is None:
        hint = f"import it with --from raw={source.folder}"
        raise InputError(source.folder / DATASET, expected="the orientation of the volumes", found="none", hint=hint)
    if cropped := [case for case, known in source.cases.items() if known.crop is not None]:
        found = f"the crops of {first_few(cropped)}"
        raise InputError(
            source.folder / CASES, expected="whole volumes", found=found, hint="crop the original data set"
        )
    return source.orientation


def _checked(source: RawDataset, case: str) -> CaseVolumes:
    """Return the volumes of a case. Raises InputError if they break a rule that an imported case keeps."""
    values = {number: name for name, number in source.labels.items()}
    label = source.label_path(case) if source.has_labels else None
    volumes = read_case(source.image_path(case), label, values=values, orientation=source.orientation)
    if volumes.turn != NO_TURN:  # the box would not be that of the file
        raise InputError(
            volumes.image_path, expected=f"the orientation {source.orientation}, as stated", found="another one"
        )
    for check in CHECKS.values():
        check(volumes)
    return volumes


def _crop_of(image: Volume, label: Volume | None, localizer: Predictor, settings: Localizer) -> tuple[Crop, str]:
    """Return to what a case is cut, and a remark, which is empty where there is nothing to say."""
    try:
        located = localize(image, localizer, settings)
        box = located.box
        reason = "" if box else located.events[-1].message.removesuffix(SEARCHED_WHOLE)
    except InputError as error:
        box, reason = None, str(error)
    labelled = None if label is None else label.array != BACKGROUND
    around = None if labelled is None else Box.around(labelled)
    if labelled is None or around is None:
        return _crop(box or Box.whole(image.grid.shape), image), f"{reason}: not cropped" if reason else ""
    total, inside = int(labelled.sum()), 0 if box is None else int(labelled[box.slices].sum())
    left_out = f"the localizer's box leaves out {total - inside} of {total} labelled voxels"
    if box is not None and inside >= MIN_INSIDE * total:
        return _crop(box, image), left_out if inside < total else ""
    remark = f"{reason or left_out}: cropped to the label map with the margin"
    return _crop(with_surroundings(around, settings, image.grid), image, by_reference=True), remark


def _crop(box: Box, image: Volume, *, by_reference: bool = False) -> Crop:
    return Crop(start=box.start, stop=box.stop, shape=image.grid.shape, by_reference=by_reference)
