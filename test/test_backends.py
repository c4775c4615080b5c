"""Backends: equal masks, the choice of a backend, kept networks, and what they must not import."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from conftest import CopiedBundle, NnunetMask, SetFree, flip_a_bit, run_python, valid_report
from pantherseg.arrays import to_host
from pantherseg.errors import DeviceError, ModelError
from pantherseg.inference import backends
from pantherseg.inference.backends import Backend, choose_backend, openvino_backend, torch_backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.placement import placements
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_labels, write_volume
from pantherseg.machine.memory import NO_LIMIT
from pantherseg.models.bundle import GRAPH, Bundle, open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.paths import ROOT, task_recipe
from pantherseg.pipeline import segment
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

BOTH_BACKENDS = pytest.mark.parametrize(
    "kind", [OpenVinoBackend, lambda: TorchBackend("cpu")], ids=["openvino", "torch"]
)
# Packages that are slow to import and that the CPU images do not hold.
UNWANTED = ("torch", "nnunetv2", "dynamic_network_architectures", "batchgenerators", "matplotlib", "skimage", "pandas")


def mask(bundle: Bundle, backend: Backend, volume: Volume, *, mirroring: bool = False) -> NDArray[np.uint8]:
    predictor = Predictor(bundle, backend, mirroring=mirroring)
    return predictor.predict(volume).labels()


def forward(backend: Backend, bundle: Bundle, fold: str, tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a network's logits for a tile (1, 1, *patch)."""
    return to_host(backend.network(bundle, fold)(backend.place(tile)))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("axes", [(), (2,)], ids=["plain", "mirrored"])
def test_mask_of_every_backend_equals_nnunets(
    tiled_folder: ModelFolder, tiled_bundle: Bundle, nnunet_mask: NnunetMask, pancreas: Volume, axes: tuple[int, ...]
) -> None:
    expected = nnunet_mask(tiled_folder, pancreas, axes)
    assert (expected == (2 if axes else 1)).any()
    bundle = replace(tiled_bundle, manifest=msgspec.structs.replace(tiled_bundle.manifest, mirroring_axes=axes))
    for backend in (OpenVinoBackend(), TorchBackend("cpu")):
        found = mask(bundle, backend, pancreas, mirroring=bool(axes))
        assert (found != expected).sum() == 0, type(backend).__name__


@pytest.mark.slow
def test_fast_nearly_equals_exact(demo: Bundle, pancreas: Volume) -> None:
    exact, fast = (mask(demo, choose_backend("cpu", mode), pancreas) for mode in ("exact", "fast"))
    assert (exact == 1).any()
    dice = 2 * ((exact == 1) & (fast == 1)).sum() / ((exact == 1).sum() + (fast == 1).sum())
    assert dice >= 0.97
    assert (exact != fast).mean() <= 1e-3


@pytest.mark.slow
def test_backends_give_nearly_equal_logits(tiled_bundle: Bundle) -> None:
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
        # float32 has seven digits, and sums of many products keep five of them: logits are up to about 20, where rtol
        # adds twice atol. Near zero they are differences of larger numbers, for which atol stands alone.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@BOTH_BACKENDS
def test_logits_of_a_tile_stay_when_the_network_runs_again(tiled_bundle: Bundle, kind: type[Backend]) -> None:
    backend = kind()
    zeros = np.zeros((1, 1, *tiled_bundle.manifest.patch), np.float32)
    tile = backend.place(zeros)
    network = backend.network(tiled_bundle, "0")
    first = network(tile)
    before = to_host(first).copy()
    network(tile + 1)
    np.testing.assert_array_equal(to_host(first), before)
    first += 1  # callers add mirrored logits in place


@BOTH_BACKENDS
def test_names_a_damaged_fold_when_it_is_loaded(copied_bundle: CopiedBundle, kind: type[Backend]) -> None:
    flip_a_bit(copied_bundle.path / "fold_3.safetensors")
    bundle, backend = open_bundle(copied_bundle.path), kind()
    backend.network(bundle, "0")
    with pytest.raises(ModelError, match=r"fold_3\.safetensors: expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; "):
        backend.network(bundle, "3")


@pytest.mark.parametrize("content", ["", "no graph", "<net></net>"])
def test_names_a_graph_that_cannot_be_run(copied_bundle: CopiedBundle, content: str) -> None:
    (copied_bundle.path / GRAPH).write_text(content)
    copied_bundle.seal()
    with pytest.raises(ModelError, match=r"graph\.xml: expected a graph that OpenVINO can run, found ") as caught:
        OpenVinoBackend().network(open_bundle(copied_bundle.path), "0")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("supported", "precision", "events"),
    [(["FP32", "INT8"], "float32", ["no_bfloat16"]), (["FP32", "BF16"], "bfloat16", [])],
)
def test_fast_computes_in_bfloat16_if_the_cpu_supports_it(
    monkeypatch: pytest.MonkeyPatch, supported: list[str], precision: str, events: list[str]
) -> None:
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: supported)
    fast, exact = choose_backend("cpu", "fast"), choose_backend("cpu")
    assert (fast.device, fast.precision, [event.code for event in fast.events]) == ("cpu", precision, events)
    for other in exact, choose_backend("cpu", "fast", bfloat16=False):
        assert (other.precision, other.events) == ("float32", ())


def test_fast_with_torch_computes_as_exact() -> None:
    fast = TorchBackend("cpu", "fast")
    assert (fast.precision, fast.events) == ("float32", ())


@dataclass
class Calls:
    """What backends have compiled and verified."""

    compiled: int = 0
    verified: list[str] = field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count the networks that OpenVINO compiles, and name the folds whose files are verified."""
    calls = Calls()
    compile_model, check_content = ov.Core.compile_model, Bundle.check_content

    def counted_compile_model(*arguments: object) -> object:
        calls.compiled += 1
        return compile_model(*arguments)

    def counted_check_content(bundle: Bundle, fold: str) -> None:
        calls.verified.append(fold)
        check_content(bundle, fold)

    monkeypatch.setattr(ov.Core, "compile_model", counted_compile_model)
    monkeypatch.setattr(Bundle, "check_content", counted_check_content)
    return calls


def session_of(bundle: CopiedBundle, *, many_cases: bool) -> Session:
    """Return a session for two folds of a copied bundle, of which one must be usable."""
    recipe = load_recipe(task_recipe(1))
    member = msgspec.structs.replace(recipe.members[0], folds=[0, 1], min_folds=1)
    recipe = msgspec.structs.replace(recipe, members=[member])
    return Session(recipe, bundle.path.parent, device="cpu", many_cases=many_cases)


@pytest.mark.slow
def test_session_for_many_cases_compiles_and_verifies_again_only_what_changed(
    copied_bundle: CopiedBundle, pancreas: Volume, calls: Calls, set_free: SetFree
) -> None:
    set_free(NO_LIMIT)
    session = session_of(copied_bundle, many_cases=True)
    first = segment(pancreas, session)
    segment(pancreas, session)
    assert (calls.compiled, calls.verified) == (2, ["0", "1"])
    fold, copy = copied_bundle.path / "fold_1.safetensors", copied_bundle.path / "copy"
    shutil.copy(fold, copy)
    copy.replace(fold)
    second = segment(pancreas, session)
    assert (calls.compiled, calls.verified) == (3, ["0", "1", "1"])
    assert second.events == ()
    np.testing.assert_array_equal(second.mask.array, first.mask.array)

    shutil.copy(fold, copy)
    flip_a_bit(copy)
    copy.replace(fold)
    third = segment(pancreas, session)
    assert [event.code for event in third.events] == ["fold_left_out"]
    assert third.models[0].folds == ("0",)


@pytest.mark.slow
def test_session_for_many_cases_releases_networks_if_memory_is_short(
    copied_bundle: CopiedBundle, pancreas: Volume, calls: Calls, set_free: SetFree, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(NO_LIMIT)
    session = session_of(copied_bundle, many_cases=True)
    first = segment(pancreas, session)
    backend, bundle = session.load().backend, session.load().members[0].bundle
    assert backend.keeps(bundle)
    # Kept networks now fill the memory, which otherwise has room for one network and the logits.
    network = backend.network_bytes(bundle)
    monkeypatch.setattr(openvino_backend, "room_bytes", lambda: 0 if backend.keeps(bundle) else 2 * network)
    second = segment(pancreas, session)
    assert not backend.keeps(bundle)
    assert second.events == ()
    assert (calls.compiled, len(calls.verified)) == (4, 2)
    np.testing.assert_array_equal(second.mask.array, first.mask.array)


@pytest.mark.slow
def test_session_for_one_case_keeps_no_networks(copied_bundle: CopiedBundle, pancreas: Volume) -> None:
    session = session_of(copied_bundle, many_cases=False)
    segment(pancreas, session)
    bundle = session.load().members[0].bundle
    assert not any(session.load().backend.keeps(replace(bundle, folds=(fold,))) for fold in bundle.folds)


def test_releases_networks_of_other_bundles_if_memory_is_short(
    tiled_bundle: Bundle, demo: Bundle, set_free: SetFree
) -> None:
    backend, data, kept = OpenVinoBackend(), np.zeros((1, 24, 32, 48), np.float32), replace(demo, folds=("0",))
    backend.network(kept, "0", keep=True)
    set_free(NO_LIMIT)
    assert next(placements(data, tiled_bundle, backend)).events == ()
    assert backend.keeps(kept)
    set_free(backend.network_bytes(tiled_bundle))
    assert [event.code for event in next(placements(data, tiled_bundle, backend)).events] == ["logits_on_disk"]
    assert not backend.keeps(kept)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == package else find_spec(name))


def test_refuses_cuda_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "cuda_problem", lambda: "no device was found")
    with pytest.raises(DeviceError, match="device: CUDA cannot be used: no device was found; use --device cpu"):
        choose_backend("cuda")
    without(monkeypatch, "torch")
    with pytest.raises(DeviceError, match="these packages are not installed: torch; use --device cpu"):
        choose_backend("cuda")


def test_prefers_cuda_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_backend, "cuda_problem", lambda: "")
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path),))
    for device in ("auto", "cuda"):
        backend = choose_backend(device)
        assert isinstance(backend, TorchBackend)
        assert (backend.device, backend.precision) == ("cuda", "float16 autocast")
    assert isinstance(choose_backend("cpu"), OpenVinoBackend)
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path / "none"),))
    assert isinstance(choose_backend("auto"), OpenVinoBackend), "torch is used without a driver"


def test_uses_the_cpu_if_there_is_a_driver_but_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_backend, "cuda_problem", lambda: "no device was found")
    monkeypatch.setattr(backends, "GPU_FILES", (str(tmp_path),))
    backend = choose_backend("auto")
    assert isinstance(backend, OpenVinoBackend)
    assert [event.code for event in backend.events] == ["no_cuda"]
    assert "no device was found" in backend.events[0].message
    without(monkeypatch, "dynamic_network_architectures")
    assert "not installed: dynamic_network_architectures; the CPU was used" in choose_backend("auto").events[0].message


def test_uses_torch_on_the_cpu_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino")
    backend = choose_backend("cpu")
    assert isinstance(backend, TorchBackend)
    assert (backend.device, backend.precision) == ("cpu", "float32")


def imported_by(script: str, *arguments: object) -> list[str]:
    """Run a script in another process and return which of the unwanted packages it imports."""
    ending = f"\nimport json, sys\nprint(json.dumps([name for name in {UNWANTED} if name in sys.modules]))"
    done = run_python("-c", script + ending, *arguments)
    assert done.returncode == 0, done.stderr
    imported: list[str] = json.loads(done.stdout.splitlines()[-1])
    return imported


@pytest.fixture(scope="module")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.mha"
    noise = np.random.default_rng(0).normal(100, 20, (9, 40, 40)).astype(np.int16)
    write_volume(Volume(noise, Grid(noise.shape, (5.0, 5.0, 5.0))), path)
    return path


@pytest.mark.slow
def test_choosing_the_cpu_does_not_import_torch() -> None:
    assert imported_by("from pantherseg.inference.backends import choose_backend\nchoose_backend('cpu')") == []
    assert imported_by("import torch") == ["torch"], "the test notices imports"


@pytest.mark.slow
@pytest.mark.parametrize("task", [1, 2])
def test_predicting_on_the_cpu_does_not_import_torch(tmp_path: Path, small_scan: Path, task: int) -> None:
    script = "import sys\nfrom pantherseg.cli import main\nmain(sys.argv[1:], standalone_mode=False)"
    arguments = ["predict", small_scan, tmp_path, "--task", task, "--device", "cpu"]
    assert imported_by(script, *arguments) == []
    assert read_labels(tmp_path / "scan.mha").grid.shape == (9, 40, 40)


@pytest.mark.slow
def test_container_without_a_gpu_does_not_import_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pantherseg.grand_challenge import main\n"
        "from pantherseg.inference import backends\nbackends.GPU_FILES = ()\n"
        "assert main(Path(sys.argv[1]), sys.argv[2:]) == 0"
    )
    job = ROOT / "test" / "input" / "task2"
    assert imported_by(script, ROOT / "Task2" / "recipe.toml", "--input", job, "--output", tmp_path) == []
    assert valid_report(tmp_path / "results.json")["device"] == "cpu"


@pytest.mark.slow
def test_openvino_sends_no_usage_data(tmp_path: Path) -> None:
    script = """
from pantherseg.inference.backends import choose_backend
choose_backend("cpu")
import pantherseg.packing.graph
import openvino.tools.ovc
import sys
assert sys.modules["openvino_telemetry"] is None
"""
    result = run_python("-c", script, env={**os.environ, "HOME": str(tmp_path)})
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "telemetry" not in result.stderr
    assert list(tmp_path.glob("**/*openvino*")) == []
    assert list(tmp_path.glob("intel*")) == []
