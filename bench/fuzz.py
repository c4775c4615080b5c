"""Coverage-guided fuzzing of the volume reader: `python -m bench.fuzz [--seconds 300] [--corpus DIR]`.

atheris mutates the files of test/fuzz and keeps what reaches new code. Reading a file must give a valid volume or one
PantherSegError of one line, in SECONDS_A_FILE and MEMORY_MB for the whole process. Prints the inputs tried,
the faults and the lines reached. A fault is kept in test/fuzz, from where the tests read it ever after.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from pantherseg import case
from pantherseg.errors import InputError
from pantherseg.io import checks as integrity
from pantherseg.io.itk import LARGEST_VALUE
from pantherseg.io.names import VOLUME_SUFFIXES, is_volume_file
from pantherseg.paths import ROOT
from pantherseg.volume import Volume

KEPT = ROOT / "test" / "fuzz"
DICTIONARY = KEPT / "dictionary.txt"
SECONDS_A_FILE = 10
MEMORY_MB = 1024
MAX_BYTES = 8192
MOST_FAULTS = 20
# Whose lines are counted; `volume` is fuzzed too, but most of it writes, crops and compares.
FUZZED = [Path(str(case.__file__)), *sorted(Path(str(integrity.__file__)).parent.glob("*.py"))]


def outcome(path: Path) -> str:
    """Read a file and return `volume` or `error`. Raises AssertionError where the outcome is neither in good form."""
    try:
        read, _ = case.read_case(path)
    except InputError as error:
        check_error(str(error))
        return "error"
    check_volume(read)
    return "volume"


def check_error(text: str) -> None:
    """Check that an error is one line that a platform and a terminal can show."""
    assert ": expected " in text, text
    assert ", found " in text, text
    assert text.isprintable(), text
    assert len(text.encode()) < 8192, text


def check_volume(read: Volume) -> None:
    """Check that what was read is what the rest of the code takes for granted."""
    grid = read.grid
    assert read.array.dtype == np.float32
    assert read.array.shape == grid.shape
    assert min(grid.shape) > 0
    assert np.abs(read.array).max() < LARGEST_VALUE
    assert np.isfinite([*grid.origin, *grid.spacing]).all()
    assert min(grid.spacing) > 0
    direction = np.array(grid.direction)
    assert np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=1e-3)


def as_file(data: bytes, folder: Path, name: str = "fuzz") -> Path:
    """Write an input to a folder, the format being what its first byte picks."""
    path = folder / f"{name}{VOLUME_SUFFIXES[data[0] % len(VOLUME_SUFFIXES)]}"
    path.write_bytes(data[1:])
    return path


def as_input(path: Path) -> bytes:
    """Return a file as an input."""
    number = next(n for n, suffix in enumerate(VOLUME_SUFFIXES) if path.name.lower().endswith(suffix))
    return bytes([number]) + path.read_bytes()


def kept_files() -> list[Path]:
    """Return the seeds, and what was ever found."""
    return sorted(path for path in KEPT.iterdir() if is_volume_file(path))


def fuzz(seconds: float, corpus: Path) -> tuple[int, int]:
    """Fuzz for so long and return the number of inputs and of faults, which are in KEPT then."""
    for path in kept_files():
        (corpus / path.name).write_bytes(as_input(path))
    inputs = faults = 0
    end = time.monotonic() + seconds
    while (left := int(end - time.monotonic())) > 0 and faults < MOST_FAULTS:
        with tempfile.TemporaryDirectory(prefix="pantherseg-fuzz-") as found:
            log = _run_worker(corpus, Path(found), left)
            units = re.findall(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\t", log, flags=re.MULTILINE)
            inputs += max((int(number) for pair in units for number in pair if number), default=0)
            for fault in Path(found).iterdir():
                data = fault.read_bytes() or b"\0"
                kept = as_file(data, KEPT, f"found-{hashlib.sha256(data).hexdigest()[:8]}")
                faults += 1
                print(f"fault: {kept}\n{_end_of(log)}", flush=True)
    return inputs, faults


def _run_worker(corpus: Path, found: Path, seconds: int) -> str:
    """Run atheris until its time is over or it has found something, and return what it printed."""
    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS_A_FILE}", f"-rss_limit_mb={MEMORY_MB}"]
    options += [f"-max_len={MAX_BYTES}", f"-dict={DICTIONARY}", f"-artifact_prefix={found}/", "-print_final_stats=1"]
    command = [sys.executable, "-m", "bench.fuzz_worker", *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
    log = done.stderr.decode(errors="backslashreplace")
    if done.returncode != 0 and not any(found.iterdir()):
        raise RuntimeError(f"the fuzzer ended with {done.returncode}: {log[-2000:]}")
    return log


def _end_of(log: str) -> str:
    lines = [line for line in log.splitlines() if re.match(r"\w*(Error|Exception)\b|.*ERROR: libFuzzer", line)]
    return "\n".join(lines[:3])


def lines_reached(paths: Iterable[Path]) -> tuple[int, int]:
    """Read files and return how many lines of what is fuzzed they reach, and how many there are."""
    reached: set[tuple[str, int]] = set()
    names = {str(path) for path in FUZZED}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in names:
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for path in paths:
            outcome(path)
    finally:
        sys.settrace(before)
    lines = {(name, line) for name in names for line in _lines(compile(Path(name).read_text(), name, "exec"), top=True)}
    return len(reached & lines), len(lines)


def _lines(code: CodeType, *, top: bool) -> Iterator[int]:
    """Yield the lines of functions; those that run on import are none that an input reaches."""
    if not top:
        yield from (line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _lines(inner, top=top and not inner.co_flags & 0x2)  # CO_NEWLOCALS: a function, not a class


def main() -> None:
    """Fuzz and print the figures; exit code 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--corpus", type=Path, help="go on from the inputs in this folder, and keep them there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pantherseg-fuzz-") as folder:
        corpus = options.corpus or Path(folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        inputs, faults = fuzz(options.seconds, corpus)
        files = (as_file(path.read_bytes(), Path(folder)) for path in sorted(corpus.iterdir()) if path.stat().st_size)
        reached, lines = lines_reached(files)
        kept = len(list(corpus.iterdir()))
    print(f"{inputs} inputs, {faults} faults, {kept} inputs of different ways")
    print(f"{reached} of {lines} lines of the checks reached")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
