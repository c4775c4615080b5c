"""A new fusion, post-processing step or reader is one registration, with nothing else to change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from msgspec import Meta
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg import io
from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import RecipeError
from pantherseg.events import Event, EventCode
from pantherseg.fusion import Fused, Fusion, MeanLogits, MemberLogits
from pantherseg.io import read_labels, write_volume
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.postprocess import Prediction, Step
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.tables import Table
from pantherseg.volume import Grid, Volume
from volume_files import GRID, VOXELS, refusal

RECIPE = """
schema = 1
name = "mine"
{settings}
[sockets]
input = "in"
output = "out"
[[members]]
model = "task1"
folds = [0]
[[members]]
model = "task1"
folds = [1]
"""


@pytest.fixture(autouse=True)
def copied_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register variants that the other tests do not see."""
    for kind in (Fusion, Step):
        monkeypatch.setattr(kind, "registry", deepcopy(kind.registry))


@dataclass(frozen=True)
class Highest:
    """The highest label and probability of any member."""

    members: tuple[Fused, ...]

    def mask(self, label: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.labels() == label
        return mask

    def labels(self) -> NDArray[np.uint8]:
        labels: NDArray[np.uint8] = np.maximum.reduce([member.labels() for member in self.members])
        return labels

    def probability(self, label: int) -> NDArray[np.float32]:
        highest: NDArray[np.float32] = np.maximum.reduce([member.probability(label) for member in self.members])
        return highest


def register_highest() -> None:
    @Fusion.registry.register("highest")
    class HighestLabel(Table, Fusion, frozen=True):
        """Keep the highest label of any member."""

        def fuse(self, members: Sequence[MemberLogits]) -> Fused:
            return Highest(tuple(MeanLogits().fuse([member]) for member in members))


def register_grow() -> None:
    @Step.registry.register("grow")
    class Grow(Table, Step, frozen=True):
        """Dilate the mask into those voxels of the pancreas that have at least a certain probability of tumour."""

        voxels: Annotated[int, Meta(ge=1)]
        probability: float = 0.001

        def apply(self, prediction: Prediction) -> Prediction:
            pancreas = prediction.pancreas()
            assert pancreas is not None
            probable = prediction.probability() >= self.probability
            dilated = ndimage.binary_dilation(prediction.mask, iterations=self.voxels)
            return prediction.changed(prediction.mask | (dilated & pancreas & probable))


class SliceFolderReader:
    """Reads a folder of .npy slices, with the spacing in geometry.json."""

    def accepts(self, source: Path) -> bool:
        return (source / "geometry.json").is_file()

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        array = np.stack([np.load(path) for path in sorted(source.glob("*.npy"))])
        spacing = json.loads((source / "geometry.json").read_text())["spacing"]
        return Volume(array, Grid(array.shape, tuple(spacing))), (
            Event(EventCode.FOURTH_AXIS_DROPPED, "one time point"),
        )

    def case_name(self, source: Path) -> str:
        return source.name

    def mask_suffix(self, source: Path) -> str:
        return ".mha"


@pytest.fixture
def slices(tmp_path: Path) -> Iterator[Path]:
    """Register the reader, and return a folder for it with the slices of VOXELS."""
    reader = SliceFolderReader()
    io.register_reader(reader)
    folder = tmp_path / "series.1"
    folder.mkdir()
    (folder / "geometry.json").write_text('{"spacing": [2.0, 1.0, 1.0]}')
    for number, voxels in enumerate(VOXELS):
        np.save(folder / f"{number}.npy", voxels)
    yield folder
    io.READERS.remove(reader)


def recipe_file(folder: Path, settings: str = "") -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(settings=settings))
    return path


def mask_of(volume: Volume, recipe: Path, folder: Path) -> NDArray[np.bool_]:
    """Return the mask that `run_case` writes for a volume."""
    source = folder / "scan.mha"
    write_volume(volume, source)
    output = CaseOutput(folder / "masks" / "scan.mha", folder / "masks" / "scan.json")
    run_case(source, Session(load_recipe(recipe), DEMO_WEIGHTS, device="cpu"), output)
    return read_labels(output.mask).array > 0


@pytest.mark.slow
def test_a_recipe_uses_a_registered_fusion_and_step(pancreas: Volume, tmp_path: Path) -> None:
    register_highest()
    register_grow()
    mean = mask_of(pancreas, recipe_file(tmp_path), tmp_path)
    highest = mask_of(pancreas, recipe_file(tmp_path, 'fusion = { kind = "highest" }'), tmp_path)
    assert (highest & mean).any()
    assert (highest != mean).any()
    grown = mask_of(pancreas, recipe_file(tmp_path, 'postprocess = [{ kind = "grow", voxels = 2 }]'), tmp_path)
    assert (grown & mean == mean).all()
    assert (grown & ndimage.binary_dilation(mean, iterations=2) == grown).all()
    assert grown.sum() > mean.sum()


def test_a_registered_reader_reads_a_folder_of_slices(slices: Path) -> None:
    write_volume(Volume(VOXELS, GRID), slices.with_name("scan.nrrd"))
    assert io.find_sources(slices.parent) == [slices.with_name("scan.nrrd"), slices]
    assert io.find_sources(slices) == [slices]
    volume, events = io.read_image(slices)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.array.dtype == np.float32
    assert volume.grid == GRID
    assert [event.code for event in events] == [EventCode.FOURTH_AXIS_DROPPED]
    assert np.array_equal(read_labels(slices).array, VOXELS)
    assert (io.case_name(slices), io.mask_name(slices)) == ("series.1", "series.1.mha")


def test_an_unreadable_file_of_a_registered_reader_is_an_input_error(slices: Path) -> None:
    (slices / "4.npy").mkdir()
    assert refusal(slices) == "expected a file or folder that can be read, found Is a directory"


def test_the_keys_of_a_registered_step_are_checked(tmp_path: Path) -> None:
    register_grow()
    path = recipe_file(tmp_path, 'postprocess = [{ kind = "grow", voxels = 0 }]')
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*'grow'.*voxels"):
        load_recipe(path)


def test_an_unknown_kind_names_the_registered_ones(tmp_path: Path) -> None:
    register_grow()
    with pytest.raises(RecipeError, match=r"Unknown post-processing step 'shrink', .*components, .*rescue, grow"):
        load_recipe(recipe_file(tmp_path, 'postprocess = [{ kind = "shrink" }]'))


@pytest.mark.parametrize("register", [register_highest, register_grow])
def test_a_name_is_registered_only_once(register: Callable[[], None]) -> None:
    register()
    with pytest.raises(ValueError, match="is registered already"):
        register()
