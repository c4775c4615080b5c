"""The way of one case with the demo models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from matrix import saw
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import Phantom, make_phantom
from pantherseg.pipeline import System, load_system, segment
from pantherseg.recipe import load_recipe
from pantherseg.volume import Box, Volume

SAMPLE_SEED = {1: 5001, 2: 5004}


@pytest.fixture(scope="module")
def phantoms() -> dict[int, Phantom]:
    return {task: make_phantom(seed, task=task, size="small") for task, seed in SAMPLE_SEED.items()}


@pytest.fixture(scope="module")
def systems() -> dict[int, System]:
    return {task: load_system(load_recipe(task_recipe(task)), DEMO_WEIGHTS, device="cpu") for task in (1, 2)}


def image_of(phantom: Phantom) -> Volume:
    return Volume(phantom.image.array.astype(np.float32), phantom.image.grid)


def small_crop(phantom: Phantom) -> Volume:
    """A piece of the abdomen, so that searching all of it takes one tile."""
    middle = [size // 2 for size in phantom.image.grid.shape]
    z, y, x = middle
    return image_of(phantom).crop(Box((z - 8, y - 20, x - 24), (z + 8, y + 20, x + 24)))


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    return 2 * float((mask & reference).sum()) / float(mask.sum() + reference.sum())


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_a_phantom_becomes_a_mask_on_its_grid(
    task: int, phantoms: dict[int, Phantom], systems: dict[int, System]
) -> None:
    result = segment(image_of(phantoms[task]), systems[task])
    assert result.mask.grid == phantoms[task].image.grid
    assert result.mask.array.dtype == np.uint8
    assert dice(result.mask.array == 1, phantoms[task].labels.array == 1) >= 0.7
    report = json.loads(json.dumps(result.as_dict()))
    assert report["events"] == []
    assert report["not_for_clinical_use"] is True
    assert report["tumour_ml"] == pytest.approx(result.mask.array.sum() * result.mask.grid.voxel_mm3 / 1000, abs=1e-3)


@pytest.mark.slow
def test_the_localizer_narrows_the_search_to_a_box_that_holds_the_tumour(
    phantoms: dict[int, Phantom], systems: dict[int, System]
) -> None:
    phantom = phantoms[2]
    result = segment(image_of(phantom), systems[2])
    assert np.prod(result.box.shape) < 0.5 * phantom.image.array.size
    tumour = phantom.labels.array == 1
    assert tumour[result.box.slices].sum() == tumour.sum()
    assert "localizer" in result.seconds


@pytest.mark.fault(
    "localizer",
    "the localizer finds nothing: noise instead of an abdomen",
    "the whole volume is searched, an event says why, and the mask is not empty",
)
@pytest.mark.slow
def test_no_pancreas_means_that_the_whole_volume_is_searched(
    phantoms: dict[int, Phantom], systems: dict[int, System]
) -> None:
    grid = small_crop(phantoms[2]).grid
    noise = np.random.default_rng(0).normal(100, 10, grid.shape).astype(np.float32)
    result = segment(Volume(noise, grid), systems[2])
    saw(result)
    assert result.box.shape == grid.shape
    assert "no_pancreas_found" in [event.code for event in result.events]
    assert result.mask.array.any(), "the challenge's recipe rescues an empty mask"


@pytest.mark.fault("localizer", "no localizer among the models", "the mask of the whole volume, and an event")
@pytest.mark.slow
def test_without_a_localizer_the_whole_volume_is_searched(tmp_path: Path, phantoms: dict[int, Phantom]) -> None:
    (tmp_path / "task2").symlink_to(DEMO_WEIGHTS / "task2")
    system = load_system(load_recipe(task_recipe(2)), tmp_path, device="cpu")
    volume = small_crop(phantoms[2])
    result = segment(volume, system)
    saw(result)
    assert [event.code for event in result.events][:1] == ["no_localizer"]
    assert result.box.shape == volume.grid.shape


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize(
    "rescue",
    [
        pytest.param(
            True,
            marks=pytest.mark.fault(
                "inputs",
                "a black image, Task {task}",
                "a mask that is not empty, as every case of the challenge has a tumour",
            ),
        ),
        False,
    ],
)
def test_a_constant_image_is_rescued_or_left_empty(
    task: int, rescue: bool, phantoms: dict[int, Phantom], systems: dict[int, System]
) -> None:
    grid = small_crop(phantoms[task]).grid
    result = segment(Volume(np.zeros(grid.shape, np.float32), grid), systems[task], rescue=rescue)
    saw(result)
    codes = [event.code for event in result.events]
    assert result.mask.array.shape == grid.shape
    if rescue:
        assert result.mask.array.any()
    else:
        assert result.mask.array.any() or "empty_mask" in codes
