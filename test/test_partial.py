"""What goes on when a part of a system is missing, damaged or wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from bench.unpack import unpack
from numpy.typing import NDArray

from conftest import one_line_about
from matrix import quoted, saw
from pantherseg.errors import ModelError
from pantherseg.events import Event
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.localize import localize
from pantherseg.machine.deadline import Deadline
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.models.manifest import MANIFEST
from pantherseg.packing.pack import pack_models
from pantherseg.packing.sources.nnunet import CHECKPOINT
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.pipeline import Segmentation, load_system, segment
from pantherseg.recipe import Localizer, Member, Recipe, load_recipe
from pantherseg.volume import Grid, Volume

TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))


def missing(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def changed_in_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [missing, cut_short, changed_in_one_bit]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The demo models, which a test may damage."""
    folder = tmp_path / "models"
    shutil.copytree(DEMO_WEIGHTS, folder)
    return folder


def with_member(recipe: Recipe, **changes: object) -> Recipe:
    member = msgspec.structs.replace(recipe.members[0], **changes)
    return msgspec.structs.replace(recipe, members=[member])


@pytest.fixture
def raw_root(demo_folder: ModelFolder, tmp_path: Path) -> Path:
    """The nnU-Net folder that Task 1's demo model was packed of, which a test may damage."""
    folder = tmp_path / "raw"
    shutil.copytree(demo_folder.path, folder / "task1")
    return folder


def run(volume: Volume, recipe: Recipe, root: Path) -> Segmentation:
    return segment(volume, load_system(recipe, root, device="cpu"))


def codes(result: Segmentation) -> list[str]:
    return [event.code for event in result.events]


@pytest.mark.fault("models", "one of five folds is {damage}", "the mask of the other four, and an event")
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_fold_that_cannot_be_used_is_left_out(pancreas: Volume, root: Path, damage: Damage) -> None:
    path = root / "task1" / "fold_2.safetensors"
    damage(path)
    result = run(pancreas, TASK1, root)
    saw(result)
    assert codes(result) == ["fold_left_out"]
    assert "fold_2.safetensors" in result.events[0].message
    others = run(pancreas, with_member(TASK1, folds=[0, 1, 3, 4]), DEMO_WEIGHTS)
    assert codes(others) == []
    saw(f"{np.count_nonzero(result.mask.array != others.mask.array)} voxels differ from the mask of the others")
    np.testing.assert_array_equal(result.mask.array, others.mask.array)
    every = run(pancreas, TASK1, DEMO_WEIGHTS)
    assert (every.mask.array != result.mask.array).any(), "the fold would have counted"


@pytest.mark.fault(
    "models",
    "the first and the fourth checkpoint of five in an nnU-Net folder are {damage}",
    "the mask of the other three for every case of a run, and events",
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_folds_of_an_nnunet_folder_are_left_out_of_every_case(pancreas: Volume, raw_root: Path, damage: Damage) -> None:
    for fold in (0, 3):
        damage(raw_root / "task1" / f"fold_{fold}" / CHECKPOINT)
    system = load_system(TASK1, raw_root, device="cpu")
    others = run(pancreas, with_member(TASK1, folds=[1, 2, 4]), DEMO_WEIGHTS)
    for _ in range(2):
        result = segment(pancreas, system)
        saw(result)
        assert codes(result) == ["fold_left_out", "fold_left_out"]
        for event, fold in zip(result.events, (0, 3), strict=True):
            assert f"fold_{fold}/{CHECKPOINT}: expected " in event.message
        np.testing.assert_array_equal(result.mask.array, others.mask.array)
    assert result.as_dict()["models"][0]["folds"] == ["1", "2", "4"]
    assert result.as_dict()["models"][0]["path"] == str(raw_root / "task1")


def test_members_and_localizer_of_one_nnunet_folder_share_what_is_packed(raw_root: Path) -> None:
    cut_short(raw_root / "task1" / "fold_2" / CHECKPOINT)
    members = [Member(model="task1", folds=[0, 1, 2, 3]), Member(model="task1", mirroring=True, folds=[0, 3, 4])]
    recipe = msgspec.structs.replace(
        TASK1, members=members, localizer=Localizer(model="task1", label=2, margin_mm=10.0, folds=[4])
    )
    system = load_system(recipe, raw_root, device="cpu")
    assert len({predictor.bundle.path for predictor in system.predictors}) == 1
    assert [" ".join(predictor.bundle.folds) for predictor in system.predictors] == ["0 1 2 3", "0 3 4", "4"]
    damaged = msgspec.structs.replace(recipe, localizer=Localizer(model="task1", label=2, margin_mm=10.0))
    system = load_system(damaged, raw_root, device="cpu")
    assert system.localizer is None
    assert f"fold_2/{CHECKPOINT}: expected " in system.models.problem


@pytest.mark.fault(
    "localizer", "the checkpoint of the localizer's nnU-Net folder is {damage}", "a reason, and no localizer"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_localizers_nnunet_folder_that_is_damaged_is_not_used(root: Path, damage: Damage) -> None:
    shutil.rmtree(root / "localizer")
    damage(unpack(open_bundle(DEMO_WEIGHTS / "localizer"), root / "localizer").checkpoint_path("0"))
    system = load_system(TASK2, root, device="cpu")
    saw(quoted(system.models.problem))
    assert system.localizer is None
    assert f"fold_0/{CHECKPOINT}: expected " in system.models.problem


def test_members_of_one_nnunet_folder_need_not_be_alike(raw_root: Path) -> None:
    odd = raw_root / "task1" / "fold_0" / CHECKPOINT
    torch.save(torch.load(odd, weights_only=True) | {"inference_allowed_mirroring_axes": (0,)}, odd)
    members = [Member(model="task1", folds=[0]), Member(model="task1", folds=[1, 2, 3, 4])]
    system = load_system(msgspec.structs.replace(TASK1, members=members), raw_root, device="cpu")
    assert [predictor.bundle.manifest.mirroring_axes for predictor in system.members] == [(0,), ()]


@pytest.mark.fault("localizer", "no memory for what the localizer sees", "the mask of the whole volume, and an event")
@pytest.mark.slow
def test_a_localizer_whose_volume_finds_no_memory(pancreas: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Predictor.prepare

    def fails(predictor: Predictor, volume: Volume) -> object:
        if predictor.bundle.path.name == "localizer":
            raise MemoryError("Unable to allocate 27.5 MiB")
        return prepare(predictor, volume)

    monkeypatch.setattr(Predictor, "prepare", fails)
    result = run(pancreas, with_member(TASK2, folds=[0]), DEMO_WEIGHTS)
    saw(result)
    assert codes(result)[0] == "localizer_failed"
    assert "27.5 MiB" in result.events[0].message


@pytest.mark.fault("localizer", "memory is too small for the localizer", "the mask of the whole volume, and an event")
@pytest.mark.slow
def test_a_localizer_without_memory_leaves_the_whole_volume(pancreas: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    network_bytes = OpenVinoBackend._network_bytes

    def expected(backend: OpenVinoBackend, bundle: Bundle) -> int:
        return 1 << 62 if bundle.path.name == "localizer" else network_bytes(backend, bundle)

    monkeypatch.setattr(OpenVinoBackend, "_network_bytes", expected)
    result = run(pancreas, with_member(TASK2, folds=[0]), DEMO_WEIGHTS)
    saw(result)
    assert codes(result)[0] == "localizer_failed"
    assert "MB for a patch of localizer in" in result.events[0].message
    assert result.box.shape == pancreas.grid.shape


@pytest.mark.slow
def test_the_first_fold_may_be_the_one(pancreas: Volume, root: Path) -> None:
    changed_in_one_bit(root / "task1" / "fold_0.safetensors")
    changed_in_one_bit(root / "task1" / "fold_4.safetensors")
    result = run(pancreas, TASK1, root)
    saw(result)
    assert codes(result) == ["fold_left_out", "fold_left_out"]
    others = run(pancreas, with_member(TASK1, folds=[1, 2, 3]), DEMO_WEIGHTS)
    saw(f"{np.count_nonzero(result.mask.array != others.mask.array)} voxels differ from the mask of the others")
    np.testing.assert_array_equal(result.mask.array, others.mask.array)


@pytest.mark.fault(
    "models", "three of five folds are {damage}, and the recipe wants three", "an error that names a fold"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_with_fewer_folds_than_the_recipe_wants_there_is_no_mask(pancreas: Volume, root: Path, damage: Damage) -> None:
    for fold in (0, 1, 2):
        damage(root / "task1" / f"fold_{fold}.safetensors")
    with pytest.raises(ModelError) as caught:
        run(pancreas, TASK1, root)
    assert "fold_" in one_line_about(str(caught.value).partition(": expected")[0], caught.value)


@pytest.mark.fault("models", "one of five folds is damaged, and the recipe wants all", "an error that names the fold")
def test_a_recipe_may_want_every_fold(pancreas: Volume, root: Path) -> None:
    cut_short(root / "task1" / "fold_4.safetensors")
    with pytest.raises(ModelError, match="fold_4") as caught:
        load_system(with_member(TASK1, min_folds=5), root, device="cpu")
    saw(caught.value)
    two = with_member(TASK1, folds=[3, 4])
    with pytest.raises(ModelError, match="fold_4"):
        load_system(two, root, device="cpu")
    load_system(with_member(TASK1, folds=[3, 4], min_folds=1), root, device="cpu")


@pytest.mark.fault(
    "models",
    "one fold is {damage} when models are packed for an upload",
    "an error that names the fold, and nothing packed",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_incomplete_is_not_packed_for_an_upload(root: Path, tmp_path: Path, damage: Damage) -> None:
    damage(root / "task1" / "fold_2.safetensors")
    with pytest.raises(ModelError, match=r"fold_2\.safetensors") as caught:
        pack_models(root, tmp_path / "packed", TASK1)
    saw(caught.value)
    assert not (tmp_path / "packed").exists()


@pytest.mark.fault(
    "localizer", "a file of the localizer is {damage}: {name}", "the mask of the whole volume, and an event"
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [MANIFEST, "fold_0.safetensors"])
def test_a_localizer_that_cannot_be_used_leaves_the_whole_volume(
    pancreas: Volume, root: Path, damage: Damage, name: str
) -> None:
    damage(root / "localizer" / name)
    result = run(pancreas, TASK2, root)
    saw(result)
    assert codes(result)[0] == "localizer_failed"
    assert result.events[0].message.endswith("; the whole volume was searched")
    assert result.box.shape == pancreas.grid.shape
    assert len(result.as_dict()["models"]) == 1 + (name != MANIFEST and damage is changed_in_one_bit)


@dataclass(frozen=True)
class Finds:
    """A localizer that finds what it is told to."""

    labels_found: NDArray[np.uint8]
    events: tuple[Event, ...] = ()

    def labels(self, volume: Volume, deadline: Deadline) -> tuple[NDArray[np.uint8], tuple[Event, ...]]:
        assert volume.array.shape == self.labels_found.shape
        return self.labels_found, self.events


SEARCHED_WHOLE = "the whole volume is searched, and an event says why"
BODY = (slice(4, 36), slice(10, 50), slice(10, 50))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ((slice(10, 20), slice(20, 40), slice(20, 40)), ""),
        pytest.param(
            (slice(10, 11), slice(20, 40), slice(20, 40)),
            "is 5x60x60 mm (z, y, x) without its margin, which is too small",
            marks=pytest.mark.fault("localizer", "the localizer's box is one slice", SEARCHED_WHOLE),
        ),
        pytest.param(
            (slice(10, 20), slice(20, 23), slice(20, 40)),
            "is 50x9x60 mm (z, y, x) without its margin, which is too small",
            marks=pytest.mark.fault("localizer", "the localizer's box is thinner than any pancreas", SEARCHED_WHOLE),
        ),
        pytest.param(
            (slice(1, 39), slice(1, 59), slice(1, 59)),
            "holds 100% of the volume",
            marks=pytest.mark.fault("localizer", "the localizer's box is nearly everything", SEARCHED_WHOLE),
        ),
        pytest.param(
            (slice(10, 20), slice(0, 10), slice(0, 50)),
            "lies off the body: ",
            marks=pytest.mark.fault("localizer", "the localizer's box lies beside the body", SEARCHED_WHOLE),
        ),
    ],
    ids=["plausible", "flat", "thin", "everything", "air"],
)
def test_a_box_that_cannot_be_the_pancreas_leaves_the_whole_volume(found: tuple[slice, ...], reason: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(5, 2, (40, 60, 60)).astype(np.float32)
    array[BODY] += 300
    labels = np.zeros(array.shape, np.uint8)
    labels[found] = 7
    volume = Volume(array, Grid(array.shape, (5.0, 3.0, 3.0)))
    settings = Localizer(model="localizer", label=7, margin_mm=10.0)
    box, events = localize(volume, Finds(labels), settings)  # type: ignore[arg-type]
    saw(*(quoted(f"{event.code}: {event.message}") for event in events))
    assert (box is None) == bool(reason)
    assert [event.code for event in events] == (["implausible_box"] if reason else [])
    if reason:
        assert f"the localizer's box {reason}" in events[0].message


def test_the_recipe_says_what_is_plausible() -> None:
    labels = np.zeros((40, 60, 60), np.uint8)
    labels[10:12, 20:40, 20:40] = 7
    volume = Volume(np.full(labels.shape, 100, np.float32), Grid(labels.shape, (3.0, 3.0, 3.0)))
    settings = Localizer(model="localizer", label=7, margin_mm=10.0)
    assert localize(volume, Finds(labels), settings)[0] is None  # type: ignore[arg-type]
    wider = msgspec.structs.replace(settings, min_side_mm=5.0)
    assert localize(volume, Finds(labels), wider)[0] is not None  # type: ignore[arg-type]


def test_the_default_is_three_folds() -> None:
    assert Member(model="m").min_folds == 3


@pytest.mark.fault("models", "two models of a recipe know different classes", "an error before anything runs")
def test_members_with_different_classes_are_refused_before_anything_runs() -> None:
    members = [Member(model="task1"), Member(model="localizer")]
    recipe = msgspec.structs.replace(TASK1, members=members)
    with pytest.raises(ModelError, match=r"localizer: expected 3 classes, as in .*task1, found 8") as caught:
        load_system(recipe, DEMO_WEIGHTS, device="cpu")
    saw(caught.value)
