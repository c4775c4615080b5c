"""What a training takes over from the model that it starts from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import ChangedModel
from pantherseg.errors import ModelError
from pantherseg.model_sources.checkpoint import read_checkpoint
from pantherseg.model_sources.nnunet import PLANS, read_configuration
from pantherseg.models.find import ModelFolder
from pantherseg.networks import build_network
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.training.start import Skipped, load_start, start_checkpoint, start_configuration


def network(folder: Path, *, classes: int = 3, first: int = 8) -> nn.Module:
    """Return the demo's network with another number of classes or of features in its first stage."""
    configuration = read_configuration(folder, "3d_fullres")
    features = configuration.architecture["arguments"]["features_per_stage"]
    arguments = configuration.architecture["arguments"] | {"features_per_stage": [first, *features[1:]]}
    architecture = configuration.architecture | {"arguments": arguments}
    return build_network(folder / PLANS, architecture, classes=classes, running_statistics=True)


def test_takes_over_all_weights_but_the_segmentation_heads(demo_folder: ModelFolder) -> None:
    checkpoint = demo_folder.checkpoint_path("0")
    made, weights = network(demo_folder.path, classes=2), read_checkpoint(checkpoint).weights
    before = {name: value.clone() for name, value in made.state_dict().items()}
    skipped = load_start(made, checkpoint, channels=1)
    assert skipped
    assert all(".seg_layers." in one.name and one.shape[0] == 2 and one.found[0] == 3 for one in skipped if one.found)
    heads = {one.name for one in skipped}
    assert heads == {name for name in before if ".seg_layers." in name}
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name] if name in heads else weights[name]), name


def test_skips_the_first_convolution_of_a_model_with_other_channels(
    demo_folder: ModelFolder, changed_model: ChangedModel
) -> None:
    weights = read_checkpoint(demo_folder.checkpoint_path("0")).weights
    stem = [name for name, value in weights.items() if value.ndim == 5 and value.shape[1] == 1]
    two = {name: value.repeat(1, 2, 1, 1, 1) if name in stem else value for name, value in weights.items()}
    checkpoint = start_checkpoint(changed_model(network_weights=two), 0)
    made = network(demo_folder.path)
    skipped = [one for one in load_start(made, checkpoint, channels=1) if ".seg_layers." not in one.name]
    assert [one.name for one in skipped] == stem
    assert skipped[0] == Skipped(stem[0], (8, 1, 3, 3, 3), (8, 2, 3, 3, 3))


@pytest.mark.fault("training", "a model to fine-tune whose weights do not fit", "an error with tensors and shapes")
def test_refuses_weights_that_do_not_fit(demo_folder: ModelFolder, changed_model: ChangedModel) -> None:
    checkpoint = demo_folder.checkpoint_path("0")
    with pytest.raises(ModelError) as caught:
        load_start(network(demo_folder.path, first=12), checkpoint, channels=1)
    text = str(caught.value)
    assert text.startswith(f"{checkpoint}: expected weights of the network to train (encoder.stem.")
    assert "(12, 1, 3, 3, 3)" in text
    assert "(8, 1, 3, 3, 3)" in text
    assert re.search(r"found \d+ that differ \(", text)
    weights = read_checkpoint(checkpoint).weights
    name, value = weights.popitem()
    changed = changed_model(network_weights={**weights, "extra.weight": value}) / "fold_0" / checkpoint.name
    made = network(demo_folder.path)
    if ".seg_layers." in name:
        expected = f"(no others), found 1 that differ (extra.weight {tuple(value.shape)})"
    else:
        expected = f"({name} {tuple(value.shape)}), found 2 that differ ({name} missing, extra.weight"
    with pytest.raises(ModelError, match=re.escape(expected)):
        load_start(made, changed, channels=1)


def test_each_fold_starts_from_its_counterpart_or_from_the_only_fold(
    demo_folder: ModelFolder, changed_model: ChangedModel
) -> None:
    assert start_checkpoint(demo_folder.path, 3) == demo_folder.checkpoint_path("3")
    only = changed_model(folds=1)
    assert start_checkpoint(only, 3) == only / "fold_0" / "checkpoint_final.pth"
    (only / "fold_0").rename(only / "fold_all")
    assert start_checkpoint(only, 3) == only / "fold_all" / "checkpoint_final.pth"
    with pytest.raises(ModelError, match="fold_5"):
        start_checkpoint(demo_folder.path, 5)


def test_keeps_the_configuration_of_the_start(demo_folder: ModelFolder, tmp_path: Path) -> None:
    plans = json.loads((demo_folder.path / PLANS).read_text())
    written = plans["configurations"]["3d_fullres"]
    found = start_configuration(demo_folder.path)
    for key in ("architecture", "patch_size", "batch_size", "spacing"):
        assert found[key] == written[key]


def test_gives_the_spacing_in_the_order_of_the_volumes(changed_model: ChangedModel) -> None:
    folder = changed_model()
    plans = json.loads((folder / PLANS).read_text())
    plans |= {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 2.0]
    (folder / PLANS).write_text(json.dumps(plans))
    assert start_configuration(folder)["spacing"] == [1.0, 2.0, 3.0]
    del plans["configurations"]["3d_fullres"]
    (folder / PLANS).write_text(json.dumps(plans))
    with pytest.raises(ModelError, match="valid configuration 3d_fullres"):
        start_configuration(folder)


def test_starts_from_a_bundle_as_from_the_model_folder_that_it_was_packed_from(demo_folder: ModelFolder) -> None:
    bundle = DEMO_WEIGHTS / "task1"
    assert start_checkpoint(bundle, 3) == bundle / "fold_3.safetensors"
    made, packed = network(demo_folder.path), network(demo_folder.path)
    skipped = load_start(made, demo_folder.checkpoint_path("3"), channels=1)
    assert load_start(packed, start_checkpoint(bundle, 3), channels=1) == skipped
    heads = {one.name for one in skipped}
    for name, value in made.state_dict().items():
        assert name in heads or torch.equal(value, packed.state_dict()[name]), name
    assert start_configuration(bundle) == start_configuration(demo_folder.path)


@pytest.mark.fault("training", "a bundle to fine-tune of which a fold is damaged", "an error with its checksum")
def test_refuses_a_damaged_bundle_to_start_from(tmp_path: Path) -> None:
    bundle = shutil.copytree(DEMO_WEIGHTS / "task1", tmp_path / "task1")
    fold = bundle / "fold_1.safetensors"
    content = bytearray(fold.read_bytes())
    content[-1] ^= 1
    fold.write_bytes(content)
    with pytest.raises(ModelError, match=r"fold_1.safetensors: expected SHA-256"):
        start_checkpoint(bundle, 1)
    assert start_checkpoint(bundle, 0) == bundle / "fold_0.safetensors"
    with pytest.raises(ModelError, match=r"no fold_7.safetensors"):
        start_checkpoint(bundle, 7)
