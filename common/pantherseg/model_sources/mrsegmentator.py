"""MRSegmentator's weights: nnU-Net model folders with a version.json beside the plans.

Version 1.2 of the package keeps them in <package>/weights, version 2.0 in ~/.mrsegmentator/base, and both look in the
folder that MRSEG_WEIGHTS_PATH names. Version 2.0 keeps a second model, `body_comp`, beside `base`; it has no pancreas.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

from pantherseg.orientation import Orientation

NAME = "mrsegmentator"
VERSION, VERSION_KEY = "version.json", "weights_version"
# The model with the 40 structures of which the pancreas is number 7, and how many classes it has with the background.
BASE, BASE_CLASSES = "base", 41
# The package reads volumes with its own reader, whatever the plans say, and turns them to this orientation.
TURNED_TO: Orientation = "LPS"
WEIGHTS_VARIABLE = "MRSEG_WEIGHTS_PATH"


def is_mrsegmentator(folder: Path) -> bool:
    """Return whether a folder holds weights of MRSegmentator, complete or not."""
    try:
        content = json.loads((folder / VERSION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and VERSION_KEY in content


def weights_folders() -> tuple[Path, ...]:
    """Return where the package looks for the weights of `base`, in its order: the first that has a model counts."""
    if given := os.environ.get(WEIGHTS_VARIABLE):
        return Path(given), Path(given, BASE)
    home = Path.home() / f".{NAME}"
    package = find_spec(NAME)  # without importing it, which would import torch
    old = () if package is None or package.origin is None else (Path(package.origin).parent / "weights",)
    return home / BASE, *old
