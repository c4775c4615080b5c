"""nnU-Net's checkpoints are read without running code that they contain."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest

from conftest import one_line_about
from pantherseg.errors import ModelError
from pantherseg.model_sources.checkpoint import read_checkpoint, read_origin, read_seconds

torch = pytest.importorskip("torch")

WEIGHTS = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.ones(2)}


def content(**changes: Any) -> dict[str, Any]:
    """Return a checkpoint as nnU-Net's trainer saves it; its log contains numpy numbers."""
    return {
        "network_weights": dict(WEIGHTS),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.25), np.float32(0.5), np.float16(0.5)],
            "epoch_end_timestamps": [1700000000.5],
            "counts": [np.int64(3), np.int32(4), np.bool_(True)],
        },
        "_best_ema": np.float64(0.125),
        "current_epoch": 1000,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer1e3",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    return one_line_about(path, caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_a_checkpoint_of_nnunet(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "c.pth", content(), _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.configuration, checkpoint.trainer) == ("3d_fullres", "nnUNetTrainer1e3")
    assert checkpoint.mirroring_axes == (0, 1, 2)
    assert list(checkpoint.weights) == list(WEIGHTS)
    assert all(torch.equal(checkpoint.weights[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_removes_prefixes_of_compiled_and_distributed_networks(tmp_path: Path, prefix: str) -> None:
    prefixed = {prefix + key: value for key, value in WEIGHTS.items()}
    checkpoint = read_checkpoint(saved(tmp_path / "c.pth", content(network_weights=prefixed)))
    assert list(checkpoint.weights) == list(WEIGHTS)


def test_reads_older_checkpoints_without_newer_entries(tmp_path: Path) -> None:
    older = content(inference_allowed_mirroring_axes=None)
    del older["trainer_name"]
    checkpoint = read_checkpoint(saved(tmp_path / "c.pth", older))
    assert checkpoint.mirroring_axes == ()
    assert checkpoint.trainer == "unknown"


def records() -> Any:
    """Return a defaultdict of records by epoch, each of which is a defaultdict of lists."""
    made: Any = defaultdict(list, {"dice": [0.5]})
    return defaultdict(dict, {"epochs": {1: made}, "times": defaultdict(float, {"first": 1.5})})


LOGGED = {
    "an array": np.arange(3.0),
    "an array of small whole numbers": np.array([[1, 2], [3, 4]], np.uint16),
    "an array of texts": np.array(["a", "bc"]),
    "an array of objects": np.array([1, "x", None, {"a": np.ones(2)}], object),
    "an array of records": np.array([(1, 2.0)], [("epoch", "i4"), ("dice", "f8")]),
    "an array of dates": np.array(["2024-01-02"], "datetime64[D]"),
    "numbers of every kind": [np.uint8(3), np.int8(-3), np.uint64(2**63), np.complex64(1j), np.longdouble(0.5)],
    "a text of numpy": np.str_("text"),
    "a path": PurePosixPath("/results/fold_0"),
    "a path on this machine": Path("/results/fold_0"),
    "a path of Windows": PureWindowsPath("C:/results/fold_0"),
    "a defaultdict": records(),
    "a defaultdict without a factory": defaultdict(None, {"a": 1}),
    "a defaultdict of numbers": defaultdict(int, {"a": 1}),
}


@pytest.mark.fault(
    "models", "the log of an nnU-Net checkpoint contains {name}", "the model is packed; nothing of the log is needed"
)
@pytest.mark.parametrize("name", LOGGED)
def test_plain_values_of_other_libraries_in_the_log_do_not_stop_reading(tmp_path: Path, name: str) -> None:
    logged = content(logging={"value": LOGGED[name]}, init_args={"configuration": "2d", "where": LOGGED[name]})
    checkpoint = read_checkpoint(saved(tmp_path / "c.pth", logged))
    assert checkpoint.configuration == "2d"
    assert torch.equal(checkpoint.weights["encoder.weight"], WEIGHTS["encoder.weight"])


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_reads_a_path_that_windows_or_a_newer_python_wrote(tmp_path: Path, module: str) -> None:
    class WindowsPath:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return PureWindowsPath, ("C:\\", "results")

    path = saved(tmp_path / "c.pth", content(logging=WindowsPath()))
    written = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"cpathlib\nPureWindowsPath\n", f"c{module}\nWindowsPath\n".encode()))
    assert path.read_bytes() != written
    assert read_checkpoint(path).configuration == "3d_fullres"


def test_numpy_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    axes = (np.int64(0), np.uint8(1), np.dtype(">i4").type(2))
    plans, dataset = {"mean": np.float64(0.25), "clip": np.float16(-0.5), "use": np.bool_(True)}, {"n": np.int16(-7)}
    arguments = {"configuration": "3d_fullres", "plans": plans, "dataset_json": dataset}
    path = saved(tmp_path / "c.pth", content(inference_allowed_mirroring_axes=axes, init_args=arguments))
    assert read_checkpoint(path).mirroring_axes == (0, 1, 2)
    found = read_origin(path)
    assert json.dumps(found) == '[{"mean": 0.25, "clip": -0.5, "use": true}, {"n": -7}]'


def test_the_time_of_a_training_is_that_of_its_epochs(tmp_path: Path) -> None:
    times = {"epoch_start_timestamps": [100.0, 500.0], "epoch_end_timestamps": [np.float64(103.0), 504.5]}
    assert read_seconds(saved(tmp_path / "interrupted.pth", content(logging=times))) == 7.5
    assert read_seconds(saved(tmp_path / "silent.pth", content(logging=None))) == 0


def test_the_time_and_the_origin_of_a_training_are_read_without_its_weights(tmp_path: Path) -> None:
    weights = torch.randn(64, 64)
    times = {"epoch_start_timestamps": [1.0], "epoch_end_timestamps": [3.0]}
    arguments = {"configuration": "3d_fullres", "plans": {}, "dataset_json": {}}
    whole = content(network_weights={"a.weight": weights}, logging=times, init_args=arguments)
    path = saved(tmp_path / "c.pth", whole)
    flip(path, weights.numpy().tobytes()[:16])
    assert (read_seconds(path), read_origin(path)) == (2, ({}, {}))
    assert "found a damaged part" in error_of(path)
    flip(path, b"epoch_end_timestamps")
    with pytest.raises(ModelError, match="found a damaged part"):
        read_seconds(path)
    older = saved(tmp_path / "older.pth", whole, _use_new_zipfile_serialization=False)
    assert (read_seconds(older), read_origin(older)) == (2, ({}, {}))


def flip(path: Path, start: bytes) -> None:
    """Change the byte of a file with which these begin."""
    good = path.read_bytes()
    offset = good.index(start)
    path.write_bytes(good[:offset] + bytes([good[offset] ^ 0x40]) + good[offset + 1 :])


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


CODE = pytest.mark.fault("models", "an nnU-Net checkpoint contains code", "an error; the code is not run")


@pytest.mark.parametrize("zipped", [pytest.param(True, marks=CODE), False])
def test_refuses_code_in_a_checkpoint_without_running_it(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "was_run"
    malicious = content(trainer_name=Malicious(target))
    path = saved(tmp_path / "c.pth", malicious, _use_new_zipfile_serialization=zipped)
    assert "only tensors and plain values are read, so that no code runs" in error_of(path)
    assert not target.exists()
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Malicious(target)))
    error_of(plain)
    assert not target.exists()
    # Plain unpickling does run the code, so this test would notice it.
    pickle.loads(plain.read_bytes())
    assert target.exists()


@pytest.mark.fault(
    "models", "a defaultdict in an nnU-Net checkpoint would fill itself by a command", "an error; the code is not run"
)
def test_refuses_a_defaultdict_that_calls_other_code(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pth", content(logging=defaultdict(os.system, {"a": 1})))
    assert re.search(
        r"found GLOBAL \w+\.system; only tensors and plain values are read, so that no code runs", error_of(path)
    )


@pytest.mark.fault("models", "an array in an nnU-Net checkpoint contains code", "an error; the code is not run")
def test_refuses_code_in_an_array_without_running_it(tmp_path: Path) -> None:
    target = tmp_path / "was_run"
    path = saved(tmp_path / "c.pth", content(logging=np.array([Malicious(target), 1], object)))
    assert "only tensors and plain values are read, so that no code runs" in error_of(path)
    assert not target.exists()


@pytest.mark.fault(
    "models", "an nnU-Net checkpoint is empty, cut off, another file, or missing", "an error that names the file"
)
def test_refuses_damaged_files(tmp_path: Path) -> None:
    whole = saved(tmp_path / "c.pth", content()).read_bytes()
    path = tmp_path / "damaged.pth"
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1, len(whole) - 100):
        path.write_bytes(whole[:length])
        assert "an nnU-Net checkpoint" in error_of(path)
    path.write_text("not a checkpoint\nbut a text\n")
    assert "an nnU-Net checkpoint" in error_of(path)
    assert error_of(tmp_path / "missing.pth").endswith("found no such file")
    error_of(tmp_path)


NO_WEIGHTS = [{}, None, {"a": 1.0}, [torch.ones(1)]]


@pytest.mark.parametrize(
    "wrong",
    [
        [1, 2],
        3,
        {},
        {"state_dict": WEIGHTS},
        *(content(network_weights=weights) for weights in NO_WEIGHTS),
        content(init_args=None),
        content(init_args={}),
    ],
    ids=range(10),
)
def test_refuses_other_content(tmp_path: Path, wrong: object) -> None:
    assert "network_weights, init_args.configuration" in error_of(saved(tmp_path / "c.pth", wrong))


@pytest.mark.slow
def test_names_a_checkpoint_with_a_damaged_byte_in_the_directory_of_its_archive(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pth", content())
    whole = path.read_bytes()
    refused = 0
    for offset in range(whole.index(b"PK\x01\x02"), len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x81]) + whole[offset + 1 :])
        try:
            read_checkpoint(path)  # some bytes are only names and dates
        except ModelError as error:
            one_line_about(path, error)
            refused += 1
    assert refused > 100


@pytest.mark.fault(
    "models",
    "one byte of the weights in an nnU-Net checkpoint is changed, which torch does not notice",
    "an error that names the file",
)
def test_detects_a_damaged_byte_of_the_weights(tmp_path: Path) -> None:
    weights = torch.randn(64, 64)
    checkpoint = {"network_weights": {"a.weight": weights}, "init_args": {"configuration": "3d_fullres"}}
    path = saved(tmp_path / "c.pth", checkpoint)
    flip(path, weights.numpy().tobytes()[100:116])
    assert not torch.equal(torch.load(path, weights_only=True)["network_weights"]["a.weight"], weights)
    assert "expected an nnU-Net checkpoint, found a damaged part" in error_of(path)
