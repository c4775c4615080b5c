"""Too little memory: known before it begins, and told from other errors."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from conftest import one_line_about
from pantherseg.errors import DeviceMemoryError
from pantherseg.logs import one_line
from pantherseg.memory import LEAST_MB, MB, begin, shortage


def run_with_limit(code: str, limit_mb: int, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with RLIMIT_DATA as the platform sets it."""
    limits = (limit_mb * MB, limit_mb * MB)
    return subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def test_without_a_limit_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy.ndimage", raising=False)
    begin()
    assert "scipy.ndimage" not in sys.modules


@pytest.mark.parametrize(("limit", "refused"), [(LEAST_MB - 1, True), (LEAST_MB, False)])
def test_a_limit_below_the_least_is_refused(limit: int, refused: bool) -> None:
    result = run_with_limit("from pantherseg.memory import begin; begin()", limit)
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


def test_scipy_is_there_before_memory_runs_out() -> None:
    result = run_with_limit(f"from pantherseg.memory import begin; begin(){FILLED}", 600, timeout=60)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


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
def test_a_shortage_is_known_by_its_words(error: Exception) -> None:
    found = shortage(error, "a tile")
    assert isinstance(found, DeviceMemoryError)
    assert (str(error) or "MemoryError").splitlines()[-1] in one_line_about("memory", found)


def test_another_error_is_no_shortage() -> None:
    assert shortage(RuntimeError("the graph has no input"), "a tile") is None


def test_a_shortage_in_python_is_one_line_of_ours() -> None:
    code = "import sys\nfrom pantherseg.logs import one_line\ntry:\n    bytearray(1 << 34)\n"
    result = run_with_limit(f"{code}except MemoryError as error:\n    print(one_line(error))", 600)
    expected = "memory: expected enough for this case, found MemoryError (limit 600 MB)"
    assert result.stdout == f"{expected}; a machine with more memory is needed\n"
    assert one_line(MemoryError("no room"), "scan.mha").startswith(
        "memory: expected enough for scan.mha, found no room"
    )
