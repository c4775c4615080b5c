"""Cases in which a fold or the localizer is missing, damaged or wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from bench.unpack import unpack

from conftest import flip_a_bit, one_line_about
from pantherseg.ensemble import Ensemble
from pantherseg.errors import ModelError
from pantherseg.events import EventCode
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.model_sources.nnunet import CHECKPOINT
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.models.manifest import MANIFEST
from pantherseg.packing.pack import pack_models
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.pipeline import Segmentation, segment
from pantherseg.recipe import Localizer, Member, Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume

TASK1, TASK2 = load_recipe(task_recipe(1)), load_recipe(task_recipe(2))
LEFT_OUT = EventCode.FOLD_LEFT_OUT


def missing(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def changed_in_one_bit(path: Path) -> None:
    flip_a_bit(path)


Damage = Callable[[Path], None]
DAMAGES: list[Damage] = [missing, cut_short, changed_in_one_bit]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a copy of the demo models that a test may damage."""
    folder = tmp_path / "models"
    shutil.copytree(DEMO_WEIGHTS, folder)
    return folder


@pytest.fixture
def raw_root(demo_folder: ModelFolder, tmp_path: Path) -> Path:
    """Return a copy of the nnU-Net folder of Task 1's demo model that a test may damage."""
    folder = tmp_path / "raw"
    shutil.copytree(demo_folder.path, folder / "task1")
    return folder


def with_member(recipe: Recipe, **changes: object) -> Recipe:
    member = msgspec.structs.replace(recipe.members[0], **changes)
    return msgspec.structs.replace(recipe, members=[member])


def load(recipe: Recipe, root: Path) -> Ensemble:
    return Session(recipe, root, device="cpu").load()


def run(volume: Volume, recipe: Recipe, root: Path) -> Segmentation:
    return segment(volume, Session(recipe, root, device="cpu"))


def codes(result: Segmentation) -> list[EventCode]:
    return [event.code for event in result.events]


@pytest.mark.fault("models", "one of five folds is {damage}", "the mask of the other four, and an event")
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_leaves_out_a_damaged_fold(pancreas: Volume, root: Path, damage: Damage) -> None:
    damage(root / "task1" / "fold_2.safetensors")
    result = run(pancreas, TASK1, root)
    assert codes(result) == [LEFT_OUT]
    assert "fold_2.safetensors" in result.events[0].message
    others = run(pancreas, with_member(TASK1, folds=[0, 1, 3, 4]), DEMO_WEIGHTS)
    assert codes(others) == []
    np.testing.assert_array_equal(result.mask.array, others.mask.array)
    with_all = run(pancreas, TASK1, DEMO_WEIGHTS)
    assert (with_all.mask.array != result.mask.array).any(), "the fold makes a difference"


@pytest.mark.fault(
    "models",
    "the first and the fourth checkpoint of five in an nnU-Net folder are {damage}",
    "the mask of the other three for every case of a run, and events",
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_leaves_out_damaged_checkpoints_in_every_case(pancreas: Volume, raw_root: Path, damage: Damage) -> None:
    for fold in (0, 3):
        damage(raw_root / "task1" / f"fold_{fold}" / CHECKPOINT)
    session = Session(TASK1, raw_root, device="cpu")
    others = run(pancreas, with_member(TASK1, folds=[1, 2, 4]), DEMO_WEIGHTS)
    for _ in range(2):
        result = segment(pancreas, session)
        assert codes(result) == [LEFT_OUT, LEFT_OUT]
        for event, fold in zip(result.events, (0, 3), strict=True):
            assert f"fold_{fold}/{CHECKPOINT}: " in event.message
        np.testing.assert_array_equal(result.mask.array, others.mask.array)
    (model,) = result.models
    assert model.folds == tuple(model.sha256) == ("1", "2", "4")
    assert model.path == str(raw_root / "task1")
    assert len(result.confidence.fold_volumes_ml) == 3


@pytest.mark.slow
def test_members_and_localizer_share_one_packed_nnunet_folder(raw_root: Path) -> None:
    cut_short(raw_root / "task1" / "fold_2" / CHECKPOINT)
    members = [Member(model="task1", folds=[0, 1, 2, 3]), Member(model="task1", mirroring=True, folds=[0, 3, 4])]
    localizer = Localizer(model="task1", label=2, margin_mm=10.0, folds=[4])
    recipe = msgspec.structs.replace(TASK1, members=members, localizer=localizer)
    ensemble = load(recipe, raw_root)
    assert len({predictor.bundle.path for predictor in ensemble.predictors}) == 1
    assert [" ".join(predictor.bundle.folds) for predictor in ensemble.predictors] == ["0 1 2 3", "0 3 4", "4"]
    every_fold = msgspec.structs.replace(localizer, folds="all")
    ensemble = load(msgspec.structs.replace(recipe, localizer=every_fold), raw_root)
    assert ensemble.localizer is None
    assert f"fold_2/{CHECKPOINT}: " in ensemble.localizer_problem


@pytest.mark.slow
def test_members_of_one_nnunet_folder_may_have_different_checkpoints(raw_root: Path) -> None:
    different = raw_root / "task1" / "fold_0" / CHECKPOINT
    torch.save(torch.load(different, weights_only=True) | {"inference_allowed_mirroring_axes": (0,)}, different)
    members = [Member(model="task1", folds=[0]), Member(model="task1", folds=[1, 2, 3, 4])]
    ensemble = load(msgspec.structs.replace(TASK1, members=members), raw_root)
    assert [predictor.bundle.manifest.mirroring_axes for predictor in ensemble.members] == [(0,), ()]


@pytest.mark.fault(
    "models", "three of five folds are {damage}, and the recipe needs three", "an error that names a fold"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses_fewer_folds_than_the_recipe_needs(pancreas: Volume, root: Path, damage: Damage) -> None:
    for fold in (0, 1, 2):
        damage(root / "task1" / f"fold_{fold}.safetensors")
    with pytest.raises(ModelError) as caught:
        run(pancreas, TASK1, root)
    assert "fold_" in one_line_about(caught.value.where, caught.value)


@pytest.mark.fault("models", "one of five folds is damaged, and the recipe needs all", "an error that names the fold")
def test_refuses_a_damaged_fold_where_the_recipe_needs_all(root: Path) -> None:
    cut_short(root / "task1" / "fold_4.safetensors")
    with pytest.raises(ModelError, match="fold_4"):
        load(with_member(TASK1, min_folds=5), root)
    with pytest.raises(ModelError, match="fold_4"):
        load(with_member(TASK1, folds=[3, 4]), root)
    load(with_member(TASK1, folds=[3, 4], min_folds=1), root)


@pytest.mark.fault(
    "models",
    "one fold is {damage} when models are packed for an upload",
    "an error that names the fold, and nothing is packed",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses_to_pack_an_incomplete_model_for_an_upload(root: Path, tmp_path: Path, damage: Damage) -> None:
    damage(root / "task1" / "fold_2.safetensors")
    with pytest.raises(ModelError, match=r"fold_2\.safetensors"):
        pack_models(root, tmp_path / "packed", TASK1)
    assert not (tmp_path / "packed").exists()


@pytest.mark.fault("models", "two models of a recipe have different classes", "an error before a network runs")
def test_refuses_members_with_different_classes() -> None:
    members = [Member(model="task1"), Member(model="localizer")]
    with pytest.raises(ModelError, match=r"localizer: expected 3 classes, as in .*task1, found 8"):
        load(msgspec.structs.replace(TASK1, members=members), DEMO_WEIGHTS)


@pytest.mark.fault(
    "localizer", "a file of the localizer is {damage}: {name}", "the mask of the whole volume, and an event"
)
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [MANIFEST, "fold_0.safetensors"])
def test_searches_the_whole_volume_with_a_damaged_localizer(
    pancreas: Volume, root: Path, damage: Damage, name: str
) -> None:
    damage(root / "localizer" / name)
    result = run(pancreas, TASK2, root)
    assert codes(result)[0] == EventCode.LOCALIZER_FAILED
    assert result.events[0].message.endswith("; the whole volume was searched")
    assert result.box.shape == pancreas.grid.shape
    # Only a changed content is found when the network is loaded; before that, the localizer is not among the models.
    assert len(result.models) == 1 + (name != MANIFEST and damage is changed_in_one_bit)


@pytest.mark.fault(
    "localizer", "the checkpoint of the localizer's nnU-Net folder is {damage}", "a reason, and no localizer"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_does_not_use_a_damaged_nnunet_folder_as_localizer(root: Path, damage: Damage) -> None:
    shutil.rmtree(root / "localizer")
    damage(unpack(open_bundle(DEMO_WEIGHTS / "localizer"), root / "localizer").checkpoint_path("0"))
    ensemble = load(TASK2, root)
    assert ensemble.localizer is None
    assert f"fold_0/{CHECKPOINT}: " in ensemble.localizer_problem


def no_memory_to_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Predictor.prepare

    def fails(predictor: Predictor, volume: Volume) -> object:
        if predictor.bundle.path.name == "localizer":
            raise MemoryError("Unable to allocate 27.5 MiB")
        return prepare(predictor, volume)

    monkeypatch.setattr(Predictor, "prepare", fails)


def no_memory_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network_bytes = OpenVinoBackend.network_bytes

    def needed(backend: OpenVinoBackend, bundle: Bundle) -> int:
        return 1 << 62 if bundle.path.name == "localizer" else network_bytes(backend, bundle)

    monkeypatch.setattr(OpenVinoBackend, "network_bytes", needed)


@pytest.mark.fault("localizer", "the localizer has {limit}", "the mask of the whole volume, and an event")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (no_memory_to_prepare, "Unable to allocate 27.5 MiB"),
        (no_memory_for_the_network, "MB for the network of localizer in"),
    ],
)
def test_searches_the_whole_volume_without_memory_for_the_localizer(
    pancreas: Volume, monkeypatch: pytest.MonkeyPatch, limit: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    limit(monkeypatch)
    result = run(pancreas, with_member(TASK2, folds=[0]), DEMO_WEIGHTS)
    assert codes(result)[0] == EventCode.LOCALIZER_FAILED
    assert message in result.events[0].message
    assert result.box.shape == pancreas.grid.shape
