"""Probabilities and scores of validation cases, on the grid of the volumes that came in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from data_sets import SHAPE, image_of, panther_labels
from pantherseg.datasets.raw import Crop, RawCase, RawDataset, new_dataset
from pantherseg.io.probabilities import read_probability
from pantherseg.labels import LABEL_MAPS, TUMOUR
from pantherseg.training.out_of_fold import OutOfFold
from pantherseg.volume import Box, Grid, Volume
from test_fusion import Member

GRID = Grid(SHAPE, (3.0, 1.25, 1.0), (-20.0, 30.0, 100.0))
BOX = Box((1, 1, 2), (5, 7, 9))


def data_set(raw: Path, number: int, box: Box, crop: Crop | None) -> RawDataset:
    """Write a data set of one case, a box of the volume."""
    image = Volume(image_of("1_1").astype(np.float32), GRID).crop(box)
    with new_dataset(
        raw, number, "A", labels=LABEL_MAPS["tumour+pancreas"], orientation="LPS", file_ending=".mha"
    ) as new:
        new.add("1_1", RawCase(patient="1", crop=crop), image, Volume(panther_labels(), GRID).crop(box))
    return RawDataset.open(new.target)


@pytest.mark.parametrize("crops", [True, False], ids=["by the stage", "before the import"])
def test_probabilities_are_on_the_grid_of_the_volumes_that_came_in(tmp_path: Path, crops: bool) -> None:
    cropped = data_set(tmp_path / "raw", 1, BOX, Crop(start=BOX.start, stop=BOX.stop, shape=SHAPE))
    whole = data_set(tmp_path / "uncropped", 1, Box.whole(SHAPE), None) if crops else cropped
    kept = OutOfFold(whole.folder, cropped.folder, tmp_path / "probabilities")
    label = cropped.label("1_1")
    assert label is not None
    logits = np.stack([20.0 * (label.array == number) for number in range(3)]).astype(np.float32)
    kept.add("1_1", cropped.image("1_1"), cast(Any, Member(logits)))
    probability = read_probability(tmp_path / "probabilities" / "1_1.npz")
    reference = whole.label("1_1")
    assert reference is not None
    assert not probability.grid.difference(reference.grid)
    np.testing.assert_array_equal(probability.array > 0.5, reference.array == TUMOUR)
    assert kept.scores["1_1"]["official"]["dice"] == 1.0
