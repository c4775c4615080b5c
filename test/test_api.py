"""The Python interface of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pantherseg
from pantherseg.io import write_volume
from pantherseg.phantom import make_phantom
from pantherseg.volume import Grid, Volume


@pytest.mark.slow
def test_segments_a_volume(tmp_path: Path) -> None:
    image = make_phantom(5004, task=2, size="small").image
    write_volume(image, tmp_path / "scan.mha")
    session = pantherseg.load(task=2, device="cpu")
    volume = pantherseg.read_volume(str(tmp_path / "scan.mha"))
    mask = pantherseg.segment(volume, session).mask
    assert mask.grid == image.grid
    assert mask.array.dtype == np.uint8
    assert mask.array.any()


def test_load_needs_one_recipe() -> None:
    with pytest.raises(ValueError, match="either a task or a recipe"):
        pantherseg.load()
    with pytest.raises(ValueError, match="either a task or a recipe"):
        pantherseg.load(1, recipe=Path("recipe.toml"))
    with pytest.raises(pantherseg.RecipeError, match=r"other\.toml"):
        pantherseg.load(recipe="other.toml")


@pytest.mark.parametrize("option", [{"device": "cuda:0"}, {"mode": "quick"}])
def test_load_refuses_another_device_or_mode(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected the {next(iter(option))} .* got "):
        pantherseg.load(1, **option)


def test_read_volume_logs_what_it_corrected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0] = np.nan
    write_volume(Volume(array, Grid(array.shape, (1.0, 1.0, 1.0))), tmp_path / "scan.nrrd")
    volume = pantherseg.read_volume(tmp_path / "scan.nrrd")
    assert volume.array[0, 0, 0] == 1
    assert [record.message.split(": ")[:2] for record in caplog.records] == [
        [str(tmp_path / "scan.nrrd"), "non_finite_voxels"]
    ]


@pytest.mark.parametrize(
    ("grid", "value", "expected"),
    [
        (Grid((4, 5, 6), (-1.0, 1.0, 1.0)), 0.0, "a spacing between 0.001 and 1000 mm, found 1 1 -1"),
        (Grid((4, 5, 6), (1.0, 1.0, 1.0), direction=((1, 0.5, 0), (0, 1, 0), (0, 0, 1))), 0.0, "not at right angles"),
        (Grid((4, 5, 6), (1.0, 1.0, 1.0)), np.nan, "its array has NaN or infinite values"),
    ],
)
def test_segment_refuses_a_volume_that_no_reader_returns(grid: Grid, value: float, expected: str) -> None:
    session = pantherseg.load(task=1, device="cpu")
    with pytest.raises(pantherseg.InputError, match=f"^volume: .*{expected}"):
        pantherseg.segment(Volume(np.full(grid.shape, value, np.float32), grid), session)


def test_every_exported_name_is_documented() -> None:
    assert set(pantherseg.__all__) <= set(dir(pantherseg))
    for name in pantherseg.__all__:
        assert getattr(pantherseg, name).__doc__, name


def test_every_error_is_exported() -> None:
    errors = {value for value in vars(import_module("pantherseg.errors")).values() if isinstance(value, type)}
    assert {error.__name__ for error in errors if issubclass(error, Exception)} <= set(pantherseg.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pantherseg' has no attribute 'segmentation'"):
        _ = pantherseg.segmentation


def test_importing_the_package_imports_no_library() -> None:
    script = """
import sys
import pantherseg
dir(pantherseg)
print([name for name in ("numpy", "torch", "openvino", "SimpleITK", "msgspec") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
