"""The labels of PANTHER's masks and of the models that are trained here.

For inference, `tumour_label` and `localizer.label` of a recipe name the labels of its models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# The labels of PANTHER's masks, and their names in label maps.
BACKGROUND, TUMOUR, PANCREAS = 0, 1, 2
BACKGROUND_NAME, TUMOUR_NAME, PANCREAS_NAME = "background", "tumour", "pancreas"

# What names of tumours contain.
TUMOUR_WORDS = (TUMOUR_NAME, "cancer", "lesion")

# The first seven of MRSegmentator's 40 labels.
ORGANS = {"spleen": 1, "right_kidney": 2, "left_kidney": 3, "gallbladder": 4, "liver": 5, "stomach": 6, "pancreas": 7}

LabelMapName = Literal["tumour+pancreas", "tumour", "organs"]
# The label maps that models are trained on, by the name that a training file uses for them.
LABEL_MAPS: dict[LabelMapName, dict[str, int]] = {
    "tumour+pancreas": {BACKGROUND_NAME: BACKGROUND, TUMOUR_NAME: TUMOUR, PANCREAS_NAME: PANCREAS},
    "tumour": {BACKGROUND_NAME: BACKGROUND, TUMOUR_NAME: TUMOUR},
    "organs": {BACKGROUND_NAME: BACKGROUND, **ORGANS},
}


def tumour_of(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a label map in PANTHER's numbering, of any shape, has the tumour."""
    tumour: NDArray[np.bool_] = array == TUMOUR
    return tumour


def find_label(labels: Mapping[str, int], name: str) -> int | None:
    """Return the number that a model's label map gives to `name`, or None if the map does not have it.

    Upper and lower case are the same, and so are the spellings "tumor" and "tumour".
    """
    return next((number for other, number in labels.items() if _comparable(other) == _comparable(name)), None)


def tumour_label_warning(labels: Mapping[str, int], tumour_label: int) -> str:
    """Return a warning if a model's label map calls the tumour's number pancreas, else an empty string.

    In the order of the Medical Segmentation Decathlon, 1 is the pancreas and 2 the tumour.
    """
    if find_label(labels, PANCREAS_NAME) != tumour_label:
        return ""
    problem = f"label {tumour_label}, the recipe's tumour_label, is called pancreas"
    tumours = [name for name in labels if any(word in _comparable(name) for word in TUMOUR_WORDS)]
    if len(tumours) == 1:
        number = labels[tumours[0]]
        return f"{problem}, and label {number} {tumours[0]}: set tumour_label = {number} in the recipe"
    return f"{problem}: set tumour_label in the recipe to the number of the tumour"


def localizer_label_warning(labels: Mapping[str, int], label: int) -> str:
    """Return a warning if a localizer's label map gives the pancreas another number than `label`, else nothing."""
    if (number := find_label(labels, PANCREAS_NAME)) in (None, label):
        return ""
    name = next((name for name, other in labels.items() if other == label), "unknown")
    problem = f"label {label}, the recipe's localizer.label, is called {name}, and label {number} pancreas"
    return f"{problem}: set label = {number} in the recipe's localizer"


def _comparable(name: str) -> str:
    return name.casefold().replace("tumor", "tumour")
