"""Steps that run in processes of their own, which are ended together with this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import cache
from types import FrameType

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How long a process has to end by itself before it is killed.
SECONDS_TO_END = 20.0
# After how long a SIGTERM that arrives during a fork is sent again.
SECONDS_TO_FORK = 0.1


class Processes:
    """Processes that are running. Threads may start them at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a command to its end, and return its exit code. Raises CancelledError after `stop`."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            process = subprocess.Popen(command, env=dict(environment))
            self._running.add(process)
        try:
            return process.wait()
        finally:
            if process.poll() is not None:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """End every process that is running, and let no other start."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def ended_together() -> Iterator[Processes]:
    """Yield processes that are ended when the block is left by an error, by Ctrl-C or by SIGTERM."""
    processes = Processes()
    with termination_as_interrupt():
        try:
            yield processes
        except BaseException:
            processes.stop()
            raise


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that what runs is ended in order. Forked processes it ends at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    _spare_forked_processes()
    with contextlib.ExitStack() as at_the_end:
        before = signal.signal(signal.SIGTERM, _interrupt)
        at_the_end.callback(signal.signal, signal.SIGTERM, before)
        at_the_end.callback(_interrupt_now)
        yield


# The threads that are forking.
_forking: set[int] = set()
# Sends again a SIGTERM that has arrived during a fork; empty once it has interrupted.
_again: list[threading.Timer] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    while _again:
        _again.pop().cancel()
    if not _forking:
        raise KeyboardInterrupt
    # Python would ignore the exception in the functions that it calls around a fork.
    _again.append(threading.Timer(SECONDS_TO_FORK, os.kill, (os.getpid(), signal.SIGTERM)))
    _again[-1].start()


def _interrupt_now() -> None:
    """Raise KeyboardInterrupt for a SIGTERM that is still to be sent again, which would come after the block."""
    if _again:
        timer = _again.pop()
        timer.cancel()
        timer.join()
        raise KeyboardInterrupt


@cache
def _spare_forked_processes() -> None:
    """Let forked processes not inherit the handler: nnU-Net ends its workers by SIGTERM, and waits for them.

    Python runs a handler only between two of its own instructions, so a worker that waits for a lock might never run
    it. The signal is held back meanwhile, because it would be lost in a process that is just being forked.
    """
    os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_inherit_nothing)


def _hold_back() -> None:
    _forking.add(threading.get_ident())
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_through() -> None:
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _forking.discard(threading.get_ident())


def _inherit_nothing() -> None:
    _forking.clear()
    _again.clear()
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def environment_for(device: str) -> dict[str, str]:
    """Return the environment of a process that sees one device: `cpu`, `cuda`, or a GPU by its number: `cuda:1`.

    Numbers count the GPUs that this process sees.
    """
    _, _, number = device.partition(":")
    if not number:
        return dict(os.environ)
    present = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return dict(os.environ) | {VISIBLE: present[int(number)] if present else number}
