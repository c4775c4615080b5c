"""Cases on a Ray cluster: one actor a GPU or a number of CPU cores, each with a session, and one case at a time.

Ray starts the actors, restarts those that end, and finds their machines. Only names, paths and figures go through it:
volumes are read and masks are written by the workers.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pantherseg import __version__
from pantherseg.cohort.crew import LostWorker
from pantherseg.cohort.manifest import CohortCase
from pantherseg.cohort.worker import Identity, Job, RayWorker, Result
from pantherseg.errors import PantherSegError, last_line, os_reason
from pantherseg.machine.cpus import usable_cpus

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
# For the first answer of a machine.
KNOCK_S = 10.0
# Of a worker, unless the machines have less.
DEFAULT_CPUS = 4
# No volumes lie in Ray's store. It is part of the memory that is left for cases.
STORE_BYTES = 100_000_000
# How often a worker may end while it starts, before it is given up.
MAX_STARTS = 3
# Workers that have not started by then join later: from the beginning, and at least from the first that has started.
PATIENCE_S, MIN_PATIENCE_S = 120.0, 20.0


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and what a worker gets there.

    address: `local` to start Ray on this machine, `auto` for the cluster that it belongs to, HOST:PORT or ray://HOST:PORT
    for another; workers: None for as many as fit; cpus: None for `DEFAULT_CPUS`; gpus: 0 or 1, None for 1 where there
    are any.
    """

    address: str
    workers: int | None = None
    cpus: int | None = None
    gpus: int | None = None


@contextmanager
def ray_crew(job: Job, cluster: Cluster) -> Iterator[RayCrew]:
    """Connect to a cluster, start the workers, and yield them when those that have started are found to be alike.

    Raises PantherSegError if Ray is not installed, no cluster answers, no machine has what a worker needs, or the
    workers have other versions or models than each other.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'pantherseg[cohort]', or leave out --address"
        raise PantherSegError("cohort", expected="the package ray", found="not installed", hint=hint) from error
    _connect(ray, cluster.address)
    try:
        yield RayCrew(ray, job, cluster)
    finally:
        ray.shutdown()  # which ends the workers


def _connect(ray: ModuleType, address: str) -> None:
    starting = {"num_cpus": usable_cpus(), "object_store_memory": STORE_BYTES} if address == LOCAL else {}
    try:
        _knock(os.environ.get("RAY_ADDRESS", address) if address == AUTO else address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **starting)
    except Exception as error:  # of many kinds: Ray raises plain ones, too
        reason = os_reason(error) if isinstance(error, OSError) else last_line(error)
        expected, found = "the address of a Ray cluster", f"none that answers ({reason})"
        hint = "start one with `ray start --head`, or leave out --address"
        raise PantherSegError(f"--address {address}", expected=expected, found=found, hint=hint) from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would try for minutes. address: HOST:PORT, with or without ray://.

    Other addresses are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


class RayCrew:
    """The workers of a cluster.

    A worker that is lost is started again by Ray, elsewhere if need be, and gets cases when it has shown what it is; so
    does one that starts late, because its machine joins late.
    """

    def __init__(self, ray: ModuleType, job: Job, cluster: Cluster) -> None:
        self._ray = ray
        cpus, gpus, count = _shares(ray.nodes(), cluster, job.device)
        job = msgspec.structs.replace(job, cpus=cpus, device=job.device if gpus else "cpu")
        kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1)(RayWorker)
        workers = [kind.remote(__version__, msgspec.json.encode(job)) for _ in range(count)]
        self._checking = {self._asked(worker): worker for worker in workers}
        self._idle: list[Any] = []
        self._models = ""
        self._check_first()
        logger.info("%d of %d workers are ready, with %d CPUs and %d GPUs each", len(self._idle), count, cpus, gpus)

    def run(self, cases: Sequence[CohortCase], *, tries: int = 1) -> Iterator[tuple[CohortCase, Result | LostWorker]]:
        """Yield each case as it ends. Raises PantherSegError where no worker is left."""
        waiting = iter(cases)
        case = next(waiting, None)
        running: dict[Any, tuple[Any, CohortCase]] = {}
        while case is not None or running:
            if not (running or self._idle or self._checking):
                raise PantherSegError("workers", "none is left that can segment", hint="see the errors above")
            while case is not None and self._idle:
                worker = self._idle.pop()
                running[worker.run.options(name=case.case).remote(case, tries)] = worker, case
                case = next(waiting, None)
            (ended,), _ = self._ray.wait([*running, *self._checking], num_returns=1)
            if ended in self._checking:
                self._take_in(ended)
                continue
            worker, its_case = running.pop(ended)
            try:
                result = self._ray.get(ended)
            except self._ray.exceptions.RayError as error:
                logger.warning("%s: its worker was lost", its_case.case)
                self._checking[self._asked(worker)] = worker
                yield its_case, LostWorker(_why(error))
            else:
                self._idle.append(worker)
                yield its_case, result

    def _asked(self, worker: Any) -> Any:
        """Ask a worker what it is, which it answers when it has started."""
        return worker.identity.options(max_task_retries=MAX_STARTS).remote()

    def _check_first(self) -> None:
        """Wait for the workers that start now, and check them. Raises PantherSegError for the first that is unlike."""
        asked, began = list(self._checking), time.monotonic()
        if not self._ray.wait(asked, num_returns=1, timeout=PATIENCE_S)[0]:
            logger.warning("no worker has started after %.0f s, because others use the cluster; waiting", PATIENCE_S)
            self._ray.wait(asked, num_returns=1)
        # The others take about as long as the first, unless their machines are busy or lost.
        more = min(PATIENCE_S, max(MIN_PATIENCE_S, time.monotonic() - began))
        started, _ = self._ray.wait(asked, num_returns=len(asked), timeout=more)
        for answer in started:
            if problem := self._problem(answer):
                raise problem
            self._idle.append(self._checking.pop(answer))

    def _take_in(self, answer: Any) -> None:
        """Let a worker that has answered take cases; one that is unlike the others gets none."""
        worker = self._checking.pop(answer)
        if problem := self._problem(answer):
            logger.error("error: %s; this worker gets no cases", problem)
        else:
            self._idle.append(worker)

    def _problem(self, answer: Any) -> PantherSegError | None:
        """Return what is wrong with a worker, None for one that is like the others."""
        try:
            found: Identity = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return PantherSegError("worker", f"it cannot be started: {last_line(error)}")
        where = f"worker on {found.machine}"
        if found.pantherseg != __version__:
            hint = "install one version everywhere"
            return PantherSegError(
                where, expected=f"pantherseg {__version__}, as here", found=found.pantherseg, hint=hint
            )
        if found.problem:
            return PantherSegError(where, found.problem)
        self._models = self._models or found.models_sha256
        if found.models_sha256 != self._models:
            expected, other = f"models {self._models[:12]}, as on another machine", found.models_sha256[:12]
            return PantherSegError(where, expected=expected, found=other, hint="give all the same folder with --model")
        return None


def _shares(nodes: Sequence[dict[str, Any]], cluster: Cluster, device: str) -> tuple[int, int, int]:
    """Return how many CPUs and GPUs a worker gets, and how many workers there are. Raises PantherSegError."""
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if cluster.gpus is None:
        gpus = int(device == "cuda" or (device == "auto" and any(node.get("GPU", 0) for node in alive)))
    else:
        gpus = cluster.gpus
    fitting = [node for node in alive if node.get("GPU", 0) >= gpus]
    cpus = cluster.cpus or min([DEFAULT_CPUS, *(int(node["CPU"]) for node in fitting)])
    fit = [int(min(node["CPU"] // cpus, node.get("GPU", 0) // gpus if gpus else node["CPU"])) for node in fitting]
    count = cluster.workers or sum(fit)
    if not count:
        most = max((int(node["CPU"]) for node in alive), default=0)
        found = f"at most {most} CPUs and {max((int(node.get('GPU', 0)) for node in alive), default=0)} GPUs"
        expected = f"a machine with {cpus} CPUs and {gpus} GPUs for each worker"
        raise PantherSegError(f"--address {cluster.address}", expected=expected, found=found)
    return cpus, gpus, count


def _why(error: Exception) -> str:
    """Return in a line why a worker was lost; Ray's own texts have many."""
    if type(error).__name__ == "OutOfMemoryError":
        return "memory was short, and Ray ended the worker"
    if isinstance(error, ConnectionError) or "Actor" in type(error).__name__:
        return "the worker's process or machine ended, as it does where memory is short"
    return last_line(error)
