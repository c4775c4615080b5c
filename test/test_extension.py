"""A new fusion and a new post-processing step: one registration each, and nothing else to change."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from msgspec import Meta
from numpy.typing import NDArray
from scipy import ndimage

from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import RecipeError
from pantherseg.fusion import Fused, Fusion, MeanLogits, MemberLogits
from pantherseg.io import read_labels, write_volume
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.postprocess import Prediction, Step
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.tables import Table
from pantherseg.volume import Volume

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
        """Dilate the mask."""

        voxels: Annotated[int, Meta(ge=1)]

        def apply(self, prediction: Prediction) -> Prediction:
            return prediction.changed(ndimage.binary_dilation(prediction.mask, iterations=self.voxels))


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
def test_a_registered_fusion_fuses_the_members_of_a_recipe(pancreas: Volume, tmp_path: Path) -> None:
    register_highest()
    highest = mask_of(pancreas, recipe_file(tmp_path, 'fusion = { kind = "highest" }'), tmp_path)
    mean = mask_of(pancreas, recipe_file(tmp_path), tmp_path)
    assert (highest & mean).sum() > 0
    assert (highest != mean).any()


@pytest.mark.slow
def test_a_registered_step_changes_the_mask(pancreas: Volume, tmp_path: Path) -> None:
    register_grow()
    grown = mask_of(pancreas, recipe_file(tmp_path, 'postprocess = [{ kind = "grow", voxels = 2 }]'), tmp_path)
    plain = mask_of(pancreas, recipe_file(tmp_path), tmp_path)
    assert plain.any()
    np.testing.assert_array_equal(grown, ndimage.binary_dilation(plain, iterations=2))


def test_the_keys_of_a_registered_step_are_checked(tmp_path: Path) -> None:
    register_grow()
    path = recipe_file(tmp_path, 'postprocess = [{ kind = "grow", voxels = 0 }]')
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*'grow'.*voxels"):
        load_recipe(path)


def test_an_unknown_kind_names_the_registered_ones(tmp_path: Path) -> None:
    register_grow()
    with pytest.raises(RecipeError, match=r"Unknown post-processing step 'shrink', .*components, rescue, grow"):
        load_recipe(recipe_file(tmp_path, 'postprocess = [{ kind = "shrink" }]'))


@pytest.mark.parametrize("register", [register_highest, register_grow])
def test_a_name_is_registered_only_once(register: object) -> None:
    assert callable(register)
    register()
    with pytest.raises(ValueError, match="is registered already"):
        register()
