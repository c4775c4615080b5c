"""A network family, or the model folders of another framework, are added by one registration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from conftest import one_line_about
from pantherseg.errors import ModelError
from pantherseg.inference.backends import Backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.model_sources import SOURCES, PackableModel
from pantherseg.models.find import ModelFolder, find_models, open_model_folder
from pantherseg.networks import Architecture, build_network, register_network
from pantherseg.packing.pack import as_bundle, pack
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.recipe import Member, Recipe, Sockets
from pantherseg.registry import Registry
from pantherseg.tables import Fraction, Table, decode_registered
from pantherseg.volume import Grid, Volume

TINY: dict[str, object] = {"family": "test.tiny", "width": 4}
DESCRIPTION: dict[str, Any] = {
    "patch": (8, 16, 16),
    "labels": {"background": 0, "tumour": 1},
    "preprocessing": {
        "spacing": [1.0, 1.0, 1.0],
        "transpose": [0, 1, 2],
        "normalization": {"scheme": "ZScoreNormalization"},
        "images": {"function": "resample_data_or_seg_to_shape", "order": 1},
        "logits": {"function": "resample_data_or_seg_to_shape", "order": 1},
    },
}


class Shape:
    """A base class with registered variants."""

    registry: ClassVar[Registry[Shape]] = Registry("shape")


@Shape.registry.register("circle")
class Circle(Table, Shape, frozen=True):
    radius: Fraction


@Shape.registry.register("union")
class Union(Table, Shape, frozen=True):
    parts: tuple[Shape, ...] = ()


class Drawing(Table, frozen=True):
    shape: Shape


def test_a_registry_decodes_and_encodes_nested_variants() -> None:
    table = {"shape": {"kind": "union", "parts": [{"kind": "circle", "radius": 0.5}, {"kind": "union", "parts": []}]}}
    drawing = msgspec.convert(table, Drawing, dec_hook=decode_registered)
    assert drawing.shape == Union(parts=(Circle(radius=0.5), Union()))
    assert json.loads(msgspec.json.encode(drawing)) == table
    assert hash(drawing) == hash(msgspec.convert(table, Drawing, dec_hook=decode_registered))
    assert Shape.registry.names() == ("circle", "union")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "square"}, "Unknown shape 'square', expected one of circle, union"),
        ({"radius": 1}, "Expected a shape: a table whose key 'kind' is one of circle, union"),
        ([], "Expected a shape: a table"),
        ({"kind": "circle"}, "shape 'circle': Object missing required field `radius`"),
        ({"kind": "circle", "radius": 2}, "shape 'circle': Expected `float` <= 1.0"),
        ({"kind": "union", "colour": "red"}, "shape 'union': unknown key 'colour', expected one of kind, parts"),
        ({"kind": "union", "parts": [{"kind": "circle"}]}, "shape 'circle': Object missing"),
    ],
)
def test_a_registry_refuses_an_invalid_table(table: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape.registry.decode(table)
    with pytest.raises(msgspec.ValidationError, match=rf"{message}.*\$\.shape"):
        msgspec.convert({"shape": table}, Drawing, dec_hook=decode_registered)


def test_a_registry_refuses_a_second_variant_of_the_same_name() -> None:
    with pytest.raises(ValueError, match="the shape 'circle' is registered already"):
        Shape.registry.register("circle")(Circle)


@register_network("test.tiny")
class TinyNetwork(Table, Architecture, frozen=True):
    """Two convolutions with a norm between them."""

    width: int

    def build(self, where: Path, *, classes: int) -> nn.Module:
        first, last = nn.Conv3d(1, self.width, 3, padding=1), nn.Conv3d(self.width, classes, 1)
        return nn.Sequential(first, nn.InstanceNorm3d(self.width, affine=True), nn.LeakyReLU(), last)


class NormedBlock(nn.Module):
    """Two convolutions with two norms, one of which is registered twice, as in nnU-Net's blocks."""

    def __init__(self, convolution: type[nn.Module], norm: type[nn.Module], *, affine: bool, classes: int) -> None:
        super().__init__()
        self.norm = norm(4, eps=0.01, affine=affine, track_running_stats=True)
        other = norm(4, affine=affine, track_running_stats=True)
        first, last = convolution(1, 4, 3, padding=1), convolution(4, classes, 1)
        self.all_modules = nn.Sequential(first, self.norm, nn.LeakyReLU(), other, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.all_modules(x)
        return logits


@register_network("test.running")
class RunningNetwork(Table, Architecture, frozen=True):
    """A network whose norms keep running statistics."""

    norm: Literal["BatchNorm", "InstanceNorm"]
    axes: Literal[2, 3]
    affine: bool

    def build(self, where: Path, *, classes: int) -> nn.Module:
        convolution, norm = (getattr(nn, f"{kind}{self.axes}d") for kind in ("Conv", self.norm))
        return NormedBlock(convolution, norm, affine=self.affine, classes=classes)


@register_network("test.transposed")
class TransposedNetwork(Table, Architecture, frozen=True):
    """A network whose weights the graph holds in another form: their order is reversed."""

    def build(self, where: Path, *, classes: int) -> nn.Module:
        class Reversed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.rand(classes, 1, 1, 1, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.conv3d(x, self.weight.flip(0))

        return Reversed()


class TiedBlocks(nn.Module):
    """Two convolutions that share one weight, with slopes that the constructor computes, and a constant."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=1)
        self.second.weight = self.first.weight
        first, second = [x.item() for x in torch.linspace(0.1, 0.3, 2)]
        self.activations = nn.Sequential(nn.LeakyReLU(first), nn.LeakyReLU(second))
        self.last = nn.Conv3d(1, classes, 1)
        self.register_buffer("offset", torch.tensor(0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activations[0](self.first(x))
        logits: torch.Tensor = self.last(self.activations[1](self.second(x)) + self.offset)
        return logits


@register_network("test.tied")
class TiedNetwork(Table, Architecture, frozen=True):
    """A network in which two modules share a parameter, and whose constructor reads values of tensors."""

    def build(self, where: Path, *, classes: int) -> nn.Module:
        return TiedBlocks(classes)


class TestSource:
    """Model folders with a model.json and plain state dicts."""

    __test__ = False
    files: tuple[str, ...] = ("model.json",)
    checkpoint = "weights.pt"
    packages: tuple[str, ...] = ("torch",)

    def accepts(self, folder: Path) -> bool:
        return (folder / "model.json").is_file()

    def open(self, folder: Path, checkpoints: Mapping[str, Path]) -> PackableModel:
        description = json.loads((folder / "model.json").read_text())
        return PackableModel(
            folder=folder,
            described_in=folder / "model.json",
            checkpoints=checkpoints,
            patch=tuple(description["patch"]),
            labels=description["labels"],
            mirroring_axes=(len(description["patch"]) - 1,),
            orientation="RAS",
            preprocessing=msgspec.convert(description["preprocessing"], Preprocessing, dec_hook=decode_registered),
            architecture=description["architecture"],
            files=(folder / "model.json",),
            record={"framework": "test"},
            weights=lambda fold: torch.load(checkpoints[fold], weights_only=True),
        )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A model folder of the registered source with two folds."""
    SOURCES.append(TestSource())
    yield write_model(tmp_path / "models" / "task1", TINY)
    SOURCES.pop()


def write_model(folder: Path, architecture: dict[str, object], **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(DESCRIPTION | {"architecture": architecture} | changes))
    for fold in range(2):
        torch.manual_seed(fold)
        (folder / f"fold_{fold}").mkdir()
        network = build_network(folder / "model.json", architecture, classes=2, running_statistics=True)
        for name, value in network.state_dict().items():
            if "running" in name or ("norm" in name and value.is_floating_point()):
                value.uniform_(0.5, 2.0)
        torch.save(network.state_dict(), folder / f"fold_{fold}" / "weights.pt")
    return folder


def trained_network(model: Path, architecture: dict[str, object], fold: str) -> nn.Module:
    """Return the network of a fold as torch runs it."""
    network = build_network(model, architecture, classes=2, running_statistics=True)
    network.load_state_dict(torch.load(model / f"fold_{fold}" / "weights.pt", weights_only=True))
    return network


def test_finds_packs_and_runs_a_model_of_a_registered_source_and_family(folder: Path) -> None:
    recipe = Recipe(schema=1, name="r", sockets=Sockets(input="in", output="out"), members=[Member(model="task1")])
    (model,) = find_models(folder.parent, recipe).members
    assert model == ModelFolder(folder, ("0", "1"), "weights.pt")
    bundle = as_bundle(model)
    manifest = bundle.manifest
    assert manifest.architecture == TINY
    assert manifest.provenance.record == {"framework": "test"}
    assert manifest.provenance.files_sha256.keys() == {"model.json"}

    array = np.random.default_rng(0).normal(100, 20, (11, 20, 18)).astype(np.float32)
    volume = Volume(array, Grid(array.shape, (1.0, 1.0, 1.0)))
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    first, second = (
        Predictor(bundle, backend, mirroring=True).logits(Predictor(bundle, backend).prepare(volume))
        for backend in backends
    )
    assert first.values.shape == (2, *array.shape)
    np.testing.assert_allclose(np.asarray(first.values), np.asarray(second.values), rtol=0, atol=2e-3)
    prepared = torch.from_numpy(manifest.preprocessing.run(array, (1.0, 1.0, 1.0)).data)[None]
    network = build_network(folder, manifest.architecture, classes=2)
    network.load_state_dict(torch.load(folder / "fold_0" / "weights.pt", weights_only=True))
    assert network(prepared).shape == (1, 2, *array.shape)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("norm", ["BatchNorm", "InstanceNorm"])
def test_norms_with_running_statistics_compute_as_in_torch(
    folder: Path, tmp_path: Path, norm: str, axes: int, affine: bool
) -> None:
    architecture: dict[str, object] = {"family": "test.running", "norm": norm, "axes": axes, "affine": affine}
    patch = DESCRIPTION["patch"][-axes:]
    model = write_model(tmp_path / "other", architecture, patch=patch)
    bundle = pack(open_model_folder(model), tmp_path / "bundle")
    assert bundle.manifest.architecture == architecture
    norms = {"norm.scale", "norm.shift", "all_modules.3.scale", "all_modules.3.shift"}
    assert norms <= bundle.manifest.tensors.keys()
    image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 1, *patch)).astype(np.float32))
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    for fold in bundle.folds:
        expected = trained_network(model, architecture, fold)(image).detach().numpy()
        for backend in backends:
            logits = backend.network(bundle, fold)(image)
            np.testing.assert_allclose(np.asarray(logits), expected, rtol=0, atol=1e-5)


def test_packs_a_network_whose_modules_share_a_parameter(folder: Path, tmp_path: Path) -> None:
    architecture: dict[str, object] = {"family": "test.tied"}
    model = write_model(tmp_path / "other", architecture)
    bundle = pack(open_model_folder(model), tmp_path / "bundle")
    assert bundle.manifest.tensors.keys() == {"first.weight", "first.bias", "second.bias", "last.weight", "last.bias"}
    image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 1, *DESCRIPTION["patch"])).astype(np.float32))
    expected = [trained_network(model, architecture, fold)(image).detach().numpy() for fold in bundle.folds]
    assert not np.allclose(*expected, rtol=0, atol=1e-2)
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    for backend in backends:
        for fold, values in zip(bundle.folds, expected, strict=True):
            logits = backend.network(bundle, fold)(image)
            np.testing.assert_allclose(np.asarray(logits), values, rtol=0, atol=1e-5)


@pytest.mark.fault(
    "models", "a variance of a batch norm in a checkpoint is {wrong}", "an error that names the checkpoint and the norm"
)
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_refuses_an_invalid_variance(folder: Path, tmp_path: Path, wrong: float) -> None:
    architecture = {"family": "test.running", "norm": "BatchNorm", "axes": 3, "affine": True}
    model = write_model(tmp_path / "other", architecture)
    path = model / "fold_1" / "weights.pt"
    weights = torch.load(path, weights_only=True)
    weights["norm.running_var"][2] = wrong
    torch.save(weights, path)
    with pytest.raises(ModelError) as caught:
        pack(open_model_folder(model), tmp_path / "bundle")
    expected = "expected finite variances of at least 0 in norm.running_var, found NaN, infinite or negative values"
    assert expected in one_line_about(path, caught.value)


def test_finding_models_does_not_import_torch() -> None:
    code = "import sys, pantherseg.models.find; sys.exit(bool({'torch', 'nnunetv2', 'openvino'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_refuses_an_unknown_family_and_invalid_settings(tmp_path: Path) -> None:
    for architecture, message in (
        (
            {"family": "unknown"},
            "Unknown network family 'unknown', expected one of attention_unet, nnunet, segformer3d",
        ),
        ({}, "a table whose key 'family' is one of attention_unet, nnunet, segformer3d"),
        ({"family": "test.tiny"}, "missing required field `width`"),
    ):
        with pytest.raises(ModelError) as caught:
            build_network(tmp_path, architecture, classes=2)
        assert message in one_line_about(tmp_path, caught.value)


def test_refuses_a_network_whose_graph_holds_transformed_weights(folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", {"family": "test.transposed"})
    with pytest.raises(ModelError) as caught:
        pack(open_model_folder(other), tmp_path / "bundle")
    assert "the graph does not contain weight unchanged" in one_line_about(other, caught.value)
