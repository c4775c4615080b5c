"""The platform's `invoke` contract: a server that loads the models once and then runs a job for each request.

    GET /health    200 once a small volume was segmented; 503 before that, after a failure of the models until a job
                   succeeds, and while a job takes much longer than its time budget
    POST /invoke   201 once the mask and the report are written; 422 for an input that cannot be segmented, 503 while
                   the models are being loaded or another job is running, 500 for any other failure

Each of these but 200 and 201 gives the reason in one line. The body of a request is not read. The job's folders are
looked up for each job, because the platform empties and fills them between jobs.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import numpy as np
import uvicorn

# FastAPI would add 8.6 MB and 0.3 s of import to the 2.2 MB and 0.15 s of these two, for bodies that are not read.
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pantherseg.case import CaseOutput, run_case
from pantherseg.errors import InputError, JobError, OutputError, PantherSegError, first_few, os_reason
from pantherseg.events import Event, EventCode
from pantherseg.files import leftovers, remove_file
from pantherseg.grand_challenge.job import REPORT, find_job
from pantherseg.logs import one_line, say_error, stage
from pantherseg.machine.deadline import Deadline
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

logger = logging.getLogger(__name__)

# A small volume that is segmented before the server says that it works.
TRIAL = Grid((8, 16, 16), (4.0, 3.0, 3.0))
# The platform waits 300 s for a server. Networks that do not run within this time are tried by the first job.
TRIAL_SECONDS = 120.0
# The events of that volume that also hold for the jobs.
ABOUT_MODELS = {
    EventCode.NO_CUDA,
    EventCode.ORIENTATION_ASSUMED,
    EventCode.TUMOUR_LABEL_NAMED_PANCREAS,
    EventCode.NO_LOCALIZER,
    EventCode.LOCALIZER_FAILED,
    EventCode.FOLD_LEFT_OUT,
    EventCode.DEVICE_FAILED,
}
# A job ends soon after the recipe's time budget; one that takes this many times as long will not end.
OVERDUE = 2.0
# How long to wait for clients that do not read their answer.
CLOSING_SECONDS = 2


def serve(session: Session, input_folder: Path, output_folder: Path, *, host: str, port: int) -> None:
    """Serve jobs until SIGTERM or SIGINT; the process ends at once where a job is running then.

    Raises PantherSegError where the address cannot be used, and what `Session.load` or a first small volume raises.
    """
    listener = _listener(host, port)
    logger.info("listening on %s:%d", *listener.getsockname()[:2])
    # Their warnings about faulty requests would be written by the thread that answers `/health`, which must not wait
    # for stderr.
    for library in ("uvicorn", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    worker = Worker(session, input_folder, output_folder)
    config = uvicorn.Config(
        application(worker),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = _Server(config, worker)
    worker.load(if_it_fails=server.stop)
    server.run(sockets=[listener])
    if worker.load_error is not None:
        raise worker.load_error


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = os_reason(error).partition(" (while")[0] if isinstance(error, OSError) else "not a name of a machine"
        problem = f"the server cannot use this address: {reason}"
        raise PantherSegError(f"{host}:{port}", problem, hint="give another --host or --port") from error


def application(worker: Worker) -> Starlette:
    """Return the web application over a worker."""

    async def health(_: Request) -> JSONResponse:
        if reason := worker.unusable_because():
            return JSONResponse({"error": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "busy" if worker.is_busy else "ready"}, HTTPStatus.OK)

    async def invoke(_: Request) -> JSONResponse:
        status, reason = await worker.run()
        return JSONResponse({"error": reason} if reason else {"status": "done"}, status)

    made = Starlette(routes=[Route("/health", health), Route("/invoke", invoke, methods=["POST"])])
    made.router.redirect_slashes = False
    return made


class Worker:
    """Loads the models of a session and runs its jobs, one at a time.

    All of it happens in one thread, because OpenVINO and torch keep memory for each thread that calls them.
    load_error: why the models cannot be used.
    """

    def __init__(self, session: Session, input_folder: Path, output_folder: Path) -> None:
        self._session, self._input, self._output = session, input_folder, output_folder
        self._thread = ThreadPoolExecutor(1)
        self._refusal = "the models are being loaded"
        self._problem = ""
        self._job_began: float | None = None
        self._is_trying = True
        self.load_error: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the models are being loaded or tried, or a job is running."""
        return self._is_trying or self._job_began is not None

    def unusable_because(self) -> str:
        """Return in one line why a job would not succeed now; empty where it may."""
        budget, began = self._session.recipe.time_budget_s, self._job_began
        if began is not None and (seconds := time.monotonic() - began) > OVERDUE * budget:
            return f"a job has been running for {seconds:.0f} s, with a time budget of {budget:g} s"
        return self._refusal or self._problem

    def load(self, *, if_it_fails: Callable[[], None]) -> None:
        """Load the models in the background. if_it_fails: is called in that thread, after `load_error` is set."""
        self._thread.submit(self._load, if_it_fails)

    def refuse_jobs(self, reason: str) -> None:
        """Refuse all further jobs for this reason."""
        self._refusal = reason

    def _load(self, if_it_fails: Callable[[], None]) -> None:
        try:
            self._session.load()
            with stage("trial") as remarks:
                happened = try_models(self._session)
                remarks.append("the models are ready")
            for event in happened:
                logger.warning("%s", event)
            gc.collect()
            gc.freeze()  # what was loaded stays, so the collections after each job need not look at it
            self._refusal = ""
        except Exception as error:  # whatever it is, no job can be run
            self._refusal, self.load_error = one_line(error), error
            if_it_fails()
        finally:
            self._is_trying = False

    async def run(self) -> tuple[int, str]:
        """Run a job and return the status of the answer, and the reason where it failed.

        A second request is refused while a job is running: its turn would come when the platform, which sends one at a
        time, may have emptied the folders or filled them for another job.
        """
        if reason := self._refusal or ("another job is running" if self._job_began is not None else ""):
            hint = "send it again when GET /health answers 200 with the status ready"
            return HTTPStatus.SERVICE_UNAVAILABLE, str(PantherSegError("POST /invoke", reason, hint=hint))
        self._job_began = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run)

    def _run(self) -> tuple[int, str]:
        try:
            run_fresh_job(self._session, self._input, self._output)
        except Exception as error:  # whatever is wrong with one job, the next ones are run
            say_error(error)
            if isinstance(error, InputError | JobError):
                return HTTPStatus.UNPROCESSABLE_ENTITY, one_line(error)
            if not isinstance(error, OutputError):
                self._is_trying = True
                self._thread.submit(self._try_again)  # the answer does not wait for it
            return HTTPStatus.INTERNAL_SERVER_ERROR, one_line(error)
        else:
            self._problem = ""
            return HTTPStatus.CREATED, ""
        finally:
            gc.collect()  # an error may refer to itself, and its traceback to the arrays of the job
            self._job_began = None

    def _try_again(self) -> None:
        """Find out whether the models can still be used after a failure."""
        try:
            try_models(self._session)
            self._problem = ""
        except Exception as error:
            self._problem = one_line(error)
        finally:
            self._is_trying = False


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def stop(self) -> None:
        """Close the connections and return from `run`."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End on a signal."""
        # Not here: a signal may come between any two steps of a request.
        asyncio.get_running_loop().call_soon_threadsafe(self._end, sig)

    def _end(self, sig: int) -> None:
        if self._worker.is_busy:
            os._exit(128 + sig)  # a thread cannot be stopped; files that it was writing have hidden names
        self._worker.refuse_jobs("the server is ending")
        self.stop()


def run_fresh_job(session: Session, input_folder: Path, output_folder: Path) -> None:
    """Run a job such that no result of another one can be taken for its own, even if it fails.

    Raises what `find_job` and `run_case` raise; OutputError if the mask's folder holds anything else.
    """
    remove_file(output_folder / REPORT)
    source, output = find_job(input_folder, output_folder, session.recipe.sockets)
    remove_file(output.mask)
    _refuse_other_masks(output)
    run_case(source, session, output)


def _refuse_other_masks(output: CaseOutput) -> None:
    """Raise OutputError if the mask would not be alone in its folder, which the platform refuses."""
    folder = output.mask.parent
    others = set(folder.iterdir()) - set(leftovers(output.mask)) if folder.is_dir() else set()
    if others:
        found = first_few(sorted(path.name for path in others))
        hint = "empty the output folder before each job"
        raise OutputError(folder, expected="no mask of another job", found=found, hint=hint)


def try_models(session: Session) -> list[Event]:
    """Segment a small volume, by which the networks are verified, compiled and run. Raises what `segment` raises.

    What a job may lack is no failure here either, such as a fold that the recipe allows to be missing; the events about
    models and device are returned. Nothing else is told: what is said about a volume without anatomy would mislead.
    """
    from pantherseg.pipeline import segment  # imports what runs networks, for which the server need not wait

    values = np.linspace(0, 100, math.prod(TRIAL.shape), dtype=np.float32).reshape(TRIAL.shape)
    logging.disable(logging.WARNING)
    try:
        events = segment(Volume(values, TRIAL), session, deadline=Deadline.after(TRIAL_SECONDS)).events
        return [event for event in events if event.code in ABOUT_MODELS]
    finally:
        logging.disable(logging.NOTSET)
