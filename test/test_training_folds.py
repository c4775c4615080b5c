"""Training, resuming and validating a fold of a raw nnU-Net data set, compared with nnU-Net's own commands."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from conftest import run_python
from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import InputError, OutputError, RecipeError
from pantherseg.inference.predictor import Logits
from pantherseg.io import read_labels
from pantherseg.model_sources.checkpoint import read_checkpoint
from pantherseg.training.folders import TrainingFolders
from pantherseg.training.folds import make_trainer, train_fold
from pantherseg.training.nnunet_trainers.pantherseg_trainer import LATEST, PantherTrainer, read_settings
from pantherseg.training.planning import plan_and_preprocess, with_sizes
from pantherseg.training.seeds import reseed
from pantherseg.training.training_recipe import PlanSettings, ScheduleSettings, TrainingSettings
from pantherseg.training.validation import validate_fold
from pantherseg.volume import Volume
from patch_training import write_raw

# The filters are for warnings that nnU-Net causes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

PLAN = PlanSettings(
    network="PlainConvUNet",
    spacing=(5.0, 6.0, 6.0),
    memory_gb=0.1,
    base_features=4,
    max_features=8,
    blocks_encoder=[1] * 7,
    blocks_decoder=[1] * 6,
    patch_size=(32, 32, 32),
)
FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"


def settings(**schedule: Any) -> TrainingSettings:
    defaults = {"epochs": 3, "iterations": 1, "validation_iterations": 1}
    return TrainingSettings(schedule=msgspec.convert(defaults | schedule, ScheduleSettings), seed=7)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolders:
    folder = tmp_path_factory.mktemp("planned")
    folders = TrainingFolders(write_raw(folder), folder)
    plan_and_preprocess(folders, PLAN)
    return folders


@pytest.fixture
def folders(planned: TrainingFolders, tmp_path: Path) -> TrainingFolders:
    """The same data set, preprocessed in a folder of the test's own."""
    shutil.copytree(planned.preprocessed, tmp_path / "preprocessed" / planned.name)
    return TrainingFolders(planned.dataset, tmp_path)


@dataclass(frozen=True)
class Uninterrupted:
    folders: TrainingFolders
    fold: Path


@pytest.fixture(scope="module")
def uninterrupted(planned: TrainingFolders, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    root = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(planned.preprocessed, root / "preprocessed" / planned.name)
    folders = TrainingFolders(planned.dataset, root)
    return Uninterrupted(folders, train_fold(folders, settings(), fold=0))


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=False)
    return loaded


def assert_same_weights(found: Path, expected: Path) -> None:
    weights, others = (read_checkpoint(path).weights for path in (found, expected))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def test_nnunet_has_the_same_losses_with_the_same_plans_data_and_seed(
    folders: TrainingFolders, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's own trainer is shortened and seeded from outside, and otherwise left as it is."""
    init, initialize, start = nnUNetTrainer.__init__, nnUNetTrainer.initialize, nnUNetTrainer.on_epoch_start

    def short_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 1, 1

    def seeded_initialize(self: Any) -> None:
        reseed(7, 0)
        initialize(self)

    def seeded_start(self: Any) -> None:
        start(self)
        reseed(7, 0, self.current_epoch)

    # nnU-Net reads the signature.
    short_init.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
    monkeypatch.setattr(nnUNetTrainer, "__init__", short_init)
    monkeypatch.setattr(nnUNetTrainer, "initialize", seeded_initialize)
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_start", seeded_start)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    with folders.environment():
        run_training.run_training(
            folders.name, "3d_fullres", 0, "nnUNetTrainer", "pantherseg", device=torch.device("cpu")
        )
    theirs = content(folders.model.with_name("nnUNetTrainer__pantherseg__3d_fullres") / "fold_0" / FINAL)["logging"]
    ours = content(uninterrupted.fold / FINAL)["logging"]
    for name in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert len(ours["train_losses"]) == 3
    assert len(set(ours["train_losses"])) == 3


def test_nnunets_own_command_trains_with_the_settings_of_the_plans(folders: TrainingFolders, tmp_path: Path) -> None:
    fold = train_fold(folders, settings(epochs=1, mirroring=False), fold=0)
    ours, summary = content(fold / FINAL), validate_fold(folders, fold=0)
    fold.rename(tmp_path / "ours")
    with folders.environment():
        environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    entry = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
    options = ("-tr", "PantherTrainer", "-p", "pantherseg", "-device", "cpu")
    done = run_python("-c", entry, folders.name, "3d_fullres", "0", *options, env=environment)
    assert done.returncode == 0, done.stderr
    theirs = content(fold / FINAL)
    assert theirs["trainer_name"] == "PantherTrainer"
    np.testing.assert_allclose(ours["logging"]["train_losses"], theirs["logging"]["train_losses"], rtol=1e-4)
    # nnU-Net validates after the training.
    by_nnunet = json.loads((fold / "validation" / "summary.json").read_text())
    assert list(summary["mean"]) == ["1", "2"]
    for label in ("1", "2"):
        assert summary["mean"][label]["Dice"] == pytest.approx(by_nnunet["mean"][label]["Dice"], abs=1e-3)
    assert len(summary["metric_per_case"]) == len(by_nnunet["metric_per_case"]) == 2


def test_nnunets_predictor_finds_the_trainer(uninterrupted: Uninterrupted) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    with uninterrupted.folders.environment():
        predictor.initialize_from_trained_model_folder(str(uninterrupted.folders.model), (0,), FINAL)
    assert predictor.trainer_name == "PantherTrainer"


def test_leaves_nnunets_files_with_the_settings_and_the_curves(uninterrupted: Uninterrupted) -> None:
    model, fold = uninterrupted.folders.model, uninterrupted.fold
    assert {path.name for path in model.iterdir()} >= {"plans.json", "dataset.json", "dataset_fingerprint.json"}
    assert {path.name for path in fold.iterdir()} >= {FINAL, BEST, "progress.png"}
    assert not (fold / LATEST).exists()
    assert read_settings(json.loads((model / "plans.json").read_text())) == settings()


def test_validates_with_the_summary_of_nnunet_and_gives_the_logits(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    given: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def keep(case: str, image: Volume, logits: Logits) -> None:
        given.append((case, image.array.shape, logits.shape))

    folders = uninterrupted.folders
    preprocessed = folders.preprocessed.rename(tmp_path / "away")
    summary = validate_fold(folders, fold=0, each=keep)
    preprocessed.rename(folders.preprocessed)
    validation = uninterrupted.fold / "validation"
    assert json.loads((validation / "summary.json").read_text()) == summary
    labels = str(folders.dataset / "labelsTr")
    theirs = tmp_path / "summary.json"
    compute_metrics_on_folder(labels, str(validation), str(theirs), SimpleITKIO(), ".mha", [1, 2], num_processes=1)
    assert json.loads(theirs.read_text()) == summary
    cases = json.loads((folders.dataset / SPLITS).read_text())[0]["val"]
    assert [case for case, _, _ in given] == cases
    assert all(image == logits for _, image, logits in given)
    for case in cases:
        mask, label = (read_labels(folder / f"{case}.mha") for folder in (validation, folders.dataset / "labelsTr"))
        assert not mask.grid.difference(label.grid)
        overlap = (
            2 * ((mask.array == 2) & (label.array == 2)).sum() / ((mask.array == 2).sum() + (label.array == 2).sum())
        )
        (found,) = [one for one in summary["metric_per_case"] if Path(one["prediction_file"]).stem == case]
        assert found["metrics"]["2"]["Dice"] == pytest.approx(overlap)


# Runs in another process, with the folders as arguments: dies at the given step of the third epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec, torch
from pantherseg.training.folders import TrainingFolders
from pantherseg.training.folds import make_trainer, train_fold
from pantherseg.training.nnunet_trainers.pantherseg_trainer import PantherTrainer
from pantherseg.training.training_recipe import TrainingSettings

raw, root, settings, moment = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

steps = 0
def train_step(self, batch, inner=PantherTrainer.train_step):
    global steps
    steps += 1
    result = inner(self, batch)
    if moment == "step" and steps == 3:
        die()
    return result

def save(content, path, inner=torch.save):
    if moment == "save" and content["current_epoch"] == 2 and "latest" in path:
        Path(path).write_bytes(b"half of a checkpoint")
        die()
    inner(content, path)

PantherTrainer.train_step, torch.save = train_step, save
settings = msgspec.json.decode(settings, type=TrainingSettings)
train_fold(TrainingFolders(Path(raw), Path(root)), settings, fold=0)
"""


@pytest.mark.fault(
    "training", "the process is killed in an epoch or in writing a checkpoint", "the same weights after resuming"
)
@pytest.mark.parametrize("moment", ["step", "save"])
def test_a_killed_training_ends_in_the_weights_of_an_uninterrupted_one(
    folders: TrainingFolders, uninterrupted: Uninterrupted, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = msgspec.json.encode(settings()).decode()
    killed = run_python("-c", KILLED, folders.dataset, folders.root, encoded, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    fold = folders.fold(0)
    assert not (fold / FINAL).exists()
    epoch = {"step": 2, "save": 1}[moment]
    assert content(fold / LATEST)["current_epoch"] == epoch
    with caplog.at_level(logging.INFO):
        train_fold(folders, settings(), fold=0)
    lines = [record.getMessage() for record in caplog.records]
    assert f"fold 0: resumed after epoch {epoch} of 3" in lines
    assert len([line for line in lines if ", loss " in line]) == 3 - epoch
    for name in (FINAL, BEST):
        assert_same_weights(fold / name, uninterrupted.fold / name)
    assert not list(fold.glob(".*"))


def test_starts_from_the_weights_of_another_model(folders: TrainingFolders, uninterrupted: Uninterrupted) -> None:
    start = uninterrupted.fold / FINAL
    trained = train_fold(folders, settings(epochs=1, iterations=1, learning_rate=1e-12), fold=1, start=start)
    record = json.loads((trained / "start.json").read_text())
    assert record["checkpoint"] == str(start)
    skipped = {one["name"]: one for one in record["skipped"]}
    assert all(".seg_layers." in name and one["shape"] == one["found"] for name, one in skipped.items())
    weights, others = (read_checkpoint(fold / FINAL).weights for fold in (trained, uninterrupted.fold))
    for name, value in weights.items():
        assert name in skipped or torch.allclose(value, others[name], atol=1e-6), name
        assert name not in skipped or value.ndim == 1 or not torch.allclose(value, others[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("depth", "schedule", "expected"), [(32, True, True), (24, True, True), (16, True, False), (32, False, False)]
)
def test_computes_in_bfloat16_where_no_stage_is_two_voxels_deep(
    folders: TrainingFolders, depth: int, schedule: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    plans = json.loads(folders.plans.read_text()) | {"pantherseg": msgspec.to_builtins(settings(bfloat16=schedule))}
    configuration = plans["configurations"]["3d_fullres"]
    assert [stride[0] for stride in configuration["architecture"]["arch_kwargs"]["strides"]] == [1, 2, 2, 2]
    configuration["patch_size"] = [depth, 32, 32]
    with folders.environment():
        assert make_trainer(folders, plans, fold=0, device="cpu").in_bfloat16 == expected


def test_leaves_a_finished_fold_as_it_is(uninterrupted: Uninterrupted) -> None:
    before = (uninterrupted.fold / FINAL).stat().st_mtime_ns
    assert train_fold(uninterrupted.folders, settings(), fold=0) == uninterrupted.fold
    assert (uninterrupted.fold / FINAL).stat().st_mtime_ns == before


@pytest.mark.fault("training", "a fold was trained with other settings", "a clear error; the fold is left as it is")
def test_refuses_to_go_on_with_other_settings(uninterrupted: Uninterrupted) -> None:
    with pytest.raises(OutputError, match="same plans and settings, found one that differs in pantherseg; move it"):
        train_fold(uninterrupted.folders, settings(epochs=4), fold=0)
    train_fold(uninterrupted.folders, settings(), fold=0)


@pytest.mark.fault("training", "the disk is full at a checkpoint", "a clear error; the last checkpoint stays")
def test_a_full_disk_leaves_the_last_checkpoint(
    folders: TrainingFolders, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_until_full(content: dict[str, Any], path: str) -> None:
        if content["current_epoch"] == 2 and "latest" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_until_full)
        with pytest.raises(OutputError, match=r"checkpoint_latest.pth: failed to write this file: No space left"):
            train_fold(folders, settings(), fold=0)
    train_fold(folders, settings(), fold=0)
    assert_same_weights(folders.fold(0) / FINAL, uninterrupted.fold / FINAL)


def test_writes_curves_for_tensorboard_where_it_is_installed(
    folders: TrainingFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (Path(folder), purge_step) == (folders.fold(1) / "tensorboard", 0)

        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            assert np.isfinite(value)
            added.append((name, epoch))

        def flush(self) -> None: ...

        def close(self) -> None:
            added.append(("closed", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train_fold(folders, settings(epochs=2, augmentation="none", optimizer="adamw"), fold=1)
    assert [one for one in added if one[0] in ("train_losses", "closed")] == [
        ("train_losses", 0),
        ("train_losses", 1),
        ("closed", 0),
    ]


Trainer = Callable[..., PantherTrainer]


@pytest.fixture
def trainer(folders: TrainingFolders, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Return a function that makes a trainer with a schedule."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def make(**schedule: Any) -> PantherTrainer:
        plans = json.loads(folders.plans.read_text()) | {"pantherseg": {"schedule": schedule}}
        dataset = json.loads((folders.preprocessed / "dataset.json").read_text())
        with folders.environment():
            made = PantherTrainer(plans | {"continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
            made.initialize()
            made.dataloader_train, made.dataloader_val = made.get_dataloaders()
        return made

    return make


@pytest.mark.parametrize(
    ("augmentation", "modes"),
    [
        ("default", ("bilinear", "bilinear")),
        ("da5", ("bilinear", "bilinear")),
        ("da5_nearest_labels", ("bilinear", "nearest")),
        ("da5_nearest_images", ("nearest", "nearest")),
    ],
)
def test_augments_as_the_trainers_of_nnunet(trainer: Trainer, augmentation: str, modes: tuple[str, str]) -> None:
    made = trainer(augmentation=augmentation)
    transforms = made.dataloader_train.data_loader.transforms.transforms
    spatial = next(one for one in transforms if type(one).__name__ == "SpatialTransform")
    assert (spatial.mode_image, spatial.mode_seg) == modes
    assert spatial.p_rotation == (0.2 if augmentation == "default" else 0.4)
    assert made.inference_allowed_mirroring_axes == (0, 1, 2)
    assert any(type(one).__name__ == "MirrorTransform" for one in transforms)


def test_augments_without_mirroring_or_not_at_all(trainer: Trainer) -> None:
    made = trainer(augmentation="da5", mirroring=False)
    names = {type(one).__name__ for one in made.dataloader_train.data_loader.transforms.transforms}
    assert "MirrorTransform" not in names
    assert made.inference_allowed_mirroring_axes is None
    made = trainer(augmentation="none")
    names = {type(one).__name__ for one in made.dataloader_train.data_loader.transforms.transforms}
    assert names == {"RemoveLabelTransform", "DownsampleSegForDSTransform"}
    assert made.inference_allowed_mirroring_axes is None


def test_refuses_invalid_settings_in_the_plans(trainer: Trainer) -> None:
    with pytest.raises(RecipeError, match=r"plans pantherseg: invalid pantherseg: .*\$.schedule.epochs"):
        trainer(epochs=0)


@pytest.mark.fault("training", "a data set that was not preprocessed completely", "a clear error")
def test_refuses_a_data_set_that_is_not_preprocessed(folders: TrainingFolders, tmp_path: Path) -> None:
    (folders.preprocessed / SPLITS).unlink()
    with pytest.raises(InputError, match="expected a preprocessed data set, found none, or an incomplete one"):
        train_fold(folders, settings(), fold=0)
    with pytest.raises(InputError, match=r"dataset.json: expected a raw nnU-Net data set, found no such folder"):
        train_fold(TrainingFolders(tmp_path / "Dataset001_missing", tmp_path), settings(), fold=0)


def test_refuses_a_patch_that_the_network_cannot_halve(planned: TrainingFolders) -> None:
    plans = json.loads(planned.plans.read_text())
    assert with_sizes(plans, PLAN, "tiny") == plans
    with pytest.raises(RecipeError, match=r"expected plan.patch_size in multiples of \[.*\], which the network needs"):
        with_sizes(plans, msgspec.structs.replace(PLAN, patch_size=(17, 33, 33)), "tiny")
