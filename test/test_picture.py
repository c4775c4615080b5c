"""The picture of a case: its size, its colours, its proportions and the orientation of the patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from pantherseg.errors import InputError, OutputError
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.labels import tumour_of
from pantherseg.report import draw_case
from pantherseg.report.picture import MAX_PANEL_HEIGHT, PANEL_WIDTH, PREDICTED, REFERENCE, WIDTH, fitted_size
from pantherseg.report.planes import Scene, cut, windowed
from pantherseg.volume import Grid, Volume

SHAPE = (12, 40, 48)
GRID = Grid(SHAPE, (5.0, 2.0, 2.0))


def image(grid: Grid = GRID) -> Volume:
    return Volume(np.random.default_rng(0).normal(100, 20, grid.shape).astype(np.float32), grid)


def mask(*regions: tuple[slice | int, ...], grid: Grid = GRID, label: int = 1) -> Volume:
    array = np.zeros(grid.shape, np.uint8)
    for region in regions:
        array[region] = label
    return Volume(array, grid)


REGION = (slice(4, 8), slice(10, 18), slice(20, 30))


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def has(shown: NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    return bool((shown == colour).all(axis=-1).any())


def scene(predicted: Volume, **changes: Any) -> Scene:
    values: dict[str, Any] = {
        "grey": windowed(image(predicted.grid)),
        "predicted": tumour_of(predicted.array),
        "reference": None,
        "grid": predicted.grid,
    }
    return Scene(**(values | changes))


@pytest.mark.parametrize("reference", [None, mask(REGION), mask()])
@pytest.mark.parametrize("predicted", [mask(REGION), mask(), mask(REGION, label=2)])
def test_uses_a_colour_only_if_there_is_a_tumour(tmp_path: Path, predicted: Volume, reference: Volume | None) -> None:
    path = tmp_path / "new" / "case.png"
    draw_case(image(), predicted, reference, path, title="case")
    shown = pixels(path)
    assert shown.shape[1] == WIDTH
    assert 400 < shown.shape[0] < 2 * MAX_PANEL_HEIGHT + 300
    assert has(shown, PREDICTED) == bool(tumour_of(predicted.array).any())
    assert has(shown, REFERENCE) == (reference is not None and bool(reference.array.any()))
    assert [path.name for path in path.parent.iterdir()] == ["case.png"]


def test_a_single_voxel_of_a_large_slice_is_visible(tmp_path: Path) -> None:
    grid = Grid((1, 700, 700), (3.0, 0.5, 0.5))
    draw_case(image(grid), mask((0, 333, 444), grid=grid), None, tmp_path / "case.png", title="case")
    panels = pixels(tmp_path / "case.png")[110 : 110 + PANEL_WIDTH, WIDTH // 3 : 2 * WIDTH // 3]
    assert has(panels, PREDICTED)


def test_a_single_slice_has_no_orthogonal_cuts(tmp_path: Path) -> None:
    heights = []
    for slices in (1, 2):
        grid = Grid((slices, 40, 48), (5.0, 2.0, 2.0))
        path = tmp_path / f"{slices}.png"
        draw_case(image(grid), mask((0, 5, 5), grid=grid), None, path, title="case")
        heights.append(pixels(path).shape[0])
    # Input, mask and close-up fill one row; the cuts need a second.
    assert heights[0] < heights[1]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_draws_a_constant_image(tmp_path: Path, value: float) -> None:
    constant = Volume(np.full(SHAPE, value, np.float32), GRID)
    draw_case(constant, mask(REGION), None, tmp_path / "case.png", title="x" * 300)
    assert has(pixels(tmp_path / "case.png"), PREDICTED)


@pytest.mark.parametrize(
    ("shape", "spacing", "ratio"),
    [((100, 100), (1.0, 1.0), 1.0), ((31, 256), (7.7, 1.25), 320 / 238.7), ((256, 31), (1.25, 7.7), 238.7 / 320)],
)
def test_proportions_follow_the_spacing(shape: tuple[int, int], spacing: tuple[float, float], ratio: float) -> None:
    width, height = fitted_size(shape, spacing)
    assert width / height == pytest.approx(ratio, rel=0.01)
    assert width == PANEL_WIDTH or height == MAX_PANEL_HEIGHT
    assert width <= PANEL_WIDTH
    assert height <= MAX_PANEL_HEIGHT


def test_shows_the_slice_with_the_most_tumour() -> None:
    predicted, reference = mask((3, 5, 5)), mask((2, 5, 5), (9, slice(5, 8), 5))
    assert cut(scene(predicted, reference=tumour_of(reference.array)), 0).index == 9
    assert cut(scene(predicted, reference=tumour_of(mask().array)), 0).index == 3
    assert cut(scene(predicted), 0).index == 3
    assert cut(scene(mask()), 0).index == 6


LAST_Z, LAST_Y, LAST_X = (size - 1 for size in SHAPE)


@pytest.mark.parametrize(
    ("axis", "name", "ends", "voxel"),
    [
        (0, "axial", ("R", "L", "A", "P"), (5, 7)),
        (1, "coronal", ("R", "L", "S", "I"), (LAST_Z - 2, 7)),
        (2, "sagittal", ("A", "P", "S", "I"), (LAST_Z - 2, 5)),
    ],
)
def test_cuts_have_the_radiological_convention(
    axis: int, name: str, ends: tuple[str, ...], voxel: tuple[int, int]
) -> None:
    plane = cut(scene(mask((2, 5, 7))), axis)
    assert (plane.name, plane.ends) == (name, ends)
    assert plane.predicted[voxel]
    assert plane.spacing == ((2.0, 2.0) if axis == 0 else (5.0, 2.0))


def test_the_main_picture_shows_the_slices_as_they_were_acquired() -> None:
    assert scene(mask()).main_axis == 0
    assert scene(mask(grid=Grid(SHAPE, (1.5, 6.0, 1.5)))).main_axis == 1
    assert scene(mask(grid=Grid(SHAPE, (2.0, 2.0, 2.0)))).main_axis == 0


def test_the_window_ignores_outliers() -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0], array[9, 9, 9] = -1e6, 1e6
    shown = windowed(Volume(array, Grid((10, 10, 10), (1.0, 1.0, 1.0))))
    assert (shown.min(), shown.max()) == (0, 1)
    assert shown[5, 0, 0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.fault(
    "inputs",
    "`report`: the volume is stored as {order} and the masks as {other}, in a {suffix}",
    "the picture that files in LPS give",
)
@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
@pytest.mark.parametrize(("order", "other"), [("LPS", "RAS"), ("RAS", "LPS"), ("PIR", "PIR"), ("ILA", "SRA")])
@pytest.mark.parametrize("direction", [np.eye(3), Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()])
def test_draws_every_voxel_order_alike(
    tmp_path: Path, direction: NDArray[np.float64], order: str, other: str, suffix: str
) -> None:
    grid = replace(GRID, direction=tuple(map(tuple, direction.tolist())))
    shown = image(grid)
    masks = {"mask": mask(REGION, grid=grid), "reference": mask((slice(5, 9), slice(12, 20), slice(18, 26)), grid=grid)}
    draw_case(shown, *masks.values(), tmp_path / "same.png", title="case")
    write_volume(shown.turned_to(order), tmp_path / f"image{suffix}")
    for name, volume in masks.items():
        write_volume(volume.turned_to(other), tmp_path / f"{name}{suffix}")
    turned, _ = read_image(tmp_path / f"image{suffix}")
    assert turned.grid.orientation == order
    draw_case(
        turned, *(read_labels(tmp_path / f"{name}{suffix}") for name in masks), tmp_path / "turned.png", title="case"
    )
    assert np.array_equal(pixels(tmp_path / "turned.png"), pixels(tmp_path / "same.png"))


def test_refuses_a_reference_on_another_grid(tmp_path: Path) -> None:
    other = mask(grid=Grid(SHAPE, (5.0, 2.0, 2.5)))
    with pytest.raises(InputError, match=r"reference of case.*spacing"):
        draw_case(image(), mask(), other, tmp_path / "case.png", title="case")


def test_reports_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="to write this file"):
        draw_case(image(), mask(), None, tmp_path / "file" / "case.png", title="case")
