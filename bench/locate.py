"""Finds the pancreas in one image with a recipe's localizer and writes its mask, to time whole processes.

python -m bench.locate RECIPE MODELS IMAGE OUTPUT [--mode exact|fast]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pantherseg.inference.backends import choose_backend
from pantherseg.io import read_volume, write_volume
from pantherseg.localize import copy_to_search, localizer_predictor
from pantherseg.machine.memory import reserve_memory
from pantherseg.models.find import find_localizer
from pantherseg.packing.pack import Packer
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume


def main() -> None:
    """Find the pancreas in one image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("recipe", "models", "image", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--mode", choices=("exact", "fast"), default="exact")
    options = parser.parse_args()
    reserve_memory()
    settings = load_recipe(options.recipe).localizer
    assert settings is not None
    model = find_localizer(options.models, settings)
    assert model is not None
    predictor = localizer_predictor(model, settings, Packer([model]), choose_backend("cpu", options.mode))
    volume = copy_to_search(read_volume(options.image), settings)
    mask = predictor.predict(volume).mask(settings.label)
    write_volume(Volume(mask.astype(np.uint8), volume.grid), options.output, like=options.image)


if __name__ == "__main__":
    main()
