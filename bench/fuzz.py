"""Coverage-guided fuzzing of the volume readers: `python -m bench.fuzz [--seconds 300] [--corpus DIR]`.

atheris mutates the files in test/fuzz and keeps the inputs that reach new code. Reading an input must give a valid
volume or a PantherSegError of one line, within SECONDS_A_FILE, and with MEMORY_MB for the whole process. Prints how
many inputs were tried, the faults, and the lines reached. An input that fails is written to test/fuzz, whose files the
tests read from then on.
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
from pantherseg.io import find_sources, reader
from pantherseg.io.limits import LARGEST_VALUE
from pantherseg.io.reader import VOLUME_SUFFIXES
from pantherseg.paths import ROOT
from pantherseg.volume import Volume

KEPT = ROOT / "test" / "fuzz"
DICTIONARY = KEPT / "dictionary.txt"
SECONDS_A_FILE = 10
MEMORY_MB = 1024
MAX_BYTES = 8192
MOST_FAULTS = 20
# The files whose lines are counted. `volume` and `case` are fuzzed too, but most of them crops, compares and runs
# networks; `probabilities` are stored in a form of their own, and `digest` interprets nothing.
READERS = sorted(Path(str(reader.__file__)).parent.glob("*.py"))
FUZZED = [path for path in READERS if path.stem not in ("probabilities", "digest")]


def outcome(path: Path) -> str:
    """Read a file and return `volume` or `error`. Raises AssertionError for an invalid volume or error."""
    try:
        reader.read_grid(path)
    except InputError as error:
        check_error(error)
    try:
        read, _ = case.read_case(path)
    except InputError as error:
        check_error(error)
        return "error"
    check_volume(read)
    return "volume"


def check_error(error: InputError) -> None:
    """Check that an error says what is wrong, in one line that a platform and a terminal can show."""
    text = str(error)
    assert error.problem or (error.expected and error.found), text
    assert text.isprintable(), text
    assert len(text.encode()) < 8192, text


def check_volume(read: Volume) -> None:
    """Check what the rest of the code relies on."""
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
    """Write an input to a folder as a file, whose format the first byte of the input chooses."""
    path = folder / f"{name}{VOLUME_SUFFIXES[data[0] % len(VOLUME_SUFFIXES)]}"
    path.write_bytes(data[1:])
    return path


def as_input(path: Path) -> bytes:
    """Return the input that `as_file` writes as this file."""
    number = next(n for n, suffix in enumerate(VOLUME_SUFFIXES) if path.name.lower().endswith(suffix))
    return bytes([number]) + path.read_bytes()


def kept_files() -> list[Path]:
    """Return the seeds, and the inputs that failed in the past."""
    return find_sources(KEPT)


def fuzz(seconds: float, corpus: Path) -> tuple[int, int]:
    """Fuzz for some seconds and return the number of inputs and of faults; the faults are written to KEPT."""
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
    """Run atheris until the time is over or an input fails, and return its log."""
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
    """Read files and return how many lines of FUZZED they reach, and how many lines there are."""
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
    """Yield the lines inside functions: no input reaches those that run on import."""
    if not top:
        yield from (line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _lines(inner, top=top and not inner.co_flags & 0x2)  # CO_NEWLOCALS: a function, not a class


def main() -> None:
    """Fuzz and print the figures; the exit code is 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--corpus", type=Path, help="start from the inputs in this folder, and keep new ones there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pantherseg-fuzz-") as folder:
        corpus = options.corpus or Path(folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        inputs, faults = fuzz(options.seconds, corpus)
        files = (as_file(path.read_bytes(), Path(folder)) for path in sorted(corpus.iterdir()) if path.stat().st_size)
        reached, lines = lines_reached(files)
        kept = len(list(corpus.iterdir()))
    print(f"{inputs} inputs, {faults} faults, {kept} inputs that reach different code")
    print(f"{reached} of {lines} lines of the readers reached")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
