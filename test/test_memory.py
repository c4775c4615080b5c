"""Too little memory: known before it begins, and told from other errors."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from conftest import SmallDisk, one_line_about
from matrix import ended, quoted, saw
from pantherseg.arrays import zeros_in_file, zeros_like
from pantherseg.errors import DeviceMemoryError
from pantherseg.inference.backends import on_openvino
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import write_volume
from pantherseg.logs import one_line
from pantherseg.machine.memory import LEAST_MB, MB, NO_LIMIT, begin, is_in_memory, room_bytes, shortage
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.volume import Grid, Volume


def run_with_limit(code: str, limit_mb: int, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with RLIMIT_DATA as the platform sets it."""
    limits = (limit_mb * MB, limit_mb * MB)
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    saw(ended(done.returncode, done.stderr))
    return done


def test_without_a_limit_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy.ndimage", raising=False)
    begin()
    assert "scipy.ndimage" not in sys.modules


@pytest.mark.parametrize(
    ("limit", "refused"),
    [
        pytest.param(
            *(LEAST_MB - 1, True),
            marks=pytest.mark.fault("memory", "a memory limit just below the least", "an error that says the least"),
        ),
        (LEAST_MB, False),
    ],
)
def test_a_limit_below_the_least_is_refused(limit: int, refused: bool) -> None:
    result = run_with_limit("from pantherseg.machine.memory import begin; begin()", limit)
    assert (result.returncode != 0) == refused
    assert (f"expected at least {LEAST_MB} MB" in result.stderr and f"limit of {limit} MB" in result.stderr) == refused


# Takes all memory but for less than OpenBLAS asks for.
FILLED = """
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
    "memory runs out before a library is needed that would then wait for ever",
    "no waiting: the library is there already",
)
def test_scipy_is_there_before_memory_runs_out() -> None:
    result = run_with_limit(f"from pantherseg.machine.memory import begin; begin(){FILLED}", 600, timeout=60)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4.89 MiB for an array"),
        RuntimeError("Check 'x' failed at y.cpp:1:\nstd::bad_alloc"),
        pytest.param(
            RuntimeError("could not execute a primitive: can't alloc"),
            marks=pytest.mark.fault("memory", "OpenVINO's words for too little memory", "an error that says so"),
        ),
        RuntimeError("Failed to allocate 55050272 bytes of memory"),
    ],
)
def test_a_shortage_is_known_by_its_words(error: Exception) -> None:
    found = shortage(error, "a tile")
    assert isinstance(found, DeviceMemoryError)
    assert (str(error) or "MemoryError").splitlines()[-1] in one_line_about("memory", found)


def test_another_error_is_no_shortage() -> None:
    assert shortage(RuntimeError("the graph has no input"), "a tile") is None


@pytest.mark.fault(
    "memory", "Python's words for too little memory, under a limit", "a line that says so, with the limit"
)
def test_a_shortage_in_python_is_one_line_of_ours() -> None:
    code = "import sys\nfrom pantherseg.logs import one_line\ntry:\n    bytearray(1 << 34)\n"
    result = run_with_limit(f"{code}except MemoryError as error:\n    print(one_line(error))", 600)
    expected = "memory: expected enough for this case, found MemoryError (limit 600 MB)"
    saw(quoted(result.stdout.strip()))
    assert result.stdout == f"{expected}; a machine with more memory is needed\n"
    assert one_line(MemoryError("no room"), "scan.mha").startswith(
        "memory: expected enough for scan.mha, found no room"
    )


def kernel(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Write what a kernel tells of a machine with 8 GB, one of them swap, and of groups of processes."""
    told = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 7340032 kB\nSwapFree: 1048576 kB\n", **files}
    for name, text in told.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return {"proc": folder / "proc", "groups": folder / "cgroup"}


V2 = {"memory.current": "300000", "memory.stat": "anon 1\ninactive_file 20000\nactive_file 5000\n"}
V1 = {"memory.usage_in_bytes": "300000", "memory.stat": "inactive_file 7\ntotal_inactive_file 25000\n"}


def group(place: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"cgroup/{place}/{name}": text for name, text in files.items()}


# What no kernel should tell.
ODD = {
    "no taken": {"proc/self/cgroup": "9:memory:/\n", **group("memory", {"memory.limit_in_bytes": "900000"})},
    "empty taken": {"proc/self/cgroup": "0::/\n", **group("", {"memory.max": "9", "memory.current": ""})},
    "no number": {"proc/self/cgroup": "0::/\n", **group("", {**V2, "memory.max": "\u00b2"})},
    "short lines": {"proc/self/cgroup": "\n0:\n0::\n", **group("", {**V2, "memory.max": "9"})},
    "no text": {"proc/self/status": "Name:\t\udcff\n\nVmData: \u00b2 kB\n", "proc/self/cgroup": "0::/\udcff\n"},
}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, 8 << 30),
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
        *((files, 8 << 30) for files in ODD.values()),
    ],
    ids=["machine", "v2", "v2 max", "v2 full", "v2 above", "v1 none", "v1 hidden", "v1 no limit", *ODD],
)
def test_room_is_the_least_of_machine_and_container(tmp_path: Path, files: Mapping[str, str], room: int) -> None:
    assert room_bytes(**kernel(tmp_path, files)) == room


def test_what_no_kernel_tells_is_no_limit(tmp_path: Path) -> None:
    assert room_bytes(proc=tmp_path, groups=tmp_path) == NO_LIMIT


@pytest.mark.parametrize("kind", ["DATA", "AS"])
def test_room_is_what_is_left_of_a_processs_own_limit(kind: str) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_{kind}, ({700 * MB}, {700 * MB}))"
    code = f"{limit}\nfrom pantherseg.machine.memory import room_bytes\nbefore = room_bytes()\n"
    code += "taken = bytearray(200 << 20)\n"
    result = run_with_limit(f"{code}print(before - room_bytes() >> 20, before >> 20)", 2000)
    taken, before = map(int, result.stdout.split())
    assert 200 <= taken < 210, result.stderr
    assert 300 < before < 700


def test_a_folder_in_memory_is_known(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", f"23 22 0:5 / {tmp_path}/t rw,nosuid shared:2 - tmpfs none rw"]
    lines += ["", "24 22 0:5 / /\udcff rw - ext4 a rw", f"25 22 0:6 / {tmp_path}/a\\040b rw - ramfs none rw"]
    text = "\n".join(lines)
    (tmp_path / "self" / "mountinfo").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert is_in_memory(tmp_path / "a b", proc=tmp_path)
    assert is_in_memory(tmp_path / "t" / "deeper", proc=tmp_path)
    assert not is_in_memory(tmp_path, proc=tmp_path)
    assert not is_in_memory(tmp_path / "t", proc=tmp_path / "nothing")


def test_zeros_in_a_file_are_zeros_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    zeros = zeros_in_file((3, 4, 5), "float16")
    assert (zeros.shape, zeros.dtype) == ((3, 4, 5), np.float16)
    zeros[1] += 2
    beside = zeros_like(zeros[1:], (2, 2), "float32")
    assert isinstance(beside, np.memmap)
    assert not isinstance(zeros_like(np.asarray(zeros), (2, 2), "float32"), np.memmap)
    assert (zeros.sum(), beside.sum()) == (40, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "memory", "no disk has room for sums of logits that find none in memory", "an error that says what is wanted"
)
def test_no_room_on_the_disk_is_one_line(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(1 << 20)))
    with pytest.raises(DeviceMemoryError, match=r"2 MB on a disk.*found one that is in memory") as caught:
        zeros_in_file((2 << 20,), "uint8")
    one_line_about("temporary folder", caught.value)
    monkeypatch.setattr("pantherseg.arrays.is_in_memory", lambda _: False)
    with pytest.raises(DeviceMemoryError, match="No space left on device") as caught:
        zeros_in_file((2 << 20,), "uint8")
    saw(caught.value)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(DeviceMemoryError, match="No such file or directory"):
        zeros_in_file((2 << 20,), "uint8")


@pytest.fixture
def demo() -> Bundle:
    return open_bundle(DEMO_WEIGHTS / "task1", folds=[0, 1])


def places(backend: OpenVinoBackend, bundle: Bundle, shape: tuple[int, ...]) -> list[tuple[str, bool, tuple[str, ...]]]:
    """Return for each place the precision, whether it is a file, and its events."""
    return [
        (place.backend.precision, isinstance(place.data, np.memmap), tuple(event.code for event in place.events))
        for place in backend.placements(np.zeros((1, *shape), np.float32), bundle)
    ]


@pytest.mark.fault("memory", "no network fits into memory", "an error that says how much is wanted and how much free")
def test_what_fits_into_memory_is_known_beforehand(monkeypatch: pytest.MonkeyPatch, demo: Bundle) -> None:
    backend, shape = OpenVinoBackend(), (20, 100, 100)
    network, sums = backend._network_bytes(demo), on_openvino.sum_bytes(np.zeros((1, *shape), np.float32), demo)
    room = network + sums
    monkeypatch.setattr(on_openvino, "room_bytes", lambda: room)
    expected = [("float32", False, ()), ("float32", True, ("sums_in_file",))]
    if backend._has_bfloat16:
        half = OpenVinoBackend("fast")
        assert half._network_bytes(demo) + sums < network, "or the next rooms must be others"
        expected += [
            ("bfloat16", False, ("less_precise",)),
            ("bfloat16", True, ("less_precise", "sums_in_file")),
        ]
    assert places(backend, demo, shape) == expected
    room = network
    assert places(backend, demo, shape) == expected[1:]
    if backend._has_bfloat16:
        room = half._network_bytes(demo) + sums
        assert places(backend, demo, shape) == expected[2:]
        place = next(backend.placements(np.zeros((1, *shape), np.float32), demo))
        assert [event.message for event in place.events] == ["too little memory for float32; bfloat16 was used"]
    room = network // 4
    with pytest.raises(DeviceMemoryError, match=r"memory: expected \d+ MB for a patch of task1 in ") as caught:
        places(backend, demo, shape)
    one_line_about("memory", caught.value)


def noise(shape: tuple[int, int, int]) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    return Volume(array, Grid(shape, (3.0, 2.4, 2.4)))


@pytest.mark.fault(
    "memory", "memory holds a network, but no sums beside it, as is known beforehand", "the same logits, and an event"
)
def test_logits_summed_in_a_file_are_the_same(
    monkeypatch: pytest.MonkeyPatch, demo: Bundle, tmp_path: Path, pancreas: Volume
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predictor = Predictor(demo, OpenVinoBackend())
    prepared = predictor.prepare(pancreas)
    expected = predictor.logits(prepared)
    assert expected.events == ()
    monkeypatch.setattr(on_openvino, "room_bytes", lambda: predictor.backend._network_bytes(demo))  # type: ignore[attr-defined]
    found = predictor.logits(prepared)
    saw(found.events, f"{np.count_nonzero(found.values != expected.values)} logits differ")
    assert [event.code for event in found.events] == ["sums_in_file"]
    assert "too little memory for" in found.events[0].message
    np.testing.assert_array_equal(found.values, expected.values)
    assert not isinstance(found.slab(0, 2), np.memmap), "what is cut out of them is in memory again"
    assert list(tmp_path.iterdir()) == []


# Under a limit that is hidden from the estimate, sums of 150 MB find no memory.
SUMS = """
import numpy as np, resource
from pantherseg.arrays import zeros_in_file
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.inference.backends import on_openvino
from pantherseg.inference.predictor import Predictor
from pantherseg.machine.memory import MB, room_bytes
from pantherseg.preprocessing.preprocess import Prepared
predictor = Predictor(open_bundle(DEMO_WEIGHTS / "task1", folds=[0]), on_openvino.OpenVinoBackend(), step=1.0)
shape = (48, 480, 800)
back = predictor.preprocessing.run(np.ones((4, 4, 4), np.float32), (3.0, 2.4, 2.4)).back
data = zeros_in_file((1, *shape), "float32")
on_openvino.room_bytes = lambda: 1 << 40
limit = resource.getrlimit(resource.RLIMIT_DATA)[0] - room_bytes() + 280 * MB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
logits = predictor.logits(Prepared(np.asarray(data), back))
print([event.code for event in logits.events], np.isfinite(logits.values[0, 0]).all())
"""


@pytest.mark.fault("memory", "sums of logits find no memory on the way", "finite logits, and an event")
@pytest.mark.slow
def test_sums_that_find_no_memory_go_on_in_a_file() -> None:
    result = run_with_limit(SUMS, 4000, timeout=300)
    saw(ended(result.returncode, result.stderr), f"printed {quoted(result.stdout.strip())}")
    assert (result.returncode, result.stdout) == (0, "['sums_in_file'] True\n"), result.stderr


# Below what torch and nnU-Net take when they are imported, they end a process in other ways, or never.
@pytest.mark.fault(
    "memory", "an nnU-Net folder is used as it is under a memory limit of {limit} MB", "an error that says how much"
)
@pytest.mark.slow
@pytest.mark.parametrize("limit", [600, 760, 860, 940, 1150, 1300])
def test_a_limit_that_torch_would_not_survive(demo_folder: ModelFolder, tmp_path: Path, limit: int) -> None:
    write_volume(noise((8, 16, 16)), tmp_path / "a.mha")
    arguments = [str(tmp_path / "a.mha"), str(tmp_path / "masks"), "--task", "1", "--model", str(demo_folder.path)]
    done = run_with_limit(f"from pantherseg.cli import main; main(['predict', *{arguments}])", limit, timeout=60)
    saw(ended(done.returncode, done.stderr))
    assert done.returncode == 1, done.stderr
    assert "memory: expected 13" in done.stderr
    assert "MB to pack a model folder, found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "masks").exists()
