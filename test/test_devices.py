"""Devices: the same numbers wherever arrays lie, what fits into a device's memory, and what happens when one fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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

from conftest import one_line_about
from matrix import ended, saw
from pantherseg.arrays import to_host
from pantherseg.cli import main
from pantherseg.errors import DeviceMemoryError, LostDeviceError
from pantherseg.fusion import mean_logits
from pantherseg.inference.accumulate import Sweep
from pantherseg.inference.backends import on_torch
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.networks import build_network
from pantherseg.packing.activations import peak_activations
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.pipeline import load_system, segment
from pantherseg.preprocessing.intensity import Unchanged
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.recipe import load_recipe
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
    """Return random logits of a volume, on the host and as torch's."""
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
def test_logits_become_the_same_labels_on_every_device(
    shape: tuple[int, ...], resampling: Resampling, transpose: tuple[int, ...], seed: int
) -> None:
    host, device = logits_of(shape, resampling, transpose, seed)
    middle = shape[0] // 2
    np.testing.assert_array_equal(host.slab(middle, shape[0]), to_host(device.slab(middle, shape[0])))
    one, other = mean_logits([host, host]), mean_logits([device, device])
    np.testing.assert_array_equal(one.labels(), other.labels())
    np.testing.assert_allclose(one.probability(1), other.probability(1), rtol=0, atol=1e-6)


def test_everything_between_a_volume_and_its_labels_stays_on_the_device(tiled_bundle: Bundle) -> None:
    """With tensors that have a CUDA device and a shape but no numbers, and fail where two devices meet."""
    manifest = tiled_bundle.manifest
    volume = np.random.default_rng(0).normal(size=(20, 60, 60)).astype(np.float32)
    prepared = manifest.preprocessing.run(volume, (5.0, 2.0, 2.0))
    shape = prepared.data.shape
    backend = TorchBackend("cpu")
    backend.device = "cuda"
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", "(User provided device_type of 'cuda', but )?CUDA is not available")
        with torch.device("cuda"):
            network = build_network(tiled_bundle.path, manifest.architecture, classes=manifest.classes)
        run = backend._runner(network)
        for device in ("cuda", "cpu"):
            sweep = Sweep(torch.empty(shape, device=device), manifest.patch, step=0.5, mirroring_axes=(0, 1))
            values, _ = sweep.run(run, manifest.classes, on_tile=lambda: None)
            assert (values.device.type, values.dtype) == (device, torch.float16)
            logits = Logits(values, prepared.back, (), "float32", ("0",))
            assert logits.slab(3, 9).device.type == device
            for _, slab in mean_logits([logits, logits])._slabs():
                assert (slab.device.type, slab.dtype) == (device, torch.float32)


@pytest.mark.parametrize("first_on_host", [True, False])
def test_members_may_lie_in_different_places(first_on_host: bool) -> None:
    """Splines' logits are resampled on the host, others where they were computed."""
    host, device = logits_of((5, 8, 8), RESAMPLINGS[0], (0, 1, 2), seed=3)
    expected = mean_logits([host, host]).labels()
    mixed = [host, device] if first_on_host else [device, host]
    np.testing.assert_array_equal(mean_logits(mixed).labels(), expected)


def places(bundle: Bundle, shape: tuple[int, ...], megabytes: int | None) -> list[tuple[str, ...]]:
    """Return the events of each place that a device with so much memory offers for a prepared volume."""
    backend = TorchBackend("cpu", device_memory_mb=megabytes)
    return [
        tuple(event.code for event in place.events)
        for place in backend.placements(np.zeros((1, *shape), np.float32), bundle)
    ]


@pytest.mark.fault(
    "memory",
    "a device with too little memory: for the sums of a large volume, then for the network",
    "the sums on the host, and an event; then an error, with which the case goes to the CPU",
)
def test_what_fits_into_a_devices_memory_is_known_beforehand(tiled_bundle: Bundle) -> None:
    large = (200, 400, 400)
    assert places(tiled_bundle, large, None)[0] == ()
    assert places(tiled_bundle, large, 4000)[0] == ()
    saw(places(tiled_bundle, large, 1500)[0])
    assert places(tiled_bundle, large, 1500) == [("sums_on_host",)]
    assert places(tiled_bundle, (20, 40, 40), 1500)[0] == ()
    with pytest.raises(DeviceMemoryError, match=r"cpu: expected \d+ MB for a patch of .*, found 500 MB free") as caught:
        places(tiled_bundle, (20, 40, 40), 500)
    one_line_about("cpu", caught.value)


def test_a_bundle_says_how_many_numbers_its_network_keeps_at_once() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.Conv3d(4, 2, 1)).eval()
    # The first layer's result and the second's, of 2x3x4 voxels each, and the input.
    assert peak_activations(network, (1, 1, 2, 3, 4)) == (1 + 4 + 2) * 2 * 3 * 4
    assert next(network.parameters()).device.type == "cpu", "the network is left as it is"


@pytest.fixture
def full_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device without memory for the first sweep; the list names the folds that were asked for."""
    asked: list[str] = []
    network = TorchBackend.network

    def fails_first(backend: TorchBackend, bundle: Bundle, fold: str, upcoming: str | None = None) -> object:
        asked.append(fold)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return network(backend, bundle, fold, upcoming)

    monkeypatch.setattr(TorchBackend, "network", fails_first)
    return asked


@pytest.mark.fault(
    "memory", "the device's memory runs out on the way", "the same numbers with the sums on the host, and an event"
)
@pytest.mark.slow
def test_a_device_that_is_full_leaves_the_sums_to_the_host(
    tiled_bundle: Bundle, pancreas: Volume, full_once: list[str]
) -> None:
    predictor = Predictor(tiled_bundle, TorchBackend("cpu"))
    logits = predictor.logits(predictor.prepare(pancreas))
    saw(logits.events)
    assert [event.code for event in logits.events] == ["sums_on_host"]
    assert full_once == [tiled_bundle.folds[0], *tiled_bundle.folds]
    again = predictor.logits(predictor.prepare(pancreas))
    assert again.events == ()
    np.testing.assert_array_equal(to_host(logits.values), to_host(again.values))
    saw(f"{np.count_nonzero(to_host(logits.values) != to_host(again.values))} numbers differ")


@pytest.mark.fault("memory", "a GPU that answered is gone when the case begins", "the CPU's mask, and an event")
@pytest.mark.slow
def test_a_device_that_is_lost_leaves_the_case_to_the_cpu(monkeypatch: pytest.MonkeyPatch, pancreas: Volume) -> None:
    """A GPU that answered when it was chosen and is gone now, which is what this machine without one looks like."""
    if torch.cuda.is_available():
        pytest.skip("this machine's GPU would answer")
    monkeypatch.setattr(on_torch, "cuda_problem", lambda: "")
    recipe = load_recipe(task_recipe(1))
    lost = segment(pancreas, load_system(recipe, DEMO_WEIGHTS, device="cuda"))
    saw(lost)
    assert [event.code for event in lost.events] == ["device_failed"]
    assert "Found no NVIDIA driver on your system; the CPU was used" in lost.events[0].message
    assert lost.as_dict()["device"] == "cpu"
    expected = segment(pancreas, load_system(recipe, DEMO_WEIGHTS, device="cpu"))
    np.testing.assert_array_equal(lost.mask.array, expected.mask.array)


@pytest.mark.fault(
    "memory",
    "the device is lost in the middle of a case",
    "a mask from the CPU, without the memory of the failed attempt",
)
@pytest.mark.slow
def test_what_a_failed_attempt_held_is_free_for_the_cpu(monkeypatch: pytest.MonkeyPatch, pancreas: Volume) -> None:
    system = load_system(load_recipe(task_recipe(1)), DEMO_WEIGHTS, device="cpu")
    system.backend.device = "cuda"
    held: list[weakref.ref[object]] = []
    logits = Predictor.logits

    def fails_once(predictor: Predictor, prepared: object, *arguments: object) -> object:
        if held:
            assert held[0]() is None, "the volume that was prepared for the device"
            return logits(predictor, prepared, *arguments)  # type: ignore[arg-type]
        held.append(weakref.ref(prepared))
        raise LostDeviceError("cuda", expected="a device", found="none")

    monkeypatch.setattr(Predictor, "logits", fails_once)
    monkeypatch.setattr(OpenVinoBackend, "explained", lambda _, error: error)
    result = segment(pancreas, system)
    saw(result)
    assert [event.code for event in result.events] == ["device_failed"]


def test_errors_of_the_code_are_not_taken_for_the_devices(tiled_bundle: Bundle) -> None:
    backend = TorchBackend("cpu")
    assert backend.explained(RuntimeError("shape mismatch")) is None
    assert backend.explained(ValueError("CUDA")) is None
    lost = backend.explained(RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"))
    assert isinstance(lost, LostDeviceError)
    assert not isinstance(lost, DeviceMemoryError)
    assert str(lost).endswith("found CUDA error: unspecified launch failure")
    for text in (
        "CUDA out of memory. Tried to allocate 2 GiB.",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "FIND was unable to find an engine to execute this computation after trying 20 plans.",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ):
        assert isinstance(backend.explained(RuntimeError(text)), DeviceMemoryError)
    assert backend.explained(lost) is lost


@pytest.mark.parametrize(
    ("version", "devices", "reason"),
    [
        pytest.param(
            *(11000, 1, "The NVIDIA driver on your system is too old (found version 11000)"),
            marks=pytest.mark.fault("memory", "--device cuda with a driver that is too old", "an error that says so"),
        ),
        pytest.param(
            *(13000, 0, "none that answers|No CUDA GPUs are available|CUDA-capable device"),
            marks=pytest.mark.fault("memory", "--device cuda with a driver and no GPU", "an error that says so"),
        ),
    ],
    ids=["old", "none"],
)
def test_a_driver_that_torch_cannot_use_is_named(tmp_path: Path, version: int, devices: int, reason: str) -> None:
    """With a library in the driver's place that says what such a driver says."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver with")
    source = tmp_path / "driver.c"
    source.write_text(
        f"int cuInit(unsigned flags) {{ return {0 if devices else 100}; }}\n"
        f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}\n"
        f"int cuDeviceGetCount(int *count) {{ *count = {devices}; return 0; }}\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    scan = ROOT / "test" / "input" / "task1" / "images" / "abdominal-t1-mri"
    done = subprocess.run(
        [sys.executable, "-m", "pantherseg", "predict", scan, tmp_path / "out", "--task", "1", "--device", "cuda"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    saw(ended(done.returncode, done.stderr))
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: device: expected a CUDA device, found ")
    assert any(part in line for part in reason.split("|")), line
    assert line.endswith("; use --device cpu")
    assert not (tmp_path / "out").exists()


def test_the_next_fold_is_read_meanwhile() -> None:
    bundle = open_bundle(DEMO_WEIGHTS / "task1")
    backend = TorchBackend("cpu")
    tile = torch.zeros(1, 1, *bundle.manifest.patch)
    first = backend.network(bundle, "0", upcoming="1")(tile)
    ahead = backend.network(bundle, "1", upcoming="2")(tile)
    instead = backend.network(bundle, "3")(tile)
    fresh = TorchBackend("cpu")
    for fold, logits in (("0", first), ("1", ahead), ("3", instead)):
        np.testing.assert_array_equal(logits.numpy(), fresh.network(bundle, fold)(tile).numpy())


def test_a_memory_limit_is_for_gpus(tmp_path: Path) -> None:
    options = ["--task", "1", "--device", "cpu", "--device-memory", "100"]
    result = CliRunner().invoke(main, ["predict", str(tmp_path), str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == "Error: --device-memory applies to GPUs only"


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs_where_there_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for run in ("exact", "fast", "nnUNetv2_predict --disable_tta", "nnUNetPredictor, mirroring"):
        assert f"| tiny | {run} | " in done.stdout
    assert "| Task 2 | `exact` | 1 | 1.7 M | 0 | 1.00000 |" in done.stdout
    assert "left out" not in done.stdout
    if not torch.cuda.is_available():
        refused = subprocess.run(
            [sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("error: device: expected a CUDA device, found none; ")
