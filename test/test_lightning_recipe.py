"""The settings of the trainer `lightning`, and training files that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pantherseg.errors import RecipeError
from pantherseg.paths import ROOT
from pantherseg.training.graph import load_training_file
from pantherseg.training.steps import steps_of
from patch_training import settings

STAGE = """
schema = 2
name = "patches"
[data.t1]
layout = "panther"
dataset_id = 1
[stage.first]
data = ["t1"]
dataset_id = 2
trainer = "lightning"
[stage.first.lightning.plan]
network = { family = "attention_unet", depth = 1 }
spacing = [3.0, 2.0, 2.0]
patch_size = [8, 16, 16]
[stage.first.lightning.schedule]
epochs = 2
sampling = { tumour = 1.0 }
"""
NNUNET = """
[stage.second]
data = ["t1"]
dataset_id = 3
[stage.second.plan]
network = "ResEncM"
"""


def load(folder: Path, text: str) -> Any:
    path = folder / "training.toml"
    path.write_text(text)
    return load_training_file(path)


def test_warms_up_and_then_decays_by_a_polynomial() -> None:
    schedule = load_training_file(ROOT / "Task1/training/system_d.toml").stage["task1"].lightning.schedule  # type: ignore[union-attr]
    assert schedule.steps == 250_000
    assert schedule.learning_rate_at(0) == pytest.approx(3e-4 / 9000)
    assert schedule.learning_rate_at(8999) == pytest.approx(3e-4)
    assert schedule.learning_rate_at(9000) == pytest.approx(3e-4)
    halfway = 9000 + (250_000 - 9000) // 2
    assert schedule.learning_rate_at(halfway) == pytest.approx(3e-4 * 0.5**0.9)
    assert schedule.learning_rate_at(249_999) == pytest.approx(3e-4 * (1 / 241_000) ** 0.9)
    assert schedule.learning_rate_at(250_000) == 0


def test_the_files_state_the_published_values() -> None:
    b = load_training_file(ROOT / "Task1/training/system_b.toml").stage["task1"]
    assert b.labels == "tumour"
    assert b.lightning is not None
    assert b.lightning.plan.patch_size == (96, 96, 96)
    loss, schedule = b.lightning.schedule.loss, b.lightning.schedule
    assert (loss.dice, loss.focal, loss.focal_alpha, loss.focal_gamma) == (0.6, 0.3, 0.25, 2.0)
    assert (loss.boundary, loss.empty_slices, schedule.learning_rate, schedule.decay) == (0.1, 0.1, 1e-4, "plateau")
    d = load_training_file(ROOT / "Task1/training/system_d.toml").stage["task1"]
    assert d.lightning is not None
    assert (d.lightning.plan.patch_size, d.lightning.plan.spacing) == ((32, 160, 208), (3.0, 1.1875, 1.1875))
    assert d.lightning.schedule.sampling == {"background": 0.2, "pancreas": 0.3, "tumour": 0.5}
    assert (d.lightning.schedule.weight_decay, d.lightning.schedule.clip_gradient) == (5e-5, 1.0)


@pytest.mark.parametrize("system", ["system_b", "system_d"])
def test_the_small_forms_have_the_parts_of_the_loss_and_the_augmentation_of_the_systems(system: str) -> None:
    published, small = (
        load_training_file(ROOT / f"Task1/training/{name}.toml").stage["task1"] for name in (system, f"{system}_small")
    )
    assert published.lightning is not None
    assert small.lightning is not None
    for name in ("augmentation", "clip_gradient"):
        assert getattr(small.lightning.schedule, name) == getattr(published.lightning.schedule, name)
    loss, small_loss = published.lightning.schedule.loss, small.lightning.schedule.loss
    assert msgspec.structs.replace(small_loss, empty_slices=loss.empty_slices) == loss
    assert type(small.lightning.plan.network) is type(published.lightning.plan.network)
    assert (small.labels, small.checkpoint) == (published.labels, published.checkpoint)


@pytest.mark.parametrize(
    ("plan", "schedule", "message"),
    [
        ({}, {"epochs": 0}, r"epochs"),
        ({}, {"warm_up_steps": 12}, "warm_up_steps must be less than all steps: 12 of 12"),
        ({}, {"decay": "plateau", "warm_up_steps": 1}, "warm_up_steps needs the decay poly"),
        ({}, {"sampling": {"tumour": 0.0}}, "at least one label of sampling"),
        ({}, {"loss": {"dice": 0.0}}, "at least one part of the loss"),
        ({}, {"loss": {"focal_alpha": 1.5}}, r"\$.schedule.loss.focal_alpha"),
        ({"patch_size": [8, 16, 15]}, {}, "must be a multiple of 2 along each axis for this network, got 8, 16, 15"),
        ({"patch_size": [8, 16, 1 << 20]}, {}, r"Expected `int` <= 4096 - at `\$.plan.patch_size"),
        ({"network": {"family": "unet"}}, {}, "Unknown network family 'unet'"),
        ({"network": {"family": "attention_unet", "deep": 1}}, {}, "unknown key 'deep'"),
        ({"normalization": {"scheme": "Z"}}, {}, "Unknown intensity scheme 'Z'"),
    ],
)
def test_refuses_invalid_settings(plan: dict[str, Any], schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        settings(plan, **schedule)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('trainer = "lightning"', "", r'has a table `lightning`, which needs trainer = "lightning"'),
        ('[stage.second.plan]\nnetwork = "ResEncM"', 'trainer = "lightning"', "needs a table `lightning` with"),
        (
            "[stage.first.lightning.plan]",
            "schedule = {epochs = 1}\n[stage.first.lightning.plan]",
            "which are nnU-Net's",
        ),
        ('trainer = "lightning"', 'trainer = "lightning"\ncheckpoint = "checkpoint_best.pth"', "checkpoint names"),
        ("{ tumour = 1.0 }", "{ pankreas = 1.0 }", "sampling names 'pankreas', which is not among the labels"),
        (
            'trainer = "lightning"',
            'trainer = "lightning"\nstart = "weights/x"',
            "its trainer can only start from a stage",
        ),
        (
            '[stage.second.plan]\nnetwork = "ResEncM"',
            'start = "first"',
            "has the trainer nnunet, but 'first' has lightning",
        ),
        ("depth = 1", "depth = 5", r"the patch must be a multiple of 32 along .*at `\$.stage.first.lightning.plan`"),
        ("epochs = 2", "epoch = 2", r"unknown key 'epoch' in `\$.stage.first.lightning.schedule`.*mean 'epochs'\?"),
        ("spacing = ", "spacings = ", r"unknown key 'spacings' in `\$.stage.first.lightning.plan`.*mean 'spacing'\?"),
        ("epochs = 2", "epochs = 0", r"Expected `int` >= 1 - at `\$.stage.first.lightning.schedule.epochs`"),
        ("epochs = 2", "", r"missing required field `epochs` - at `\$.stage.first.lightning.schedule`"),
    ],
    ids=[
        *("settings of a trainer that was not chosen", "a trainer without its settings"),
        *("settings of two trainers", "a checkpoint that the trainer does not write"),
        *("patches around a label that there is not", "a start that the trainer cannot read"),
        *("a start of another trainer", "a patch that the network cannot divide"),
        *("an unknown key of a schedule", "an unknown key of a plan", "a value out of range", "a missing key"),
    ],
)
@pytest.mark.fault("training", "a training file with the trainer `lightning`: {id}", "an error that names the key")
def test_refuses_a_file_that_cannot_be_run(tmp_path: Path, old: str, new: str, message: str) -> None:
    load(tmp_path, STAGE + NNUNET)
    text = (STAGE + NNUNET).replace(old, new)
    assert text != STAGE + NNUNET
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "training.toml"))


@pytest.mark.fault(
    "training", "a stage of the trainer `lightning` starts from one with another network", "an error before any step"
)
def test_a_stage_has_the_network_of_the_one_that_it_starts_from(tmp_path: Path) -> None:
    second = (
        STAGE[STAGE.index("[stage.first]") :].replace("first", "second").replace("dataset_id = 2", "dataset_id = 3")
    )
    second = second.replace("[stage.second]", '[stage.second]\nstart = "first"\nlabels = "tumour"')
    assert load(tmp_path, STAGE + second).stage["second"].start_stage == "first"
    for old, new, message in (
        ("depth = 1", "depth = 2", "it has depth 2, but 'first' has 1"),
        (
            'family = "attention_unet", depth = 1',
            'family = "segformer3d"',
            "it has family segformer3d, but 'first' has",
        ),
    ):
        text = second.replace(old, new).replace("[8, 16, 16]", "[32, 64, 64]")
        with pytest.raises(RecipeError, match=f"stage.second must have the network of the stage .*: {message}"):
            load(tmp_path, STAGE + text)


def test_a_changed_plan_prepares_again_and_a_changed_schedule_trains_again(tmp_path: Path) -> None:
    before = steps_of(load(tmp_path, STAGE)).fingerprints({})

    def changed(old: str, new: str) -> set[str]:
        after = steps_of(load(tmp_path, STAGE.replace(old, new))).fingerprints({})
        return {name.partition(".")[0] for name, value in after.items() if before[name] != value}

    assert changed("spacing = [3.0", "spacing = [4.0") == {"plan", "fold", "validate", "bundle"}
    assert changed("epochs = 2", "epochs = 3") == {"fold", "validate", "bundle"}
    assert changed("epochs = 2", "epochs = 2\ncheckpoint_every = 2") == set()
    best = 'trainer = "lightning"\ncheckpoint = "checkpoint_best.safetensors"'
    assert changed('trainer = "lightning"', best) == {"validate", "bundle"}
