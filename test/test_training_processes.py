"""Processes of a training: signals that end them, locks between them, and the GPUs that they see."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from conftest import run_python
from pantherseg.errors import DeviceError, OutputError
from pantherseg.paths import ROOT
from pantherseg.training.check import usable_devices
from pantherseg.training.processes import VISIBLE, environment_for
from pantherseg.training.state import State
from pantherseg.training.steps import Step

FOLD = Step("fold", "teacher", (), {}, 0)
OTHER_FOLD = Step("fold", "teacher", (), {}, 1)
DATA = Step("data", "teacher", ("import.t1",), {})
Start = Callable[..., "subprocess.Popen[str]"]

# Trains five folds on two devices, by processes that note their numbers and then sleep.
FOLDS = """
import sys
from pathlib import Path
import pantherseg.training.run as module
from pantherseg.training.state import Verdict
from pantherseg.training.steps import Step, Steps
from pantherseg.training.workspace import Inputs, Workspace

folder = Path(sys.argv[1])
script = f'echo $$ >> {folder / "log"}; exec sleep 60'
module.command = lambda training, name, device: ["sh", "-c", script]
steps = {f"validate.a.{fold}": Step("validate", "a", (), {}, fold) for fold in range(5)}
verdicts = {name: Verdict("to run") for name in steps}
work = Workspace(None, folder, Inputs())
training = module.Training(folder, work, Steps(steps), list(steps), {}, {}, verdicts)
module.run(training, ("cuda:0", "cuda:1"))
"""
# Holds the locks of a step, in a process with a worker that outlives it.
HOLDS = """
import os, sys, time
from pathlib import Path
from pantherseg.training.state import State
from pantherseg.training.steps import Step

with State(Path(sys.argv[1])).locked(Step(sys.argv[2], "teacher", (), {}, 0)):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""
# Forks workers that wait for a lock, and ends them as nnU-Net's pools end theirs, some before they have run at all.
WORKERS = """
import multiprocessing, signal
from pantherseg.training.processes import termination_as_interrupt

with termination_as_interrupt():
    held = multiprocessing.get_context("fork").Lock()
    held.acquire()
    workers = [multiprocessing.get_context("fork").Process(target=held.acquire) for _ in range(8)]
    for worker in workers:
        worker.start()
        worker.terminate()
    for worker in workers:
        worker.join(5)
    print({worker.exitcode for worker in workers})
    for worker in workers:
        worker.kill()
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted")
"""
# Gets SIGTERM while it forks: from a function that Python calls before those that the module registers.
FORKS = """
import os, signal, time

os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
from pantherseg.training.processes import termination_as_interrupt

with termination_as_interrupt():
    if not os.fork():
        os._exit(0)
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        print("interrupted")
"""
# The same, where the block ends at once: nothing arrives after it.
FORKS_AT_THE_END = """
import os, signal, time

os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
from pantherseg.training.processes import SECONDS_TO_FORK, termination_as_interrupt

try:
    with termination_as_interrupt():
        if not os.fork():
            os._exit(0)
except KeyboardInterrupt:
    print("interrupted")
time.sleep(2 * SECONDS_TO_FORK)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python scripts, and end them after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and so would this process.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def is_running(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.fault("training", "{id} while folds run beside each other", "they end too, and no other fold begins")
def test_a_signal_ends_the_folds_that_run_and_starts_no_other(tmp_path: Path, start: Start, number: int) -> None:
    log = tmp_path / "log"
    parent = start(FOLDS, tmp_path)
    wait_for(lambda: log.exists() and len(log.read_text().split()) == 2)
    children = [int(line) for line in log.read_text().split()]
    began = time.monotonic()
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert [int(line) for line in log.read_text().split()] == children
    assert not any(map(is_running, children))


@pytest.mark.slow
@pytest.mark.fault("training", "SIGTERM during a fork", "it ends the training")
def test_a_signal_during_a_fork_is_not_lost(start: Start) -> None:
    output, _ = start(FORKS).communicate(timeout=60)
    assert output == "interrupted\n"


@pytest.mark.slow
@pytest.mark.fault("training", "SIGTERM during a fork at its very end", "it is interrupted, and nothing comes after it")
def test_a_signal_during_a_fork_does_not_arrive_after_the_end(start: Start) -> None:
    process = start(FORKS_AT_THE_END)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "interrupted\nTrue\n")


@pytest.mark.slow
@pytest.mark.fault("training", "a process is killed, and its workers are not", "the next run does not wait for them")
def test_the_workers_of_a_killed_process_do_not_keep_its_locks(tmp_path: Path, start: Start) -> None:
    holder = start(HOLDS, tmp_path, "fold")
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        assert is_running(worker)
        with State(tmp_path).locked(FOLD):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_forked_workers_end_at_once_and_silently_by_the_signal_that_interrupts_this_process() -> None:
    result = run_python("-c", WORKERS)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{{-{signal.SIGTERM:d}}}\ninterrupted\n", "")


@pytest.mark.slow
def test_a_step_that_replaces_files_waits_for_those_that_read_them(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    holder = start(HOLDS, tmp_path, "fold")
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    caplog.set_level("INFO")
    with State(tmp_path).locked(OTHER_FOLD):
        pass
    assert not caplog.messages
    path = tmp_path / "state" / "files.teacher.lock"
    with path.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(worker, signal.SIGKILL)
    holder.kill()
    with State(tmp_path).locked(DATA):
        pass


def test_steps_lock_what_they_read_and_what_they_replace() -> None:
    assert FOLD.locks == {"teacher": True}
    assert DATA.locks == {"t1": True, "teacher": False}
    assert Step("plan", "teacher", ("data.teacher", "plan.other"), {}).locks == {"teacher": False}
    assert Step("pseudo", "more", ("import.images", "bundle.teacher"), {}).locks == {"images": True, "more": False}


@pytest.mark.fault("training", "a disk without locks", "an error that names the lock file")
def test_a_lock_that_cannot_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (
        pytest.raises(OutputError, match=r"fold.teacher.0.lock: failed to lock this file: No locks"),
        State(tmp_path).locked(FOLD),
    ):
        pass


def test_numbers_of_gpus_count_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,GPU-8f2a")
    assert [environment_for(device)[VISIBLE] for device in ("cuda:0", "cuda:1", "cuda")] == [
        "4",
        "GPU-8f2a",
        "4,GPU-8f2a",
    ]
    monkeypatch.delenv(VISIBLE)
    assert environment_for("cuda:1")[VISIBLE] == "1"
    assert VISIBLE not in environment_for("cpu")


@pytest.mark.fault("training", "a GPU that there is not", "an error that names it")
def test_refuses_a_gpu_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantherseg.training.check.choose_backend", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_devices(("cuda:0", "cuda:1"), dry_run=False) == ("cuda:0", "cuda:1")
    with pytest.raises(DeviceError, match=r"--devices: expected GPUs from cuda:0 to cuda:1, found cuda:2"):
        usable_devices(("cuda:2",), dry_run=False)
    assert usable_devices(("cuda:2",), dry_run=True) == ("cuda:2",)
