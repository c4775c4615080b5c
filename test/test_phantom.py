"""Phantoms, which the tests, the demo models and the sample cases use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pantherseg.io import read_image, read_labels
from pantherseg.labels import ORGANS, PANCREAS, TUMOUR, tumour_of
from pantherseg.phantom import Phantom, Size, case_id, make_phantom, write_dataset
from pantherseg.volume import Grid

SEEDS = range(6)
both_tasks = pytest.mark.parametrize("task", [1, 2])


@cache
def phantom(seed: int, task: int, size: Size = "small") -> Phantom:
    return make_phantom(seed, task=task, size=size)


def centroid(grid: Grid, mask: np.ndarray) -> np.ndarray:
    """Return the centroid of a mask in world coordinates, mm (x, y, z)."""
    index = np.argwhere(mask).mean(axis=0)[::-1]
    return np.array(grid.origin) + np.array(grid.direction) @ (index * grid.spacing[::-1])


@both_tasks
@pytest.mark.slow
def test_only_the_same_seed_and_task_give_the_same_voxels(task: int) -> None:
    again = make_phantom(0, task=task, size="small")
    assert again.image.grid == phantom(0, task).image.grid
    for name in ("image", "labels", "organs"):
        np.testing.assert_array_equal(getattr(again, name).array, getattr(phantom(0, task), name).array)
    for other in (phantom(1, task), phantom(0, 3 - task)):
        assert other.image.grid != again.image.grid
        assert (other.labels.array != again.labels.array).any()


def test_ct_has_the_anatomy_of_the_same_seed_in_hu() -> None:
    ct = make_phantom(0, task=1, size="small", modality="ct")
    np.testing.assert_array_equal(ct.labels.array, phantom(0, 1).labels.array)
    assert ct.image.array.dtype == np.int16
    assert ct.image.array.min() >= -1024
    medians = {label: np.median(ct.image.array[ct.labels.array == label]) for label in (TUMOUR, PANCREAS)}
    assert 60 < medians[PANCREAS] < 140
    assert 5 < medians[PANCREAS] - medians[TUMOUR] < 80
    outside, fat = np.percentile(ct.image.array, [1, 30])
    assert outside < -950
    assert fat < 0


@both_tasks
def test_volumes_have_the_documented_types_and_values(task: int) -> None:
    case = phantom(0, task)
    assert case.image.array.dtype == np.int16
    assert case.labels.array.dtype == case.organs.array.dtype == np.uint8
    assert case.image.grid == case.labels.grid == case.organs.grid
    assert set(np.unique(case.labels.array)) == {0, 1, 2}
    assert 200 < case.image.array.max() < 4000
    assert case.image.array.min() >= 0


@both_tasks
@pytest.mark.parametrize("seed", SEEDS)
def test_every_organ_has_a_plausible_volume(seed: int, task: int) -> None:
    case = phantom(seed, task)
    ml = np.bincount(case.organs.array.ravel(), minlength=8) * case.organs.grid.voxel_mm3 / 1000
    assert len(ml) == 8
    limits = {"spleen": (60, 400), "right_kidney": (60, 300), "left_kidney": (60, 300), "gallbladder": (5, 60),
              "liver": (700, 2500), "stomach": (80, 600), "pancreas": (40, 140)}  # fmt: skip
    for organ, (low, high) in limits.items():
        assert low < ml[ORGANS[organ]] < high, organ


@both_tasks
@pytest.mark.parametrize("seed", SEEDS)
def test_the_tumour_is_one_component_of_3_to_40_ml_at_the_pancreas(seed: int, task: int) -> None:
    case = phantom(seed, task)
    tumour, pancreas = tumour_of(case.labels.array), case.labels.array == PANCREAS
    assert 3 < tumour.sum() * case.labels.grid.voxel_mm3 / 1000 < 40
    assert (case.organs.array[tumour] == ORGANS["pancreas"]).all()
    np.testing.assert_array_equal(case.organs.array == ORGANS["pancreas"], tumour | pancreas)
    components, count = ndimage.label(tumour)
    assert np.bincount(components.ravel())[1:].max() > 0.95 * tumour.sum(), f"{count} components"
    assert (ndimage.binary_dilation(tumour) & pancreas).any()


@both_tasks
@pytest.mark.parametrize("seed", SEEDS)
def test_the_grid_is_oblique_with_an_origin(seed: int, task: int) -> None:
    grid = phantom(seed, task).image.grid
    direction = np.array(grid.direction)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-9)
    assert np.linalg.det(direction) == pytest.approx(1)
    degrees = np.degrees(np.arccos((np.trace(direction) - 1) / 2))
    assert 0.5 < degrees < 7
    assert all(abs(value) > 1e-3 for value in grid.origin)
    assert grid.shape == (40, 104, 128)
    extent = np.array(grid.shape) * grid.spacing
    assert (extent > [170, 200, 290]).all()
    assert (extent < [250, 410, 440]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "slices", "plane"), [(1, (2.5, 4.0), (0.69, 1.31)), (2, (1.6, 2.4), (0.83, 1.2))], ids=["task1", "task2"]
)
def test_full_size_has_the_spacing_of_the_challenge_and_the_anatomy_of_the_small_size(
    task: int, slices: tuple[float, float], plane: tuple[float, float]
) -> None:
    full, small = make_phantom(2, task=task), phantom(2, task)
    z, y, x = full.image.grid.spacing
    assert slices[0] <= z <= slices[1]
    assert y == x
    assert plane[0] <= x <= plane[1]
    assert full.image.array.size <= 19.1e6
    for value in (TUMOUR, PANCREAS):
        centres = [centroid(case.labels.grid, case.labels.array == value) for case in (full, small)]
        assert np.linalg.norm(centres[0] - centres[1]) < 3
        volumes = [(case.labels.array == value).sum() * case.labels.grid.voxel_mm3 for case in (full, small)]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.15)


def test_the_tumour_is_darker_than_the_pancreas_in_task_1_only() -> None:
    ratios = {}
    for task in (1, 2):
        cases = [phantom(seed, task) for seed in SEEDS]
        ratios[task] = np.array(
            [
                c.image.array[tumour_of(c.labels.array)].mean() / c.image.array[c.labels.array == PANCREAS].mean()
                for c in cases
            ]
        )
    assert (ratios[1] < 0.9).all()
    assert ratios[2].mean() > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "expected"), [(1, ["10000_0001", "10001_0001"]), (2, ["10000", "10001"])], ids=["task1", "task2"]
)
def test_a_data_set_has_the_names_of_the_challenge(task: int, expected: list[str], tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(ValueError, match="at least 1"):
        write_dataset(tmp_path, task=task, cases=0, seed=0)
    write_dataset(tmp_path, task=task, cases=1, seed=0, size="small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagesTr", "labelsTr"], "organs are optional"
    names = write_dataset(tmp_path, task=task, cases=2, seed=0, size="small", organs=True, on_case=seen.append)
    assert names == seen == expected
    for seed, name in enumerate(names):
        image, events = read_image(tmp_path / "imagesTr" / f"{name}_0000.mha")
        assert events == ()
        case = phantom(seed, task)
        assert case.image.grid.difference(image.grid) == ""
        np.testing.assert_array_equal(image.array, case.image.array)
        np.testing.assert_array_equal(read_labels(tmp_path / "labelsTr" / f"{name}.mha").array, case.labels.array)
        np.testing.assert_array_equal(read_labels(tmp_path / "organsTr" / f"{name}.mha").array, case.organs.array)


def test_each_seed_has_a_unique_name() -> None:
    for task in (1, 2):
        assert len({case_id(seed, task=task) for seed in (0, 1, 99_999, 100_000)}) == 4


@pytest.mark.parametrize(
    "arguments",
    [{"task": 3}, {"task": 1, "size": "tiny"}, {"task": 1, "modality": "pet"}, {"task": 1, "seed": -1}],
)
def test_refuses_invalid_arguments(arguments: dict[str, object]) -> None:
    value = list(arguments.values())[-1]
    with pytest.raises(ValueError, match=str(value)):
        make_phantom(**{"seed": 0, **arguments})  # type: ignore[arg-type]
