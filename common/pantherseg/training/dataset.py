"""Reads a data set folder in PANTHER's layout, and writes it as a raw nnU-Net data set.

PANTHER's layout: imagesTr/<case>_0000.mha and labelsTr/<case>.mha (0 background, 1 tumour, 2 pancreas). Phantoms may
also have organsTr/<case>.mha (MRSegmentator's first labels). A case is named by its label file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pantherseg.errors import InputError
from pantherseg.files import write_text
from pantherseg.io import find_sources, read_labels, read_volume, write_volume
from pantherseg.labels import LABEL_MAPS, LabelMapName, tumour_of
from pantherseg.model_sources.nnunet import ORIENTATION_KEY
from pantherseg.training.training_recipe import TrainingRecipe
from pantherseg.volume import Box, Volume


def list_cases(data: Path, labels: LabelMapName) -> list[str]:
    """Return the names of all cases of a data set folder, sorted.

    Raises InputError if there is no case, or if a case has no image.
    """
    folder = _label_folder(data, labels)
    cases = [path.stem for path in find_sources(folder) if path.suffix == ".mha"]
    if not cases:
        raise InputError(folder, expected="label volumes <case>.mha", found="none")
    for case in cases:
        image = _image_path(data, case)
        if not image.is_file():
            raise InputError(image, expected=f"the image of label {case}.mha", found="no such file")
    return cases


def read_case(recipe: TrainingRecipe, data: Path, case: str) -> tuple[Volume, Volume]:
    """Return the image (float32) and the label map (uint8) of a case, turned, cropped and relabelled by the recipe.

    Raises InputError if a file cannot be read, if the grids differ, or if there is no pancreas to crop to.
    """
    image = read_volume(_image_path(data, case)).turned_to(recipe.orientation)
    label_path = _label_folder(data, recipe.labels) / f"{case}.mha"
    label = read_labels(label_path).turned_to(recipe.orientation)
    if difference := label.grid.difference(image.grid):
        raise InputError(label_path, expected="the grid of its image", found=difference)
    if recipe.crop_margin_mm is not None:
        box = Box.around(label.array > 0)
        if box is None:
            raise InputError(label_path, expected="a pancreas to crop to", found="an empty label map")
        box = box.expanded(recipe.crop_margin_mm, image.grid)
        image, label = image.crop(box), label.crop(box)
    array = tumour_of(label.array) if recipe.labels == "tumour" else label.array
    return image, Volume(array.astype(np.uint8), label.grid)


def write_nnunet_dataset(recipe: TrainingRecipe, data: Path, raw: Path) -> Path:
    """Write all cases, as `read_case` returns them, to raw/Dataset<id>_<name>, and return that folder.

    Raises InputError as `list_cases` and `read_case`.
    """
    cases = list_cases(data, recipe.labels)
    folder = raw / f"Dataset{recipe.dataset_id:03d}_{recipe.name}"
    shutil.rmtree(folder, ignore_errors=True)  # otherwise nnU-Net would also train on the cases of an earlier run
    for case in cases:
        image, label = read_case(recipe, data, case)
        write_volume(image, _image_path(folder, case))
        write_volume(label, folder / "labelsTr" / f"{case}.mha")
    description = {
        "channel_names": {"0": "MR"},
        "labels": LABEL_MAPS[recipe.labels],
        "numTraining": len(cases),
        "file_ending": ".mha",
        ORIENTATION_KEY: recipe.orientation,
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    return folder


def _image_path(data: Path, case: str) -> Path:
    return data / "imagesTr" / f"{case}_0000.mha"


def _label_folder(data: Path, labels: LabelMapName) -> Path:
    return data / ("organsTr" if labels == "organs" else "labelsTr")
