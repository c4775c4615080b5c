"""Results folders of our own trainer: what they hold, how they become bundles, and which are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from bench.small_networks import SMALL_B, SMALL_D, make_weights
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import SetFree, dice, flip_a_bit, one_line_about
from pantherseg import __version__
from pantherseg.cli import main as pantherseg
from pantherseg.errors import DeviceMemoryError, ModelError
from pantherseg.events import EventCode
from pantherseg.inference.backends import Backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.machine.deadline import Deadline
from pantherseg.model_sources.lightning import BEST, FINAL, LightningSource, weights_sha256, write_checkpoint
from pantherseg.model_sources.lightning_plans import PLANS, LightningPlans, read_plans, write_plans
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import open_model_folder
from pantherseg.networks import AUXILIARY
from pantherseg.networks.attention_unet import AttentionUnet
from pantherseg.networks.segformer3d import SegFormer3D
from pantherseg.packing.pack import as_bundle, pack
from pantherseg.phantom import make_phantom
from pantherseg.preprocessing.intensity import NonZeroZScore
from pantherseg.volume import Grid, Volume

B = LightningPlans(
    task="t1",
    architecture=AttentionUnet(base_features=4, depth=2, squeeze=2),
    labels={"background": 0, "tumour": 1},
    spacing_zyx=(5.0, 3.0, 3.0),
    patch_size_zyx=(16, 32, 48),
    normalization=NonZeroZScore(percentiles=(1.0, 99.0)),
    orientation="LPS",
    trained_with={"pantherseg": __version__},
)
D = msgspec.structs.replace(
    B,
    architecture=SegFormer3D(embeddings=(8, 12, 20, 16), depths=(1, 1, 1, 1), decoder_features=8, squeeze=2),
    labels={"background": 0, "tumour": 1, "pancreas": 2},
    normalization=NonZeroZScore(),
)
both = pytest.mark.parametrize("plans", [B, D], ids=["attention_unet", "segformer3d"])
Change = Callable[[Path], object]


def write_folder(folder: Path, plans: LightningPlans, *, folds: int = 2, names: tuple[str, ...] = (FINAL,)) -> Path:
    """Write a results folder with random weights, other ones for each fold and name."""
    write_plans(folder, plans)
    for fold in range(folds):
        for number, name in enumerate(names):
            torch.manual_seed(10 * fold + number)
            network = plans.architecture.build_trainable(folder, classes=len(plans.labels))
            write_checkpoint(folder / f"fold_{fold}" / name, network.state_dict(), plans, str(fold))
    return folder


@pytest.fixture(scope="module", params=[B, D], ids=["attention_unet", "segformer3d"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two folds of a small network of each family."""
    return as_bundle(open_model_folder(write_folder(tmp_path_factory.mktemp("results") / "task1", request.param)))


@pytest.fixture(scope="module")
def volume() -> Volume:
    """A volume of a few tiles."""
    array = np.random.default_rng(0).normal(100, 20, (20, 34, 50)).astype(np.float32)
    return Volume(array, Grid(array.shape, B.spacing_zyx))


def rewrite(path: Path, *, weights: Callable[[dict[str, torch.Tensor]], object] = dict, **metadata: str) -> None:
    """Change the weights of a checkpoint in place, with their checksum, and entries of its metadata."""
    values = load_file(path)
    weights(values)
    with safe_open(path, framework="pt") as file:
        stated = {**file.metadata(), "sha256": weights_sha256(values), **metadata}
    save_file(values, path, stated)


def other_plans(path: Path, **changes: object) -> None:
    """Let a checkpoint state other plans."""
    rewrite(path, plans=json.dumps(B.described | changes))


def read_fold(folder: Path, fold: str) -> dict[str, torch.Tensor]:
    """Return what packing reads of a fold."""
    model = open_model_folder(folder)
    checkpoints = {one: model.checkpoint_path(one) for one in model.folds}
    return LightningSource().open(folder, checkpoints).weights(fold)


def test_versions_of_packages_do_not_matter(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, B)
    write_plans(folder, msgspec.structs.replace(B, trained_with={"pantherseg": "9", "torch": "9"}))
    assert read_fold(folder, "0").keys() == read_fold(folder, "1").keys()


def test_plans_are_read_as_they_were_written(tmp_path: Path) -> None:
    for plans in (B, D):
        write_plans(tmp_path, plans)
        assert read_plans(tmp_path) == plans
    content = json.loads((tmp_path / PLANS).read_text())
    assert content["schema"] == 1
    assert content["architecture"]["family"] == "segformer3d"
    assert content["normalization"] == {"scheme": "NonZeroZScoreNormalization", "percentiles": None}


@pytest.mark.fault("models", "pantherseg_plans.json with {change}", "an error that names the file and the entry")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "expected schema 1, found 2"),
        ({"schema": None}, "expected schema 1, found None"),
        ({"task": ""}, "Expected `str` of length >= 1 - at `$.task`"),
        ({"architecture": {"family": "unet"}}, "Unknown network family 'unet'"),
        ({"architecture": {"family": "segformer3d", "heads": [0, 1, 1, 1]}}, "Expected `int` >= 1"),
        ({"labels": {"background": 0, "tumour": 2}}, "labels must be numbered from 0 without a gap"),
        ({"labels": {"background": 0}}, "labels must be numbered from 0 without a gap"),
        ({"labels": {"tumour": 0, "background": 1}}, "with background 0, got {'tumour': 0, 'background': 1}"),
        ({"spacing_zyx": [3.0, 0.0, 1.0]}, "Expected `float` > 0.0 - at `$.spacing_zyx[1]`"),
        ({"patch_size_zyx": [16, 32, 45]}, "the patch must be a multiple of 4"),
        ({"normalization": {"scheme": "Unknown"}}, "Unknown intensity scheme 'Unknown'"),
        ({"normalization": {"scheme": "NonZeroZScoreNormalization", "percentiles": [99, 1]}}, "a lower and a higher"),
        ({"orientation": "XYZ"}, "Invalid enum value 'XYZ' - at `$.orientation`"),
        ({"mirroring_axes": [3]}, "Invalid enum value 3"),
        ({"patch": [1, 2, 3]}, "unknown field `patch`"),
    ],
)
def test_refuses_damaged_plans(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_plans(tmp_path, B)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        read_plans(tmp_path)
    assert message in one_line_about(path, caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_refuses_plans_that_are_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PLANS).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_plans(tmp_path)
    one_line_about(tmp_path / PLANS, caught.value)


def test_the_zscore_of_voxels_that_are_not_zero_leaves_zeros_alone() -> None:
    image = np.zeros((4, 5, 6), np.float32)
    image[1:3, 1:4, 1:5] = np.random.default_rng(0).normal(100, 20, (2, 3, 4))
    image[1, 1, 1] = 5000
    inside = image[image != 0]
    plain, clipped = image.copy(), image.copy()
    NonZeroZScore().run(plain)
    np.testing.assert_allclose(plain[image != 0], (inside - inside.mean()) / inside.std(), rtol=1e-5, atol=1e-6)
    NonZeroZScore(percentiles=(1.0, 99.0)).run(clipped)
    low, high = np.percentile(inside, (1, 99))
    expected = np.clip(inside, low, high)
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(clipped[image != 0], expected, rtol=1e-5, atol=1e-6)
    assert not plain[image == 0].any()
    assert not clipped[image == 0].any()
    zeros = np.zeros((2, 2, 2), np.float32)
    NonZeroZScore(percentiles=(1.0, 99.0)).run(zeros)
    assert not zeros.any()


@both
def test_packs_a_results_folder_from_the_command_line(plans: LightningPlans, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "results", plans, names=(FINAL, BEST))
    for name, target in ((FINAL, tmp_path / "final"), (BEST, tmp_path / "best")):
        options = [] if name == FINAL else ["--checkpoint", BEST]
        result = CliRunner().invoke(pantherseg, ["pack", str(folder), str(target), *options])
        assert result.exit_code == 0, result.stderr
        assert f"folds 0 1 of {name}, labels 1 tumour" in result.stdout
        manifest = open_bundle(target).manifest
        assert manifest.checkpoint == name
        assert (manifest.patch, manifest.labels, manifest.orientation) == ((16, 32, 48), plans.labels, "LPS")
        assert manifest.preprocessing == plans.preprocessing
        assert manifest.mirroring_axes == (0, 1, 2)
        assert manifest.architecture == plans.network
        assert manifest.provenance.record == {"trainer": "lightning", "task": "t1"}
        assert manifest.provenance.files_sha256.keys() == {PLANS}
        trained = load_file(folder / "fold_1" / name)
        packed = load_file(target / "fold_1.safetensors")
        packed.pop("graph.constants")
        assert trained.keys() - packed.keys() == {one for one in trained if one.startswith(AUXILIARY)} != set()
        assert packed.keys() <= trained.keys()
        assert all(torch.equal(value, trained[one]) for one, value in packed.items())


OTHER_HEADS = msgspec.structs.replace(D, architecture=msgspec.structs.replace(D.architecture, heads=(2, 2, 5, 8)))
WIDER = msgspec.structs.replace(B, architecture=AttentionUnet(base_features=6, depth=2, squeeze=2))


@pytest.mark.fault("models", "a checkpoint of our own trainer: {what}", "an error that names it and what does not fit")
@pytest.mark.parametrize(
    ("what", "plans", "other", "messages"),
    [
        ("of another family", B, D, ["(family attention_unet)", "found family segformer3d; ", " missing: ", " more"]),
        ("with another width", B, WIDER, ["(base_features 4)", "found base_features 6; ", " of another shape: "]),
        ("with other heads, of equal shapes", D, OTHER_HEADS, ["(heads [1, 2, 5, 8])", "found heads [2, 2, 5, 8]; "]),
        ("of another task", B, msgspec.structs.replace(B, task="t2"), ["(task t1)", "found task t2; written by"]),
        (
            "with another number of labels",
            B,
            msgspec.structs.replace(B, labels=D.labels),
            [
                "(labels {'background': 0, 'tumour': 1})",
                "of another shape: ",
                "head.weight (3, 4, 1, 1, 1) in place of ",
            ],
        ),
        *(
            (f"of plans with {what}", B, msgspec.structs.replace(B, **change), messages)
            for what, change, messages in (
                (
                    "another spacing",
                    {"spacing_zyx": (5.0, 3.0, 2.0)},
                    ["(spacing_zyx [5.0, 3.0, 3.0]), found spacing_zyx [5.0, 3.0, 2.0]; written by"],
                ),
                ("another patch", {"patch_size_zyx": (16, 32, 32)}, ["found patch_size_zyx [16, 32, 32]; "]),
                ("another normalisation", {"normalization": NonZeroZScore()}, ["'percentiles': [1.0, 99.0]}), found "]),
                ("other labels", {"labels": {"background": 0, "pancreas": 1}}, ["found labels {'background': 0, 'pan"]),
                ("no mirroring", {"mirroring_axes": ()}, ["(mirroring_axes [0, 1, 2]), found mirroring_axes []; "]),
            )
        ),
    ],
)
def test_refuses_a_checkpoint_of_another_model(
    tmp_path: Path, what: str, plans: LightningPlans, other: LightningPlans, messages: list[str]
) -> None:
    folder = write_folder(tmp_path / "model", plans)
    wrong = write_folder(tmp_path / "other", other)
    path = folder / "fold_1" / FINAL
    shutil.copy(wrong / "fold_1" / FINAL, path)
    with pytest.raises(ModelError) as caught:
        read_fold(folder, "1")
    text = one_line_about(path, caught.value)
    assert text[len(f"{path}: ") :].startswith(f"expected a checkpoint of the model in {PLANS}")
    assert [message for message in messages if message not in text] == []
    assert text.endswith(f"use the checkpoint that was trained with the {PLANS} of this folder")


@pytest.mark.fault("models", "a checkpoint of our own trainer {what}", "an error that names it and what does not fit")
@pytest.mark.parametrize(
    ("what", "change", "message"),
    [
        ("of another fold", lambda path: shutil.copy(path.parents[1] / "fold_0" / FINAL, path), "found fold 0; "),
        ("of another version", lambda path: other_plans(path, schema=2), "found schema 2; written by version"),
        ("that does not say what it is", lambda path: save_file(load_file(path), path), "task not stated, fold not"),
        ("with damaged metadata", lambda path: rewrite(path, plans="{"), "task not stated, family not stated; "),
        (
            "without a tensor",
            lambda path: rewrite(path, weights=lambda values: values.pop("head.bias")),
            "found 1 missing: head.bias; written by version",
        ),
        (
            "without a tensor of an auxiliary head",
            lambda path: rewrite(path, weights=lambda values: values.pop(f"{AUXILIARY}0.bias")),
            f"found 1 missing: {AUXILIARY}0.bias; ",
        ),
        (
            "with further tensors",
            lambda path: rewrite(
                path, weights=lambda values: values.update({f"more.{n}": torch.ones(2) for n in range(9)})
            ),
            "found 9 unexpected: more.0, more.1 and 7 more; ",
        ),
        (
            "with weights of whole numbers",
            lambda path: rewrite(path, weights=lambda values: values.update({"head.bias": values["head.bias"].int()})),
            "found 1 of another type: head.bias torch.int32 in place of torch.float32; ",
        ),
        ("with a changed bit", flip_a_bit, "expected tensors with the checksum of this file, found others; copy"),
        ("that is truncated", lambda path: path.write_bytes(path.read_bytes()[:-9]), "a complete safetensors file"),
        ("that is empty", lambda path: path.write_bytes(b""), "expected a complete safetensors file"),
    ],
)
def test_refuses_a_checkpoint_that_does_not_fit(tmp_path: Path, what: str, change: Change, message: str) -> None:
    folder = write_folder(tmp_path / "model", B)
    path = folder / "fold_1" / FINAL
    change(path)
    with pytest.raises(ModelError) as caught:
        read_fold(folder, "1")
    assert message in one_line_about(path, caught.value)


@pytest.mark.fault("models", "a checkpoint of our own trainer with NaN", "an error that names it and the tensor")
def test_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", B, folds=1)
    path = folder / "fold_0" / FINAL
    rewrite(path, weights=lambda values: values["head.bias"].fill_(float("nan")))
    with pytest.raises(ModelError) as caught:
        pack(open_model_folder(folder), tmp_path / "bundle")
    expected = "expected finite values in head.bias, found NaN or infinite values"
    assert expected in one_line_about(path, caught.value)
    assert not (tmp_path / "bundle").exists()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.fault(
    "models", "a pickle that runs code, named as a checkpoint of our own trainer", "an error, and the code does not run"
)
def test_never_unpickles(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", B)
    path = folder / "fold_0" / FINAL
    torch.save({"state_dict": Trap(tmp_path / "trap")}, path)
    for content in (path.read_bytes(), pickle.dumps(Trap(tmp_path / "trap"))):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            read_fold(folder, "0")
        assert "expected a complete safetensors file" in one_line_about(path, caught.value)
    assert not (tmp_path / "trap").exists()


@pytest.mark.fault("models", "a folder of our own trainer without its plans", "an error that names the file")
def test_names_what_a_folder_lacks(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", B)
    (folder / PLANS).unlink()
    with pytest.raises(ModelError) as caught:
        open_model_folder(folder)
    assert f"expected a model folder ({PLANS} and fold_0, fold_1, ...), found no {PLANS}" in str(caught.value)
    write_plans(folder, B)
    (folder / "fold_1" / FINAL).rename(folder / "fold_1" / BEST)
    with pytest.raises(ModelError, match=f"expected a checkpoint, found {BEST} in fold_1"):
        open_model_folder(folder)


@pytest.mark.fault("models", "one of two folds of our own trainer is damaged, one suffices", "the mask of the other")
def test_a_damaged_fold_leaves_the_other(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", B)
    (folder / "fold_0" / FINAL).write_bytes(b"damaged")
    packed = as_bundle(open_model_folder(folder, min_folds=1), min_folds=1)
    assert packed.manifest.folds == ("1",)
    assert "expected a complete safetensors file" in str(packed.fold_errors["0"])


def test_the_engine_runs_each_family_on_both_backends(bundle: Bundle, volume: Volume) -> None:
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    logits = [Predictor(bundle, backend).predict(volume) for backend in backends]
    first, second = (np.asarray(one.slab(0, volume.grid.shape[0])) for one in logits)
    assert first.shape == (bundle.manifest.classes, *volume.grid.shape)
    # At the edges of a tile its weight is tiny, and float16 sums of it are coarse.
    assert np.mean(np.abs(first - second) > 2e-3) < 1e-3
    tile = np.random.default_rng(0).normal(0, 1, (1, 1, *bundle.manifest.patch)).astype(np.float32)
    for fold in bundle.folds:
        outputs = [np.asarray(backend.network(bundle, fold)(torch.from_numpy(tile))) for backend in backends]
        np.testing.assert_allclose(*outputs, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("plans", [SMALL_B, SMALL_D], ids=["attention_unet", "segformer3d"])
def test_both_backends_give_the_mask_of_a_trained_network(plans: LightningPlans, tmp_path: Path) -> None:
    model = make_weights(tmp_path / "model", plans, folds=1)
    bundle = pack(model, tmp_path / "bundle")
    image = make_phantom(9700, task=1, size="small").image
    volume = Volume(image.array.astype(np.float32), image.grid)
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    first, second = (Predictor(bundle, backend).predict(volume).labels() for backend in backends)
    for label in range(1, len(plans.labels)):
        assert 0.02 < (first == label).mean() < 0.8
        assert dice(first == label, second == label) >= 0.9999


def test_mirrors_along_all_axes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight flips of a single tile: as many passes as system D's sliding window makes."""
    backend, tiles = OpenVinoBackend(), []
    network = backend.network

    def counted(*arguments: Any, **settings: Any) -> Any:
        run = network(*arguments, **settings)
        return lambda tile: tiles.append(np.asarray(tile).copy()) or run(tile)

    monkeypatch.setattr(backend, "network", counted)
    array = np.random.default_rng(0).normal(100, 10, bundle.manifest.patch).astype(np.float32)
    volume = Volume(array, Grid(array.shape, bundle.manifest.preprocessing.spacing))
    Predictor(bundle, backend, mirroring=True).predict(volume)
    assert len(tiles) == 8 * len(bundle.folds)


def test_a_deadline_leaves_out_passes_of_each_family(bundle: Bundle, volume: Volume) -> None:
    predictor = Predictor(bundle, OpenVinoBackend(), mirroring=True)
    logits = predictor.logits(predictor.prepare(volume), Deadline.after(0.0))
    assert EventCode.FOLDS_LEFT_OUT in {event.code for event in logits.events}
    assert logits.folds == ("0",)
    assert np.isfinite(np.asarray(logits.values)).all()


def test_memory_limits_hold_for_each_family(bundle: Bundle, volume: Volume, set_free: SetFree) -> None:
    backend = OpenVinoBackend()
    assert bundle.manifest.peak_activations > np.prod(bundle.manifest.patch) * 4
    in_memory = Predictor(bundle, backend).predict(volume).labels()
    network = backend.network_bytes(bundle)
    set_free(network)
    on_disk = Predictor(bundle, backend).predict(volume)
    assert EventCode.LOGITS_ON_DISK in {event.code for event in on_disk.events}
    np.testing.assert_array_equal(on_disk.labels(), in_memory)
    set_free(network - 1)
    with pytest.raises(DeviceMemoryError, match="for the network of"):
        Predictor(bundle, backend).predict(volume)
