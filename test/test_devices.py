"""Devices: equal results on the host and on a device, limited memory, and devices that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import one_line_about, pretend_to_have_a_gpu, run_python
from pantherseg.arrays import to_host
from pantherseg.cli import main
from pantherseg.errors import DeviceMemoryError, Float16Error, LostDeviceError
from pantherseg.fusion import FusedLogits
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.backends import torch_backend
from pantherseg.inference.backends.torch_backend import TorchBackend, as_network
from pantherseg.inference.placement import placements
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.networks import build_network
from pantherseg.packing.activations import peak_activations
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.pipeline import segment
from pantherseg.preprocessing.intensity import Unchanged
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume

RESAMPLINGS = [
    Resampling("resample_data_or_seg_to_shape", order=1, force_separate_z=False),
    Resampling("resample_data_or_seg_to_shape", order=1, order_z=0),
    Resampling("resample_data_or_seg_to_shape", order=0),
    Resampling("resample_data_or_seg_to_shape", order=3),
    Resampling("resample_torch_fornnunet"),
]


def logits_of(
    shape: tuple[int, ...], resampling: Resampling, transpose: tuple[int, ...], seed: int
) -> tuple[Logits, Logits]:
    """Return random logits of a volume, on the host and as a tensor."""
    rng = np.random.default_rng(seed)
    preprocessing = Preprocessing((1.3, 1.1, 1.0), transpose, Unchanged(), resampling, resampling)  # type: ignore[arg-type]
    volume = rng.random(shape).astype(np.float32) * (np.arange(shape[0]) > 0)[:, None, None]
    prepared = preprocessing.run(volume.astype(np.float32), (4.5, 1.0, 1.2))
    values = rng.normal(scale=5, size=(3, *prepared.data.shape[1:])).astype(np.float16)
    on_device = torch.from_numpy(values.copy())
    placed = on_device if prepared.back.resizer.local else to_host(on_device)
    host, device = (Logits(one, prepared.back, (), "float32", ("0",)) for one in (values, placed))
    return host, device


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 12), st.integers(2, 12)),
    resampling=st.sampled_from(RESAMPLINGS),
    transpose=st.permutations([0, 1, 2]).map(tuple),
    seed=st.integers(0, 99),
)
def test_labels_are_equal_on_host_and_device(
    shape: tuple[int, ...], resampling: Resampling, transpose: tuple[int, ...], seed: int
) -> None:
    host, device = logits_of(shape, resampling, transpose, seed)
    middle = shape[0] // 2
    np.testing.assert_array_equal(host.slab(middle, shape[0]), to_host(device.slab(middle, shape[0])))
    expected = FusedLogits((host, host))
    for members in ((device, device), (host, device), (device, host)):
        found = FusedLogits(members)
        np.testing.assert_array_equal(found.labels(), expected.labels())
        np.testing.assert_allclose(found.probability(1), expected.probability(1), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_nothing_leaves_the_device_between_volume_and_labels(tiled_bundle: Bundle) -> None:
    """Uses fake tensors, which have a CUDA device and a shape but no values, and which refuse mixed devices."""
    manifest = tiled_bundle.manifest
    volume = np.random.default_rng(0).normal(size=(20, 60, 60)).astype(np.float32)
    prepared = manifest.preprocessing.run(volume, (5.0, 2.0, 2.0))
    shape = prepared.data.shape
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", "(User provided device_type of 'cuda', but )?CUDA is not available")
        with torch.device("cuda"):
            network = build_network(tiled_bundle.path, manifest.architecture, classes=manifest.classes)
        run = as_network(network, "cuda")
        for device in ("cuda", "cpu"):
            sweep = Sweep(torch.empty(shape, device=device), manifest.patch, step=0.5, mirroring_axes=(0, 1))
            sums = sweep.start(run, manifest.classes)
            for _ in sums.passes():
                pass
            values = sums.logits()
            assert (values.device.type, values.dtype) == (device, torch.float16)
            logits = Logits(values, prepared.back, (), "float32", ("0",))
            assert logits.slab(3, 9).device.type == device
            for _, slab in FusedLogits((logits, logits)).slabs():
                assert (slab.device.type, slab.dtype) == (device, torch.float32)


def events_of_placements(bundle: Bundle, shape: tuple[int, ...], megabytes: int | None) -> list[tuple[str, ...]]:
    """Return the events of each placement of a prepared volume on a device with this much memory."""
    data = np.zeros((1, *shape), np.float32)
    found = placements(data, bundle, TorchBackend("cpu", device_memory_mb=megabytes))
    return [tuple(event.code for event in placement.events) for placement in found]


@pytest.mark.fault(
    "memory",
    "a device has too little memory: first for the logits of a large volume, then for the network",
    "the logits on the host, and an event; then an error, after which the CPU takes the case",
)
def test_predicts_what_fits_into_the_memory_of_a_device(tiled_bundle: Bundle) -> None:
    large, small = (200, 400, 400), (20, 40, 40)
    assert events_of_placements(tiled_bundle, large, None)[0] == ()
    assert events_of_placements(tiled_bundle, large, 4000)[0] == ()
    assert events_of_placements(tiled_bundle, small, 1500)[0] == ()
    found = events_of_placements(tiled_bundle, large, 1500)
    assert found == [("logits_on_host",)]
    with pytest.raises(
        DeviceMemoryError, match=r"cpu: expected \d+ MB for the network of .*, found 500 MB free"
    ) as caught:
        events_of_placements(tiled_bundle, small, 500)
    one_line_about("cpu", caught.value)


def test_counts_the_values_that_a_network_keeps_at_once() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.Conv3d(4, 2, 1)).eval()
    # The input and the outputs of both layers, with 2x3x4 voxels each.
    assert peak_activations(network, (1, 1, 2, 3, 4)) == (1 + 4 + 2) * 2 * 3 * 4
    assert next(network.parameters()).device.type == "cpu", "the network stays where it is"


@pytest.fixture
def full_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a device run out of memory in the first sweep; return the list of the folds that are loaded."""
    loaded: list[str] = []
    network = TorchBackend.network

    def fails_first(
        backend: TorchBackend, bundle: Bundle, fold: str, upcoming: str | None = None, **options: bool
    ) -> object:
        loaded.append(fold)
        if len(loaded) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return network(backend, bundle, fold, upcoming, **options)

    monkeypatch.setattr(TorchBackend, "network", fails_first)
    return loaded


@pytest.mark.fault(
    "memory", "the device's memory runs out during a sweep", "the same logits, summed on the host, and an event"
)
@pytest.mark.slow
def test_sums_logits_on_the_host_when_the_device_is_full(
    tiled_bundle: Bundle, pancreas: Volume, full_once: list[str]
) -> None:
    predictor = Predictor(tiled_bundle, TorchBackend("cpu"))
    logits = predictor.predict(pancreas)
    assert [event.code for event in logits.events] == ["logits_on_host"]
    assert full_once == [tiled_bundle.folds[0], *tiled_bundle.folds]
    again = predictor.predict(pancreas)
    assert again.events == ()
    np.testing.assert_array_equal(to_host(logits.values), to_host(again.values))


@pytest.mark.fault(
    "memory",
    "a GPU is lost before the case begins",
    "the CPU's mask and an event; later cases use the CPU at once, and report it too",
)
@pytest.mark.slow
def test_a_lost_device_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, pancreas: Volume) -> None:
    """Pretends that the GPU worked when it was chosen, on a machine that has none."""
    if torch.cuda.is_available():
        pytest.skip("the GPU of this machine would work")
    monkeypatch.setattr(torch_backend, "cuda_problem", lambda: "")
    recipe = load_recipe(task_recipe(1))
    session = Session(recipe, DEMO_WEIGHTS, device="cuda")
    first, second = segment(pancreas, session), segment(pancreas, session)
    assert [event.code for event in first.events] == ["device_failed"]
    assert "Found no NVIDIA driver on your system; the CPU was used" in first.events[0].message
    assert second.events == first.events
    assert first.device == second.device == session.load().backend.device == "cpu"
    expected = segment(pancreas, Session(recipe, DEMO_WEIGHTS, device="cpu"))
    for found in (first, second):
        np.testing.assert_array_equal(found.mask.array, expected.mask.array)


@pytest.mark.fault("memory", "{id} for each of two cases", "the CPU's mask and an event; the GPU is tried for both")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        pytest.param(
            DeviceMemoryError("cuda", expected="8000 MB", found="4000 MB free"),
            "device_full",
            id="a GPU has too little memory",
        ),
        pytest.param(
            Float16Error("cuda", "the network computed logits that are NaN"),
            "float16_too_small",
            id="a GPU's float16 is too small",
        ),
    ],
)
def test_a_device_that_does_not_suit_a_case_is_tried_again_for_the_next(
    monkeypatch: pytest.MonkeyPatch, pancreas: Volume, failure: LostDeviceError, code: str
) -> None:
    session = Session(load_recipe(task_recipe(1)), DEMO_WEIGHTS, device="cpu")
    expected = segment(pancreas, session)
    pretend_to_have_a_gpu(session, monkeypatch)
    logits = Predictor.logits

    def fails_on_the_gpu(predictor: Predictor, *arguments: object) -> object:
        if predictor.backend.device == "cuda":
            raise failure
        return logits(predictor, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "logits", fails_on_the_gpu)
    for _ in range(2):
        found = segment(pancreas, session)
        assert [event.code for event in found.events] == [code]
        assert found.device == "cpu"
        assert session.load().backend.device == "cuda"
        np.testing.assert_array_equal(found.mask.array, expected.mask.array)


@pytest.mark.fault(
    "memory",
    "the device is lost in the middle of a case",
    "a mask from the CPU, after the memory of the failed attempt was freed",
)
@pytest.mark.slow
def test_frees_the_memory_of_a_failed_attempt(monkeypatch: pytest.MonkeyPatch, pancreas: Volume) -> None:
    session = Session(load_recipe(task_recipe(1)), DEMO_WEIGHTS, device="cpu")
    pretend_to_have_a_gpu(session, monkeypatch)
    prepared_before: list[weakref.ref[object]] = []
    logits = Predictor.logits

    def fails_once(predictor: Predictor, prepared: object, *arguments: object) -> object:
        if prepared_before:
            assert prepared_before[0]() is None, "the volume that was prepared for the device is still in memory"
            return logits(predictor, prepared, *arguments)  # type: ignore[arg-type]
        prepared_before.append(weakref.ref(prepared))
        raise LostDeviceError("cuda", "the device failed")

    monkeypatch.setattr(Predictor, "logits", fails_once)
    result = segment(pancreas, session)
    assert [event.code for event in result.events] == ["device_failed"]


def test_tells_errors_of_the_device_from_errors_of_the_code(tiled_bundle: Bundle) -> None:
    backend = TorchBackend("cpu")
    assert backend.explain(RuntimeError("shape mismatch")) is None
    assert backend.explain(ValueError("CUDA")) is None
    lost = backend.explain(RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"))
    assert isinstance(lost, LostDeviceError)
    assert not isinstance(lost, DeviceMemoryError)
    assert str(lost) == "cpu: the device failed: CUDA error: unspecified launch failure"
    for text in (
        "CUDA out of memory. Tried to allocate 2 GiB.",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "FIND was unable to find an engine to execute this computation after trying 20 plans.",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ):
        assert isinstance(backend.explain(RuntimeError(text)), DeviceMemoryError)
    assert backend.explain(lost) is lost


@pytest.mark.parametrize(
    ("version", "devices", "reason"),
    [
        (11000, 1, "The NVIDIA driver on your system is too old (found version 11000)"),
        (13000, 0, "no device was found|No CUDA GPUs are available|CUDA-capable device"),
    ],
    ids=["a driver that is too old", "a driver but no GPU"],
)
@pytest.mark.fault("memory", "--device cuda with {id}", "an error that says so")
@pytest.mark.slow
def test_explains_a_driver_that_torch_cannot_use(tmp_path: Path, version: int, devices: int, reason: str) -> None:
    """Replaces the driver by a library that answers as such a driver does."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build a driver with")
    source = tmp_path / "driver.c"
    source.write_text(
        f"int cuInit(unsigned flags) {{ return {0 if devices else 100}; }}\n"
        f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}\n"
        f"int cuDeviceGetCount(int *count) {{ *count = {devices}; return 0; }}\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    scan = ROOT / "test" / "input" / "task1" / "images" / "abdominal-t1-mri"
    command = ["-m", "pantherseg", "predict", scan, tmp_path / "out", "--task", "1", "--device", "cuda"]
    done = run_python(*command, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: device: CUDA cannot be used: ")
    assert any(part in line for part in reason.split("|")), line
    assert line.endswith("; use --device cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_reads_the_next_fold_in_the_background() -> None:
    bundle = open_bundle(DEMO_WEIGHTS / "task1")
    backend = TorchBackend("cpu")
    tile = torch.zeros(1, 1, *bundle.manifest.patch)
    first = backend.network(bundle, "0", upcoming="1")(tile)
    ahead = backend.network(bundle, "1", upcoming="2")(tile)
    instead = backend.network(bundle, "3")(tile)
    fresh = TorchBackend("cpu")
    for fold, logits in (("0", first), ("1", ahead), ("3", instead)):
        np.testing.assert_array_equal(logits.numpy(), fresh.network(bundle, fold)(tile).numpy())


def test_refuses_a_device_memory_limit_for_the_cpu(tmp_path: Path) -> None:
    options = ["--task", "1", "--device", "cpu", "--device-memory", "100"]
    result = CliRunner().invoke(main, ["predict", str(tmp_path), str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == "Error: --device-memory applies to GPUs only"


@pytest.mark.full  # two minutes
def test_gpu_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    done = run_python("-m", "bench.gpu", "--device", "cpu", "--tiny", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    for run in ("exact", "fast", "nnUNetv2_predict --disable_tta", "nnUNetPredictor, mirroring"):
        assert f"| tiny | {run} | " in done.stdout
    assert "| Task 2 | `exact` | 1 | 1.7 M | 0 | 1.00000 |" in done.stdout
    assert "left out" not in done.stdout
    if not torch.cuda.is_available():
        refused = run_python("-m", "bench.gpu")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("error: device: expected a CUDA device, found none; ")
