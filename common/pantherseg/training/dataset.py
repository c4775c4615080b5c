"""A data set folder in PANTHER's layout -> a raw nnU-Net data set.

PANTHER's layout: imagesTr/<case>_0000.mha and labelsTr/<case>.mha (0 background, 1 tumour, 2 pancreas); phantoms
may bring organsTr/<case>.mha (MRSegmentator's first labels). A case is the name of its label file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from pantherseg.errors import InputError
from pantherseg.files import write_text
from pantherseg.io import find_sources, read_image, read_labels, write_volume
from pantherseg.training.recipe import TrainingRecipe
from pantherseg.volume import Box, Volume

LABELS = {
    "tumour+pancreas": {"background": 0, "tumour": 1, "pancreas": 2},
    "tumour": {"background": 0, "tumour": 1},
    # MRSegmentator's first seven of 40.
    "organs": {
        "background": 0,
        "spleen": 1,
        "right_kidney": 2,
        "left_kidney": 3,
        "gallbladder": 4,
        "liver": 5,
        "stomach": 6,
        "pancreas": 7,
    },
}


def list_cases(data: Path, labels: str) -> list[str]:
    """Return the names of all cases of a data set folder, sorted. Raises InputError where one is incomplete."""
    label_folder = data / ("organsTr" if labels == "organs" else "labelsTr")
    cases = [path.stem for path in find_sources(label_folder) if path.suffix == ".mha"]
    if not cases:
        raise InputError(label_folder, expected="label volumes <case>.mha", found="none")
    for case in cases:
        image = data / "imagesTr" / f"{case}_0000.mha"
        if not image.is_file():
            raise InputError(image, expected=f"the image of label {case}.mha", found="no such file")
    return cases


def write_nnunet_dataset(recipe: TrainingRecipe, data: Path, raw: Path) -> Path:
    """Write the cases as this recipe sees them to raw/Dataset<id>_<name>, and return that folder.

    Raises InputError for cases that are missing, unreadable, or whose label lies on another grid.
    """
    cases = list_cases(data, recipe.labels)
    folder = raw / f"Dataset{recipe.dataset_id:03d}_{recipe.name}"
    shutil.rmtree(folder, ignore_errors=True)  # cases of an earlier run would be trained on too
    for case in cases:
        image, label = _read_case(recipe, data, case)
        write_volume(image, folder / "imagesTr" / f"{case}_0000.mha")
        write_volume(label, folder / "labelsTr" / f"{case}.mha")
    description = {
        "channel_names": {"0": "MR"},
        "labels": LABELS[recipe.labels],
        "numTraining": len(cases),
        "file_ending": ".mha",
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    return folder


def _read_case(recipe: TrainingRecipe, data: Path, case: str) -> tuple[Volume, Volume]:
    image, _ = read_image(data / "imagesTr" / f"{case}_0000.mha")
    label_path = data / ("organsTr" if recipe.labels == "organs" else "labelsTr") / f"{case}.mha"
    label = read_labels(label_path)
    if difference := label.grid.difference(image.grid):
        raise InputError(label_path, expected="the image's grid", found=difference)
    if recipe.crop_margin_mm is not None:
        box = Box.around(label.array > 0)
        if box is None:
            raise InputError(label_path, expected="a pancreas to crop to", found="an empty label")
        box = box.expanded(recipe.crop_margin_mm, image.grid)
        image, label = image.crop(box), label.crop(box)
    array = label.array
    if recipe.labels == "tumour":
        array = array == 1
    return image, Volume(array.astype(np.uint8), label.grid)
