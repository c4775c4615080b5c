"""Backends: the same masks from each, what each says of itself, and what is not imported for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray

from conftest import CopiedBundle, NnunetMask
from pantherseg.arrays import to_host
from pantherseg.errors import DeviceError, ModelError
from pantherseg.fusion import mean_logits
from pantherseg.inference import backends
from pantherseg.inference.backends import Backend, choose_backend, on_torch
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_labels, write_volume
from pantherseg.models.bundle import GRAPH, Bundle, open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS, ROOT
from pantherseg.volume import Grid, Volume

BOTH = pytest.mark.parametrize("kind", [OpenVinoBackend, lambda: TorchBackend("cpu")], ids=["openvino", "torch"])
# Large, slow to import, and none of them is in the images.
UNWANTED = ("torch", "nnunetv2", "dynamic_network_architectures", "batchgenerators", "matplotlib", "skimage", "pandas")


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return open_bundle(DEMO_WEIGHTS / "task1")


def mask(bundle: Bundle, backend: Backend, volume: Volume, *, mirroring: bool = False) -> NDArray[np.uint8]:
    predictor = Predictor(bundle, backend, mirroring=mirroring)
    return mean_logits([predictor.logits(predictor.prepare(volume))]).labels()


def forward(backend: Backend, bundle: Bundle, fold: str, tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a network's logits for a tile (1, 1, *patch)."""
    placed = next(backend.placements(tile, bundle)).data
    return to_host(backend.network(bundle, fold)(placed))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(), (2,)], ids=["plain", "mirrored"])
def test_every_backend_gives_nnunets_own_mask(
    tiled_folder: ModelFolder, tiled_bundle: Bundle, nnunet_mask: NnunetMask, pancreas: Volume, axes: tuple[int, ...]
) -> None:
    expected = nnunet_mask(tiled_folder, pancreas, mirroring=bool(axes), mirroring_axes=axes)
    assert (expected == (2 if axes else 1)).any()
    bundle = replace(tiled_bundle, manifest=msgspec.structs.replace(tiled_bundle.manifest, mirroring_axes=axes))
    for backend in (OpenVinoBackend(), TorchBackend("cpu")):
        found = mask(bundle, backend, pancreas, mirroring=bool(axes))
        assert (found != expected).sum() == 0, type(backend).__name__


@pytest.mark.slow
def test_every_backend_gives_the_same_mask_with_every_demo_model(pancreas: Volume) -> None:
    for role in ("task1", "task2", "localizer"):
        bundle = open_bundle(DEMO_WEIGHTS / role, folds=[0])
        one, other = mask(bundle, OpenVinoBackend(), pancreas), mask(bundle, TorchBackend("cpu"), pancreas)
        assert one.any()
        assert (one != other).sum() == 0, role


@pytest.mark.slow
def test_fast_hardly_differs_from_exact(demo: Bundle, pancreas: Volume) -> None:
    exact, fast = (mask(demo, choose_backend("cpu", mode), pancreas) for mode in ("exact", "fast"))
    assert (exact == 1).any()
    dice = 2 * ((exact == 1) & (fast == 1)).sum() / ((exact == 1).sum() + (fast == 1).sum())
    assert dice >= 0.97
    assert (exact != fast).mean() <= 1e-3


def test_every_folds_network_is_the_same_in_every_backend(tiled_bundle: Bundle) -> None:
    tile = np.random.default_rng(0).normal(size=(1, 1, *tiled_bundle.manifest.patch)).astype(np.float32)
    logits = {}
    for backend in (OpenVinoBackend(), TorchBackend("cpu")):
        runs = [forward(backend, tiled_bundle, fold, tile) for fold in ("0", "1", "0")]
        np.testing.assert_array_equal(runs[0], runs[2])
        logits[type(backend)] = runs
    expected = logits[TorchBackend]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for found, wanted in zip(logits[OpenVinoBackend], expected, strict=True):
        assert found.shape == (1, 3, *tiled_bundle.manifest.patch)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@BOTH
def test_a_backend_runs_several_models_in_turn(tiled_bundle: Bundle, demo: Bundle, kind: type[Backend]) -> None:
    backend = kind()
    for bundle in (tiled_bundle, demo, tiled_bundle):
        patch = bundle.manifest.patch
        assert forward(backend, bundle, "1", np.zeros((1, 1, *patch), np.float32)).shape == (1, 3, *patch)


@BOTH
def test_a_networks_result_stays_when_it_runs_again(tiled_bundle: Bundle, kind: type[Backend]) -> None:
    backend = kind()
    zeros = np.zeros((1, 1, *tiled_bundle.manifest.patch), np.float32)
    tile = next(backend.placements(zeros, tiled_bundle)).data
    network = backend.network(tiled_bundle, "0")
    first = network(tile)
    before = to_host(first).copy()
    network(tile + 1)
    np.testing.assert_array_equal(to_host(first), before)
    first += 1


@BOTH
def test_a_fold_that_is_damaged_is_named_when_its_turn_comes(copied_bundle: CopiedBundle, kind: type[Backend]) -> None:
    path = copied_bundle.path / "fold_3.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    bundle, backend = open_bundle(copied_bundle.path), kind()
    backend.network(bundle, "0")
    with pytest.raises(ModelError, match=r"fold_3\.safetensors: expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; "):
        backend.network(bundle, "3")


@pytest.mark.parametrize("content", ["", "no graph", "<net></net>"])
def test_a_graph_that_cannot_be_run_is_named(copied_bundle: CopiedBundle, content: str) -> None:
    (copied_bundle.path / GRAPH).write_text(content)
    copied_bundle.seal()
    with pytest.raises(ModelError, match=r"graph\.xml: expected a graph that OpenVINO can run, found ") as caught:
        OpenVinoBackend().network(open_bundle(copied_bundle.path), "0")
    assert len(str(caught.value).splitlines()) == 1


def test_fast_says_where_the_cpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    backend = choose_backend("cpu", "fast")
    assert (backend.device, backend.precision) == ("cpu", "float32")
    assert [event.code for event in backend.events] == ["no_bfloat16"]
    assert choose_backend("cpu").events == ()


def test_fast_uses_bfloat16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "BF16"])
    fast, exact = choose_backend("cpu", "fast"), choose_backend("cpu")
    assert (fast.precision, fast.events) == ("bfloat16", ())
    assert (exact.precision, exact.events) == ("float32", ())


def test_fast_with_torch_is_exact_and_says_so() -> None:
    assert [event.code for event in TorchBackend("cpu", "fast").events] == ["fast_is_exact"]
    assert TorchBackend("cpu").events == ()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == package else find_spec(name))


def test_cuda_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_torch, "cuda_problem", lambda: "none that answers")
    with pytest.raises(DeviceError, match="expected a CUDA device, found none that answers; use --device cpu"):
        choose_backend("cuda")
    without(monkeypatch, "torch")
    with pytest.raises(DeviceError, match=r"expected a CUDA device, found no torch, .*; use --device cpu"):
        choose_backend("cuda")


def test_this_machine_has_no_cuda_device_or_uses_it() -> None:
    backend = choose_backend("auto")
    assert backend.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_cuda_device_that_answers_is_used_unless_the_cpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(on_torch, "cuda_problem", lambda: "")
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path),))
    for device in ("auto", "cuda"):
        backend = choose_backend(device)
        assert isinstance(backend, TorchBackend)
        assert (backend.device, backend.precision) == ("cuda", "float16 autocast")
    assert isinstance(choose_backend("cpu"), OpenVinoBackend)
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path / "none"),))
    assert isinstance(choose_backend("auto"), OpenVinoBackend), "without a driver torch is not even asked"


def test_a_driver_without_a_cuda_device_means_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(on_torch, "cuda_problem", lambda: "none that answers")
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path),))
    backend = choose_backend("auto")
    assert isinstance(backend, OpenVinoBackend)
    assert [event.code for event in backend.events] == ["no_cuda"]
    assert "none that answers" in backend.events[0].message
    without(monkeypatch, "dynamic_network_architectures")
    assert "no dynamic_network_architectures, which would use it" in choose_backend("auto").events[0].message


def test_without_openvino_torch_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino")
    backend = choose_backend("cpu")
    assert isinstance(backend, TorchBackend)
    assert (backend.device, backend.precision) == ("cpu", "float32")


def imported_by(script: str, *arguments: object) -> list[str]:
    """Run a script in a process of its own and return which of the unwanted packages it has imported."""
    ending = f"\nimport json, sys\nprint(json.dumps([name for name in {UNWANTED} if name in sys.modules]))"
    command = [sys.executable, "-c", script + ending, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    imported: list[str] = json.loads(done.stdout.splitlines()[-1])
    return imported


@pytest.fixture(scope="module")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.mha"
    noise = np.random.default_rng(0).normal(100, 20, (9, 40, 40)).astype(np.int16)
    write_volume(Volume(noise, Grid(noise.shape, (5.0, 5.0, 5.0))), path)
    return path


def test_choosing_the_cpu_imports_no_torch() -> None:
    assert imported_by("from pantherseg.inference.backends import choose_backend\nchoose_backend('cpu')") == []
    assert imported_by("import torch") == ["torch"], "the test would notice"


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_predicting_on_the_cpu_imports_no_torch(tmp_path: Path, small_scan: Path, task: int) -> None:
    script = "import sys\nfrom pantherseg.cli import main\nmain(sys.argv[1:], standalone_mode=False)"
    arguments = ["predict", small_scan, tmp_path, "--task", task, "--device", "cpu"]
    assert imported_by(script, *arguments) == []
    assert read_labels(tmp_path / "scan.mha").grid.shape == (9, 40, 40)


@pytest.mark.slow
def test_a_container_without_a_gpu_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pantherseg.grand_challenge import main\n"
        "from pantherseg.inference import backends\nbackends.GPU_FILES = ()\n"
        "assert main(Path(sys.argv[1]), sys.argv[2:]) == 0"
    )
    job = ROOT / "test" / "input" / "task2"
    assert imported_by(script, ROOT / "Task2" / "recipe.toml", "--input", job, "--output", tmp_path) == []
    assert (tmp_path / "results.json").is_file()


def test_nothing_is_reported_to_openvinos_makers(tmp_path: Path) -> None:
    script = """
from pantherseg.inference.backends import choose_backend
choose_backend("cpu")
import pantherseg.packing.graph
import openvino.tools.ovc
import sys
assert sys.modules["openvino_telemetry"] is None
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "telemetry" not in result.stderr
    assert list(tmp_path.glob("**/*openvino*")) == []
    assert list(tmp_path.glob("intel*")) == []
