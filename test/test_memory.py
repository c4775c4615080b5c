"""Too little memory: how it is predicted and recognised, and what is given up for it."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from conftest import SetFree, SmallDisk, one_line_about, run_python
from pantherseg.arrays import zeros_in_file, zeros_like
from pantherseg.errors import DeviceMemoryError
from pantherseg.inference.accumulate import sweep_bytes
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.placement import placements
from pantherseg.inference.predictor import Predictor
from pantherseg.io import write_volume
from pantherseg.logs import one_line
from pantherseg.machine.memory import (
    MB,
    MIN_MB,
    NO_LIMIT,
    is_in_memory,
    reserve_memory,
    room_bytes,
    shortage,
)
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import ModelFolder
from pantherseg.volume import Grid, Volume


def run_with_limit(code: str, limit_mb: int, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code with a limit on its data, as the platform sets it."""
    limits = (limit_mb * MB, limit_mb * MB)
    set_limit = partial(resource.setrlimit, resource.RLIMIT_DATA, limits)
    return run_python("-c", code, preexec_fn=set_limit, timeout=timeout)


def test_reserves_nothing_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy.ndimage", raising=False)
    reserve_memory()
    assert "scipy.ndimage" not in sys.modules


def test_measures_the_peak_of_the_memory_anew() -> None:
    """In a process of its own, because this one may keep freed memory and use it again."""
    program = """
import numpy as np
from pantherseg.machine.memory import forget_peak, peak_mb
array = np.ones(200 << 17)  # 200 MB
del array
print(peak_mb())
forget_peak()
print(peak_mb())
"""
    first, second = map(int, run_python("-c", program).stdout.split())
    assert first > 200
    assert second < first - 150


@pytest.mark.fault("memory", "the memory limit is just below the minimum", "an error that names both")
def test_refuses_a_memory_limit_below_the_minimum() -> None:
    code = "from pantherseg.machine.memory import reserve_memory; reserve_memory()"
    assert run_with_limit(code, MIN_MB).returncode == 0
    result = run_with_limit(code, MIN_MB - 1)
    assert result.returncode != 0
    message = f"memory: expected a limit of at least {MIN_MB} MB for this process, found {MIN_MB - 1} MB; "
    assert message in result.stderr


# Allocates memory until less is left than OpenBLAS needs.
FILL_MEMORY = """
taken = []
try:
    while True:
        taken.append(bytearray(8 << 20))
except MemoryError:
    del taken[-4:]
from scipy import ndimage
print(ndimage.label([0, 1])[1])
"""


@pytest.mark.fault(
    "memory",
    "memory runs out before scipy is needed, whose import would then never end",
    "the end of the process, because scipy was imported before",
)
def test_imports_scipy_before_memory_runs_out() -> None:
    code = f"from pantherseg.machine.memory import reserve_memory; reserve_memory(){FILL_MEMORY}"
    result = run_with_limit(code, 600, timeout=60)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


@pytest.mark.fault("memory", "an error with the text {error!r} reports too little memory", "an error that says so")
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4.89 MiB for an array"),
        RuntimeError("Check 'x' failed at y.cpp:1:\nstd::bad_alloc"),
        RuntimeError("could not execute a primitive: can't alloc"),
        RuntimeError("Failed to allocate 55050272 bytes of memory"),
    ],
)
def test_recognises_a_shortage_by_the_message(error: Exception) -> None:
    found = shortage(error, "a tile")
    assert isinstance(found, DeviceMemoryError)
    assert (str(error) or "MemoryError").splitlines()[-1] in one_line_about("memory", found)
    assert shortage(RuntimeError("the graph has no input"), "a tile") is None


@pytest.mark.fault("memory", "Python has too little memory under a limit", "a line that says so and names the limit")
def test_reports_a_memory_error_of_python_in_one_line() -> None:
    code = "import sys\nfrom pantherseg.logs import one_line\ntry:\n    bytearray(1 << 34)\n"
    result = run_with_limit(f"{code}except MemoryError as error:\n    print(one_line(error))", 600)
    expected = "memory: expected enough for this case, found MemoryError (limit 600 MB)"
    assert result.stdout == f"{expected}; a machine with more memory is needed\n"
    assert one_line(MemoryError("no room"), "scan.mha").startswith(
        "memory: expected enough for scan.mha, found no room"
    )


def kernel(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Write /proc and /sys/fs/cgroup of a machine with 8 GB free, 1 GB of it swap. Return them for `room_bytes`."""
    contents = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 7340032 kB\nSwapFree: 1048576 kB\n", **files}
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return {"proc": folder / "proc", "cgroup": folder / "cgroup"}


V2 = {"memory.current": "300000", "memory.stat": "anon 1\ninactive_file 20000\nactive_file 5000\n"}
V1 = {"memory.usage_in_bytes": "300000", "memory.stat": "inactive_file 7\ntotal_inactive_file 25000\n"}


def group(path: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"cgroup/{path}/{name}": text for name, text in files.items()}


# Contents that a kernel should not write.
MALFORMED = {
    "no usage": {"proc/self/cgroup": "9:memory:/\n", **group("memory", {"memory.limit_in_bytes": "900000"})},
    "empty usage": {"proc/self/cgroup": "0::/\n", **group("", {"memory.max": "9", "memory.current": ""})},
    "not a number": {"proc/self/cgroup": "0::/\n", **group("", {**V2, "memory.max": "\u00b2"})},
    "short lines": {"proc/self/cgroup": "\n0:\n0::\n", **group("", {**V2, "memory.max": "9"})},
    "not UTF-8": {"proc/self/status": "Name:\t\udcff\n\nVmData: \u00b2 kB\n", "proc/self/cgroup": "0::/\udcff\n"},
}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, 8 << 30),
        ({"proc/meminfo": ""}, NO_LIMIT),
        ({"proc/self/cgroup": "0::/\n", **group("", {**V2, "memory.max": "1000000\n"})}, 725000),
        ({"proc/self/cgroup": "0::/\n", **group("", {**V2, "memory.max": "max\n"})}, 8 << 30),
        ({"proc/self/cgroup": "0::/\n", **group("", {**V2, "memory.max": "1000\n"})}, 0),
        ({"proc/self/cgroup": "0::/a/b\n", **group("a", {**V2, "memory.max": "1000000\n"})}, 725000),
        ({"proc/self/cgroup": "3:cpu:/\n9:memory:/a\n", **group("memory/a", V1)}, 8 << 30),
        (
            {"proc/self/cgroup": "9:memory:/a\n0::/\n", **group("memory", {**V1, "memory.limit_in_bytes": "900000"})},
            625000,
        ),
        (
            {"proc/self/cgroup": "9:memory:/\n", **group("memory", {**V1, "memory.limit_in_bytes": str(2**63 - 4096)})},
            8 << 30,
        ),
        *((files, 8 << 30) for files in MALFORMED.values()),
    ],
    ids=[
        "machine",
        "no values",
        "v2",
        "v2 max",
        "v2 full",
        "v2 above",
        "v1 without limit",
        "v1 hidden",
        "v1 unlimited",
        *MALFORMED,
    ],
)
def test_free_memory_is_limited_by_machine_and_container(tmp_path: Path, files: Mapping[str, str], room: int) -> None:
    assert room_bytes(**kernel(tmp_path, files)) == room


@pytest.mark.parametrize("kind", ["DATA", "AS"])
def test_free_memory_is_limited_by_the_limit_of_the_process(kind: str) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_{kind}, ({700 * MB}, {700 * MB}))"
    code = f"{limit}\nfrom pantherseg.machine.memory import room_bytes\nbefore = room_bytes()\n"
    code += "taken = bytearray(200 << 20)\n"
    result = run_with_limit(f"{code}print(before - room_bytes() >> 20, before >> 20)", 2000)
    taken, before = map(int, result.stdout.split())
    assert 200 <= taken < 210, result.stderr
    assert 300 < before < 700


def test_recognises_a_folder_in_memory(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", f"23 22 0:5 / {tmp_path}/t rw,nosuid shared:2 - tmpfs none rw"]
    lines += ["", "24 22 0:5 / /\udcff rw - ext4 a rw", f"25 22 0:6 / {tmp_path}/a\\040b rw - ramfs none rw"]
    text = "\n".join(lines)
    (tmp_path / "self" / "mountinfo").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert is_in_memory(tmp_path / "a b", proc=tmp_path)
    assert is_in_memory(tmp_path / "t" / "deeper", proc=tmp_path)
    assert not is_in_memory(tmp_path, proc=tmp_path)
    assert not is_in_memory(tmp_path / "t", proc=tmp_path / "nothing")


def test_zeros_in_a_file_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    zeros = zeros_in_file((3, 4, 5), "float16")
    assert (zeros.shape, zeros.dtype) == ((3, 4, 5), np.float16)
    zeros[1] += 2
    beside = zeros_like(zeros[1:], (2, 2), "float32")
    assert isinstance(beside, np.memmap)
    assert not isinstance(zeros_like(np.asarray(zeros), (2, 2), "float32"), np.memmap)
    assert (zeros.sum(), beside.sum()) == (40, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("memory", "the logits fit neither into memory nor on a disk", "an error that names the size")
def test_refuses_a_temporary_folder_without_room(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(1 << 20)))
    with pytest.raises(
        DeviceMemoryError, match=r"2 MB of disk space for logits, found a folder that is kept in memory"
    ) as caught:
        zeros_in_file((2 << 20,), "uint8")
    one_line_about("temporary folder", caught.value)
    monkeypatch.setattr("pantherseg.arrays.is_in_memory", lambda _: False)
    with pytest.raises(DeviceMemoryError, match="No space left on device") as caught:
        zeros_in_file((2 << 20,), "uint8")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(DeviceMemoryError, match="No such file or directory"):
        zeros_in_file((2 << 20,), "uint8")


SHAPE = (20, 100, 100)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenVINO say that this CPU supports bfloat16. No network runs in it here."""
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "BF16"])


def placements_of(
    bundle: Bundle, backend: OpenVinoBackend, *, allow_bfloat16: bool = False
) -> list[tuple[str, bool, tuple[str, ...]]]:
    """Return for each placement of a volume the precision, whether the data are in a file, and the events."""
    return [
        (found.backend.precision, isinstance(found.data, np.memmap), tuple(event.code for event in found.events))
        for found in placements(np.zeros((1, *SHAPE), np.float32), bundle, backend, allow_bfloat16=allow_bfloat16)
    ]


def logits_bytes(bundle: Bundle) -> int:
    manifest = bundle.manifest
    return sweep_bytes(SHAPE, manifest.patch, classes=manifest.classes, folds=len(bundle.folds))


IN_MEMORY = ("float32", False, ())
ON_DISK = ("float32", True, ("logits_on_disk",))
BFLOAT16 = ("bfloat16", False, ("less_precise",))
BFLOAT16_ON_DISK = ("bfloat16", True, ("less_precise", "logits_on_disk"))


def test_places_logits_on_a_disk_if_only_the_network_fits(demo: Bundle, set_free: SetFree) -> None:
    backend = OpenVinoBackend()
    set_free(backend.network_bytes(demo) + logits_bytes(demo))
    assert placements_of(demo, backend) == [IN_MEMORY, ON_DISK]
    set_free(backend.network_bytes(demo))
    assert placements_of(demo, backend) == [ON_DISK]


@pytest.mark.fault("memory", "no network fits into memory", "an error that names the needed and the free memory")
@pytest.mark.usefixtures("bfloat16")
def test_refuses_a_network_that_does_not_fit(demo: Bundle, set_free: SetFree) -> None:
    backend = OpenVinoBackend()
    set_free(backend.network_bytes(demo) // 4)
    with pytest.raises(DeviceMemoryError, match=r"expected \d+ MB for the network of task1 in bfloat16") as caught:
        placements_of(demo, backend, allow_bfloat16=True)
    one_line_about("memory", caught.value)


@pytest.mark.fault(
    "memory",
    "a network fits into memory in bfloat16 only, which the recipe does not allow",
    "an error that names the sizes and the key of the recipe",
)
@pytest.mark.usefixtures("bfloat16")
def test_exact_never_computes_in_bfloat16_without_permission(demo: Bundle, set_free: SetFree) -> None:
    backend = OpenVinoBackend()
    network = backend.network_bytes(demo)
    set_free(network - MB)
    with pytest.raises(DeviceMemoryError) as caught:
        Predictor(demo, backend).predict(noise((20, 40, 40)))
    sizes = f"expected {network // MB} MB for the network of task1 in float32, found {network // MB - 1} MB free"
    hint = "a machine with more memory is needed, or allow_bfloat16 = true in the recipe"
    assert one_line_about("memory", caught.value) == f"memory: {sizes}; {hint}"


@pytest.mark.usefixtures("bfloat16")
def test_exact_never_computes_in_bfloat16_after_memory_ran_out(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = []

    def runs_out_of_memory(backend: OpenVinoBackend, *_: object, **__: object) -> None:
        precisions.append(backend.precision)
        raise MemoryError

    monkeypatch.setattr(OpenVinoBackend, "network", runs_out_of_memory)
    with pytest.raises(DeviceMemoryError, match="memory: expected enough for summing logits, found MemoryError"):
        Predictor(demo, OpenVinoBackend()).predict(noise((20, 40, 40)))
    assert precisions == ["float32", "float32"], "in memory and on a disk"


@pytest.mark.fault(
    "memory", "a network fits into memory in bfloat16 only, which the recipe allows", "bfloat16, and an event"
)
@pytest.mark.usefixtures("bfloat16")
def test_computes_in_bfloat16_if_the_recipe_allows_it(demo: Bundle, set_free: SetFree) -> None:
    backend, half = OpenVinoBackend(), OpenVinoBackend("fast")
    network, half_network, logits = backend.network_bytes(demo), half.network_bytes(demo), logits_bytes(demo)
    assert half_network + logits < network, "this test needs a larger network"
    set_free(network + logits)
    every = [IN_MEMORY, ON_DISK, BFLOAT16, BFLOAT16_ON_DISK]
    assert placements_of(demo, backend, allow_bfloat16=True) == every
    set_free(half_network + logits)
    assert placements_of(demo, backend, allow_bfloat16=True) == [BFLOAT16, BFLOAT16_ON_DISK]
    first = next(placements(np.zeros((1, *SHAPE), np.float32), demo, backend, allow_bfloat16=True))
    message = "memory was too small for float32; the networks computed in bfloat16"
    assert [event.message for event in first.events] == [message]
    assert placements_of(demo, half) == [("bfloat16", False, ()), ("bfloat16", True, ("logits_on_disk",))]


def noise(shape: tuple[int, int, int]) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    return Volume(array, Grid(shape, (3.0, 2.4, 2.4)))


@pytest.mark.fault(
    "memory", "memory is predicted to hold a network but no logits beside it", "the same logits, and an event"
)
@pytest.mark.slow
def test_logits_on_disk_equal_those_in_memory(
    monkeypatch: pytest.MonkeyPatch, set_free: SetFree, demo: Bundle, tmp_path: Path, pancreas: Volume
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predictor = Predictor(demo, OpenVinoBackend())
    prepared = predictor.prepare(pancreas)
    expected = predictor.logits(prepared)
    assert expected.events == ()
    set_free(predictor.backend.network_bytes(demo))
    found = predictor.logits(prepared)
    assert [event.code for event in found.events] == ["logits_on_disk"]
    assert "for logits did not fit into" in found.events[0].message
    np.testing.assert_array_equal(found.values, expected.values)
    assert not isinstance(found.slab(0, 2), np.memmap), "slabs are in memory"
    assert list(tmp_path.iterdir()) == []


# Sets a limit that the estimate does not see, under which 150 MB of logits do not fit into memory.
PREDICT_UNDER_A_HIDDEN_LIMIT = """
import numpy as np, resource
from pantherseg.arrays import zeros_in_file
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.inference.backends import openvino_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.machine.memory import MB, room_bytes
from pantherseg.preprocessing.preprocess import Prepared
predictor = Predictor(open_bundle(DEMO_WEIGHTS / "task1", folds=[0]), openvino_backend.OpenVinoBackend(), step=1.0)
shape = (48, 480, 800)
back = predictor.preprocessing.run(np.ones((4, 4, 4), np.float32), (3.0, 2.4, 2.4)).back
data = zeros_in_file((1, *shape), "float32")
openvino_backend.room_bytes = lambda: 1 << 40
limit = resource.getrlimit(resource.RLIMIT_DATA)[0] - room_bytes() + 280 * MB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
logits = predictor.logits(Prepared(np.asarray(data), back))
print(*[event.code for event in logits.events], np.isfinite(logits.values[0, 0]).all())
"""


@pytest.mark.fault("memory", "memory runs out while logits are summed", "finite logits, and an event")
@pytest.mark.slow
def test_sums_logits_on_a_disk_if_memory_runs_out() -> None:
    result = run_with_limit(PREDICT_UNDER_A_HIDDEN_LIMIT, 4000, timeout=300)
    assert (result.returncode, result.stdout) == (0, "logits_on_disk True\n"), result.stderr


# With less memory than torch and nnU-Net need for their import, they crash the process or never return.
@pytest.mark.fault(
    "memory", "an nnU-Net folder is used directly under a memory limit of {limit} MB", "an error that names the sizes"
)
@pytest.mark.slow
@pytest.mark.parametrize("limit", [600, 760, 860, 940, 1150, 1300])
def test_refuses_a_memory_limit_too_low_for_torch(demo_folder: ModelFolder, tmp_path: Path, limit: int) -> None:
    write_volume(noise((8, 16, 16)), tmp_path / "a.mha")
    arguments = [str(tmp_path / "a.mha"), str(tmp_path / "masks"), "--task", "1", "--model", str(demo_folder.path)]
    done = run_with_limit(f"from pantherseg.cli import main; main(['predict', *{arguments}])", limit, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "memory: expected 13" in done.stderr
    assert "MB to pack a model folder, found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "masks").exists()
