"""Segmenting one volume with the demo models."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import dice, valid_report
from pantherseg.events import EventCode
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import Phantom, make_phantom
from pantherseg.pipeline import Segmentation, segment
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Volume, as_shape

SAMPLE_SEED = {1: 5001, 2: 5004}


@pytest.fixture(scope="module")
def phantoms() -> dict[int, Phantom]:
    return {task: make_phantom(seed, task=task, size="small") for task, seed in SAMPLE_SEED.items()}


@pytest.fixture(scope="module")
def sessions() -> dict[int, Session]:
    return {task: session_of(task) for task in (1, 2)}


def session_of(task: int, models: Path = DEMO_WEIGHTS, *, rescue: bool = True) -> Session:
    recipe = load_recipe(task_recipe(task)).with_rescue(rescue=rescue)
    return Session(recipe, models, device="cpu", many_cases=True)


def image_of(phantom: Phantom) -> Volume:
    return Volume(phantom.image.array.astype(np.float32), phantom.image.grid)


def small_crop(phantom: Phantom) -> Volume:
    """Return a piece of the abdomen that is small enough to be searched in one tile."""
    z, y, x = (size // 2 for size in phantom.image.grid.shape)
    return image_of(phantom).crop(Box((z - 8, y - 20, x - 24), (z + 8, y + 20, x + 24)))


def codes(result: Segmentation) -> list[EventCode]:
    """Return the event codes as they stand in the report; an unknown code is a ValueError."""
    return [EventCode(event["code"]) for event in report_of(result)["events"]]


def report_of(result: Segmentation) -> dict[str, Any]:
    """Return the report as it is written, after a check against its schema."""
    text = result.report(input_name="scan.mha", mask_path="masks/scan.mha").as_text()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        path.write_text(text)
        return valid_report(path)


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_segments_the_tumour_of_a_phantom(
    task: int, phantoms: dict[int, Phantom], sessions: dict[int, Session]
) -> None:
    phantom = phantoms[task]
    tumour = phantom.labels.array == 1
    result = segment(image_of(phantom), sessions[task])
    assert result.mask.grid == phantom.image.grid
    assert result.mask.array.dtype == np.uint8
    assert dice(result.mask.array == 1, tumour) >= 0.7
    report = report_of(result)
    assert report["events"] == []
    assert report["confidence"]["pairwise_dice"] > 0.7
    assert report["confidence"]["expected_dice"] > 0.6
    assert report["not_for_clinical_use"] is True
    assert report["tumour_ml"] == pytest.approx(result.mask.array.sum() * result.mask.grid.voxel_mm3 / 1000, abs=1e-3)
    assert ("localizer" in report["seconds"]) == (task == 2)
    assert (report["pancreas"] is None) == (task == 1)
    if task == 2:
        pancreas = phantom.organs.array == 7
        assert report["pancreas"]["ml"] == pytest.approx(pancreas.sum() * phantom.image.grid.voxel_mm3 / 1000, rel=0.4)
        around = Box(tuple(report["pancreas"]["box"]["start_zyx"]), tuple(report["pancreas"]["box"]["stop_zyx"]))
        assert pancreas[around.slices].sum() > 0.8 * pancreas.sum()
        assert around.joined(result.box) == result.box
        assert np.prod(result.box.shape) < 0.5 * phantom.image.array.size
        assert tumour[result.box.slices].sum() == tumour.sum(), "the localizer's box holds the whole tumour"


@pytest.mark.fault(
    "localizer",
    "the localizer finds nothing: noise instead of an abdomen",
    "the whole volume is searched, an event says why, and the mask is not empty",
)
@pytest.mark.slow
def test_searches_the_whole_volume_where_no_pancreas_is_found(
    phantoms: dict[int, Phantom], sessions: dict[int, Session]
) -> None:
    grid = small_crop(phantoms[2]).grid
    noise = np.random.default_rng(0).normal(100, 10, grid.shape).astype(np.float32)
    result = segment(Volume(noise, grid), sessions[2])
    assert result.box.shape == grid.shape
    assert EventCode.NO_PANCREAS_FOUND in codes(result)
    assert result.mask.array.any(), "the challenge's recipe rescues an empty mask"


@pytest.mark.fault(
    "localizer",
    "a volume of an odd size that ends with the last slice of the pancreas",
    "a mask on that grid, from a box with the last slice",
)
@pytest.mark.slow
def test_the_last_slice_of_the_pancreas_is_searched(phantoms: dict[int, Phantom], sessions: dict[int, Session]) -> None:
    around = Box.around(phantoms[2].organs.array == 7)
    assert around is not None
    _, height, width = phantoms[2].image.grid.shape
    stop = around.stop[0], height, width
    volume = image_of(phantoms[2]).crop(Box(as_shape((size + 1) % 2 for size in stop), stop))
    assert all(size % 2 for size in volume.grid.shape)
    result = segment(volume, sessions[2])
    assert result.pancreas is not None, "the box is the localizer's"
    assert result.box.stop[0] == volume.grid.shape[0]
    assert result.mask.grid == volume.grid
    assert result.mask.array.any()


@pytest.mark.fault(
    "localizer",
    "a volume of {shape} voxels, too few for any pancreas",
    "the mask of the whole volume, and an event that says why",
)
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 37, 41), (13, 1, 29), (3, 5, 7)])
def test_odd_and_flat_volumes_end_with_a_mask(
    shape: tuple[int, int, int], phantoms: dict[int, Phantom], sessions: dict[int, Session]
) -> None:
    start = (8, 50, 60)
    volume = image_of(phantoms[2]).crop(Box(start, as_shape(np.add(start, shape))))
    result = segment(volume, sessions[2])
    assert result.box == Box.whole(shape)
    assert result.pancreas is None
    assert {EventCode.NO_PANCREAS_FOUND, EventCode.IMPLAUSIBLE_BOX} & set(codes(result))
    assert result.mask.array.shape == shape
    assert result.mask.array.any(), "the challenge's recipe rescues an empty mask"


@pytest.mark.fault("localizer", "there is no localizer among the models", "the mask of the whole volume, and an event")
@pytest.mark.slow
def test_searches_the_whole_volume_without_a_localizer(tmp_path: Path, phantoms: dict[int, Phantom]) -> None:
    (tmp_path / "task2").symlink_to(DEMO_WEIGHTS / "task2")
    volume = small_crop(phantoms[2])
    result = segment(volume, session_of(2, tmp_path))
    assert codes(result)[:1] == [EventCode.NO_LOCALIZER]
    assert result.box.shape == volume.grid.shape


@pytest.mark.fault(
    "inputs", "a black image, Task {task}", "a mask that is not empty, as every case of the challenge has a tumour"
)
@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_rescues_the_mask_of_a_constant_image(
    task: int, phantoms: dict[int, Phantom], sessions: dict[int, Session]
) -> None:
    grid = small_crop(phantoms[task]).grid
    black = Volume(np.zeros(grid.shape, np.float32), grid)
    result = segment(black, sessions[task])
    assert result.mask.array.any()
    assert codes(result)[-1] == EventCode.EMPTY_MASK_RESCUED
    assert (result.confidence.mean_entropy, result.confidence.expected_dice) == (None, 0), "the rescue changes nothing"


@pytest.mark.fault("models", "no tumour is found, and the recipe has no rescue", "an empty mask, and an event")
@pytest.mark.slow
def test_leaves_the_mask_of_a_constant_image_empty_without_a_rescue(phantoms: dict[int, Phantom]) -> None:
    grid = small_crop(phantoms[1]).grid
    result = segment(Volume(np.zeros(grid.shape, np.float32), grid), session_of(1, rescue=False))
    assert not result.mask.array.any()
    assert codes(result) == [EventCode.EMPTY_MASK]
    assert result.confidence.pairwise_dice is None
    assert result.confidence.fold_volumes_ml == (0,) * 5
    assert result.confidence.expected_dice == 0
