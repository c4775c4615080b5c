"""The server of the `invoke` contract: real processes that are asked over HTTP, and what they leave behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CopiedBundle, SmallDisk, flip_a_bit, pretend_to_have_a_gpu, valid_report
from pantherseg.errors import LostDeviceError
from pantherseg.grand_challenge import main as entry_point
from pantherseg.grand_challenge import server as server_module
from pantherseg.grand_challenge.check import check_output
from pantherseg.inference.predictor import Predictor
from pantherseg.io import write_volume
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

SOCKETS = load_recipe(task_recipe(1)).sockets
MASKS = f"images/{SOCKETS.output}"
SMALL = Grid((12, 24, 24), (4.0, 3.0, 3.0))
MEDIUM = Grid((24, 64, 64), (4.0, 3.0, 3.0))
LARGE = Grid((40, 104, 128), (4.0, 3.0, 3.0))
# What the platform allows for an answer of /health, what we want, and its time between SIGTERM and SIGKILL.
HEALTH_LIMIT_SECONDS, HEALTH_SECONDS, SIGNAL_SECONDS = 10, 1, 5
TIMEOUT_SECONDS = 120
AGAIN = "send it again when GET /health answers 200 with the status ready"
READY, BUSY = {"status": "ready"}, {"status": "busy"}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Answer:
    """An answer of the server: the status, the JSON document, and how long it took."""

    status: int
    content: dict[str, str]
    seconds: float

    @property
    def error(self) -> str:
        """The reason, which must be one line."""
        assert list(self.content) == ["error"]
        (line,) = self.content["error"].splitlines()
        return line


class Folders:
    """A job's folders as the platform keeps them: the input is a link, and both are emptied between jobs."""

    def __init__(self, root: Path) -> None:
        self.root, self.input, self.output, self._stores = root, root / "input", root / "output", root / "stores"
        self.output.mkdir(parents=True)
        self.number = 0

    def give(self, volume: Volume, name: str = "") -> Path:
        """Replace the job by one with this volume, empty the output, and return the path of the volume."""
        for path in self.output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.add(volume, name)

    def add(self, volume: Volume, name: str = "") -> Path:
        """Replace the job, and leave the output as it is."""
        shutil.rmtree(self._stores, ignore_errors=True)
        self.number += 1
        store = self._stores / str(self.number)
        place = f"images/{SOCKETS.input}"
        write_volume(volume, store / place / f"{name or f'case-{self.number}'}.mha")
        self.input.unlink(missing_ok=True)
        self.input.symlink_to(store)
        (path,) = (self.input / place).iterdir()
        return path

    @property
    def files(self) -> list[str]:
        """The names of all files in the output, hidden ones too."""
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file())

    def mask(self) -> bytes:
        """Return the content of the mask, after a check of the output by the platform's rules."""
        assert [verdict for verdict in check_output(self.output, SOCKETS, job=self.input) if not verdict.kept] == []
        assert len(self.files) == 2
        (path,) = (self.output / MASKS).iterdir()
        return path.read_bytes()

    def report(self) -> dict[str, Any]:
        """Return the report, after a check against its schema."""
        return valid_report(self.output / "results.json")


class Server:
    """A process of `inference.py --serve` on a free port of this machine."""

    def __init__(self, folders: Folders, models: Path, recipe: Path | None = None) -> None:
        self.folders, self.stderr = folders, folders.root / "stderr"
        self.temporary = folders.root / "temporary"
        self.temporary.mkdir(exist_ok=True)
        script = (
            "import sys, pathlib, pantherseg.grand_challenge as gc\nsys.exit(gc.main(pathlib.Path(sys.argv.pop(1))))"
        )
        start = [ROOT / "Task1" / "inference.py"] if recipe is None else ["-c", script, recipe]
        options = ["--serve", "--host", "127.0.0.1", "--port", "0", "--model", models]
        words = [sys.executable, *start, *options, "--input", folders.input, "--output", folders.output]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen([*map(str, words)], stderr=stderr, env=environment, start_new_session=True)
        try:
            self.port = int(self._wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            self.close()
            raise

    def _wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + TIMEOUT_SECONDS
        while (found := re.search(pattern, self.stderr.read_text())) is None:
            assert time.monotonic() < end
            assert self.process.poll() is None, self.stderr.read_text()
            time.sleep(0.01)
        return found

    @property
    def last_line(self) -> str:
        """The last line of stderr that is not empty."""
        return [line for line in self.stderr.read_text().splitlines() if line.strip()][-1]

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send a request and return the answer."""
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers["Content-Type"] == "application/json"
        return Answer(response.status, json.loads(content) if is_json else {}, time.monotonic() - start)

    def health(self) -> Answer:
        """Ask for the health, which must be answered at once."""
        answer = self.ask("GET", "/health")
        assert answer.seconds < HEALTH_LIMIT_SECONDS
        return answer

    def wait_until(self, content: dict[str, str]) -> list[Answer]:
        """Return the answers of /health up to the first with this content."""
        answers = [self.health()]
        end = time.monotonic() + TIMEOUT_SECONDS
        while answers[-1].content != content:
            assert time.monotonic() < end, answers[-1]
            time.sleep(0.02)
            answers.append(self.health())
        return answers

    def wait_until_ready(self) -> list[Answer]:
        """Return the answers of /health up to the first 200."""
        return self.wait_until(READY)

    def invoke(self) -> Answer:
        """Ask for a job, with a body that makes no sense."""
        return self.ask("POST", "/invoke", b"{")

    def mask_of(self, volume: Volume, name: str = "") -> bytes:
        """Run a job that must end well, and return its mask."""
        self.folders.give(volume, name)
        answer = self.invoke()
        assert (answer.status, answer.content) == (201, {"status": "done"}), self.stderr.read_text()
        return self.folders.mask()

    def memory_mb(self) -> float:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code, which must come in time, with no process left."""
        self.process.send_signal(number)
        code = self.process.wait(SIGNAL_SECONDS)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        return code

    def close(self) -> None:
        """End the process where it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Background(threading.Thread):
    """A job that is asked for in the background."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server, self.answer = server, Answer(0, {}, 0)
        self.start()

    def run(self) -> None:
        with suppress(ConnectionError, http.client.HTTPException):  # where the server ends before the job
            self.answer = self._server.invoke()

    def wait_until_busy(self) -> None:
        """Wait until the server says that the job is running."""
        self._server.wait_until(BUSY)


StartServer = Callable[..., Server]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "job")
    made.give(noise(SMALL))
    return made


@pytest.fixture
def models(copied_bundle: CopiedBundle) -> Path:
    """A folder of models with one fold."""
    return with_folds(copied_bundle, "0")


def with_folds(bundle: CopiedBundle, *folds: str) -> Path:
    """Leave only some folds of the demo bundle, and return the folder of models that it is in."""
    checksums = json.loads((DEMO_WEIGHTS / "task1" / MANIFEST).read_text())["sha256"]
    others = [f"fold_{fold}.safetensors" for fold in range(5) if str(fold) not in folds]
    bundle.change(folds=list(folds), sha256={name: sha for name, sha in checksums.items() if name not in others})
    return bundle.path.parent


@pytest.fixture
def start(folders: Folders, models: Path) -> Iterator[StartServer]:
    """Return a function that starts a server, with a recipe if given; servers that still run are ended."""
    servers: list[Server] = []

    def started(recipe: Path | None = None) -> Server:
        servers.append(Server(folders, models, recipe))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


@pytest.fixture
def server(start: StartServer) -> Server:
    """A server that is ready."""
    made = start()
    made.wait_until_ready()
    return made


def noise(grid: Grid, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(100, 20, grid.shape).astype(np.float32), grid)


def loaded_worker(session: Session, folders: Folders) -> server_module.Worker:
    """Return a worker in this process that is ready."""
    worker = server_module.Worker(session, folders.input, folders.output)
    worker.load(if_it_fails=lambda: None)
    wait_for(worker)
    return worker


def wait_for(worker: server_module.Worker) -> None:
    """Wait until a worker has loaded its models, or has tried them after a failure."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while worker.is_busy:
        assert time.monotonic() < end
        time.sleep(0.01)


def limited(tmp_path: Path, seconds: float) -> Path:
    """Return Task 1's recipe with another time budget."""
    path = tmp_path / "recipe.toml"
    path.write_text(f"time_budget_s = {seconds}\n{task_recipe(1).read_text()}")
    return path


@pytest.mark.fault(
    "server", "several jobs in one process, /input a link that is replaced between them", "the masks of single runs"
)
def test_several_jobs_give_the_masks_of_single_runs(server: Server, models: Path, pancreas: Volume) -> None:
    folders = server.folders
    turned = Volume(np.ascontiguousarray(pancreas.array[::-1]), pancreas.grid)
    for volume in (pancreas, noise(SMALL), turned, pancreas):
        served = server.mask_of(volume, "uuid")
        report = folders.report()
        shutil.rmtree(folders.output)
        options = ["--input", folders.input, "--output", folders.output, "--model", models]
        assert entry_point(task_recipe(1), [str(word) for word in options]) == 0
        assert folders.mask() == served
        own = folders.report()
        assert {**report, "seconds": 0, "peak_memory_mb": 0} == {**own, "seconds": 0, "peak_memory_mb": 0}
        assert not any(server.temporary.iterdir())


@pytest.mark.fault("server", "`GET /health` while the models are loaded", "503 with the reason, then 200")
def test_health_says_when_the_models_are_ready(start: StartServer) -> None:
    server = start()
    answers = server.wait_until_ready()
    assert answers[-1].content == READY
    before = answers[:-1]
    assert before, "the first request comes before the models are loaded"
    assert {answer.status for answer in before} == {503}
    assert {answer.error for answer in before} == {"the models are being loaded"}
    assert statistics.median(answer.seconds for answer in answers) < HEALTH_SECONDS


@pytest.mark.fault("server", "`POST /invoke` while the models are loaded", "503 with the reason, and no result")
def test_refuses_a_job_while_the_models_are_loaded(start: StartServer) -> None:
    server = start()
    answer = server.invoke()
    assert (answer.status, answer.error) == (503, f"POST /invoke: the models are being loaded; {AGAIN}")
    assert server.folders.files == []
    server.wait_until_ready()
    assert server.invoke().status == 201


@pytest.mark.fault("server", "two requests at once", "a mask for the first, 503 for the second")
def test_refuses_a_second_job_while_one_runs(server: Server) -> None:
    server.folders.give(noise(LARGE))
    first = Background(server)
    first.wait_until_busy()
    second = server.invoke()
    first.join()
    assert (second.status, second.error) == (503, f"POST /invoke: another job is running; {AGAIN}")
    assert second.seconds < HEALTH_LIMIT_SECONDS
    assert first.answer.status == 201
    server.folders.mask()


@pytest.mark.fault("server", "`GET /health` while a job runs", "200 at once")
def test_answers_while_a_job_runs(server: Server) -> None:
    server.folders.give(noise(LARGE))
    job = Background(server)
    job.wait_until_busy()
    answers = []
    while job.is_alive():
        answers.append(server.health())
        time.sleep(0.05)
    assert job.answer.status == 201
    assert {answer.status for answer in answers} == {200}
    assert statistics.median(answer.seconds for answer in answers) < HEALTH_SECONDS


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(name, marks=pytest.mark.fault("server", f"{name} between two good jobs", must))
        for name, must in {
            "a truncated volume": "422 with the reason, also as the last line of stderr; then a mask",
            "a job without a volume": "422 with the reason, also as the last line of stderr; then a mask",
            "no input folder": "422 with the reason, also as the last line of stderr; then a mask",
            "an output folder that cannot be used": "500 with the reason, also as the last line of stderr; then a mask",
        }.items()
    ],
)
def test_a_job_that_fails_leaves_the_server_to_the_next(server: Server, damage: str) -> None:
    folders = server.folders
    expected = server.mask_of(noise(SMALL))
    volume = folders.give(noise(SMALL))
    match damage:
        case "a truncated volume":
            volume.write_bytes(volume.read_bytes()[:-9])
        case "a job without a volume":
            volume.unlink()
        case "no input folder":
            folders.input.unlink()
        case _:
            (folders.output / "images").write_bytes(b"a file")
    answer = server.invoke()
    assert answer.status == (500 if damage.startswith("an output") else 422)
    assert server.last_line == f"error: {answer.error}"
    assert str(folders.output.parent) in answer.error
    assert "Traceback" not in server.stderr.read_text()
    assert [name for name in folders.files if name != "images"] == []
    assert server.health().content == READY
    assert server.mask_of(noise(SMALL)) == expected


@pytest.mark.fault("server", "/output is read-only, then not", "500 with the reason, then a mask")
def test_an_output_folder_that_is_read_only(start: StartServer, folders: Folders, small_disk: SmallDisk) -> None:
    folders.output = small_disk(8 << 20) / "output"
    folders.output.mkdir()
    server = start()
    server.wait_until_ready()
    subprocess.run(["mount", "-o", "remount,ro", str(folders.output.parent)], check=True)
    answer = server.invoke()
    assert answer.status == 500
    assert "Read-only file system" in answer.error
    assert server.last_line == f"error: {answer.error}"
    subprocess.run(["mount", "-o", "remount,rw", str(folders.output.parent)], check=True)
    assert server.health().status == 200
    server.mask_of(noise(SMALL))


@pytest.mark.fault(
    "server", "/output still holds an earlier job's mask", "500 with the reason, no report, and the mask as it was"
)
def test_refuses_to_write_beside_the_mask_of_another_job(server: Server) -> None:
    folders = server.folders
    earlier = server.mask_of(noise(SMALL), "earlier")
    folders.add(noise(SMALL, seed=1), "later")
    answer = server.invoke()
    assert answer.status == 500
    expected = "expected no mask of another job, found earlier.mha; empty the output folder before each job"
    assert answer.error == f"{folders.output / MASKS}: {expected}"
    assert folders.files == [f"{MASKS}/earlier.mha"]
    assert (folders.output / MASKS / "earlier.mha").read_bytes() == earlier


@pytest.mark.fault(
    "server", "/output still holds results of the same name, and the job fails", "422, and no older result"
)
def test_older_results_of_the_same_name_are_replaced_or_removed(server: Server) -> None:
    folders = server.folders
    server.mask_of(noise(SMALL), "uuid")
    volume = folders.add(noise(MEDIUM), "uuid")
    assert server.invoke().status == 201
    folders.mask()
    volume.write_bytes(volume.read_bytes()[:-9])
    assert server.invoke().status == 422
    assert folders.files == []


@pytest.mark.fault("server", "the models {id}", "exit code 1, the reason as stderr's last line; health is never 200")
@pytest.mark.parametrize("damaged", [True, False], ids=["have a fold with a changed bit", "are missing"])
def test_ends_where_the_models_cannot_be_loaded(start: StartServer, models: Path, damaged: bool) -> None:
    if damaged:
        flip_a_bit(models / "task1" / "fold_0.safetensors")
    else:
        shutil.rmtree(models)
    server = start()
    statuses = set()
    with suppress(ConnectionError, http.client.HTTPException):
        while True:
            statuses.add(server.health().status)
    assert server.process.wait(TIMEOUT_SECONDS) == 1
    assert statuses <= {503}
    assert re.match(rf"error: {re.escape(str(models))}.*: expected .+, found .+", server.last_line)
    assert "Traceback" not in server.stderr.read_text()


@pytest.mark.fault("server", "one of four folds has a changed bit", "it serves, and says at the start what is left out")
def test_says_at_the_start_which_fold_is_left_out(start: StartServer, copied_bundle: CopiedBundle) -> None:
    with_folds(copied_bundle, "0", "1", "2", "3")
    flip_a_bit(copied_bundle.path / "fold_1.safetensors")
    server = start()
    server.wait_until_ready()
    assert "fold_left_out" in server.stderr.read_text()


@pytest.mark.fault(
    "server",
    "requests that are cut short, while a log is not read",
    "200 for health and an end by SIGTERM",
)
def test_answers_although_nobody_reads_the_log(server: Server) -> None:
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for connection in connections:
        connection.sendall(b"no request\r\n\r\n" if connection.fileno() % 2 else b"GET /health HTTP/1.1\r\nHo")
    lines = len(server.stderr.read_text().splitlines())
    assert server.health().content == READY
    assert len(server.stderr.read_text().splitlines()) == lines
    for connection in connections:
        connection.close()
    assert server.signal(signal.SIGTERM) == 0


@pytest.mark.fault(
    "server",
    "the models are removed while it serves, then put back",
    "500 with the reason and 503 for health; then a mask and 200",
)
def test_says_that_the_models_cannot_be_used(server: Server, models: Path) -> None:
    kept = models.rename(models.with_name("kept"))
    server.folders.give(noise(SMALL))
    answer = server.invoke()
    assert answer.status == 500
    assert str(models) in answer.error
    assert server.last_line == f"error: {answer.error}"
    assert str(models) in server.wait_until({"error": answer.error})[-1].error
    assert server.health().status == 503
    server.folders.give(noise(SMALL))
    assert server.invoke().status == 500
    kept.rename(models)
    server.folders.give(noise(SMALL))
    assert server.invoke().status == 201
    assert server.health().content == READY


@pytest.mark.fault(
    "server", "{number} while {stage}, then another server", "an end within 5 s and no result; then a mask"
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["models are loaded", "a job runs"])
def test_ends_on_a_signal(start: StartServer, folders: Folders, number: signal.Signals, stage: str) -> None:
    server = start()
    if stage == "a job runs":
        server.wait_until_ready()
        folders.give(noise(LARGE))
        Background(server).wait_until_busy()
    assert server.signal(number) in (-number, 128 + number)
    assert [name for name in folders.files if not Path(name).name.startswith(".")] == []
    leftover = folders.output / MASKS / f".{server.process.pid}.uuid.mha"  # what is left where a mask was being written
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.touch()
    folders.add(noise(SMALL), "uuid")
    after = start()
    after.wait_until_ready()
    assert after.invoke().status == 201
    folders.mask()


@pytest.mark.fault("server", "SIGTERM between two jobs", "exit code 0, and no temporary file")
def test_ends_well_between_jobs(server: Server) -> None:
    server.mask_of(noise(SMALL))
    assert server.signal(signal.SIGTERM) == 0
    assert list(server.temporary.iterdir()) == []
    assert "Traceback" not in server.stderr.read_text()


@pytest.mark.fault("server", "`POST /invoke` just after SIGTERM", "exit code 0 within 5 s, no mask and no traceback")
def test_refuses_a_job_that_comes_after_the_signal(server: Server) -> None:
    server.folders.give(noise(LARGE))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
    connection.request("GET", "/health")
    assert connection.getresponse().read()  # the connection is kept open
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.005)
    with suppress(ConnectionError, http.client.HTTPException):
        connection.request("POST", "/invoke")
        assert connection.getresponse().status == 503
    assert server.process.wait(SIGNAL_SECONDS) == 0
    connection.close()
    assert server.folders.files == []
    assert "Traceback" not in server.stderr.read_text()


@pytest.mark.fault("server", "a job that exceeds the time budget, then a small one", "a mask with events; then without")
def test_the_time_budget_holds_for_each_job(start: StartServer, tmp_path: Path) -> None:
    server = start(limited(tmp_path, 6))
    server.wait_until_ready()
    server.mask_of(noise(Grid((48, 320, 320), (4.0, 3.0, 3.0))))
    assert "tiles_left_out" in [event["code"] for event in server.folders.report()["events"]]
    server.mask_of(noise(SMALL))
    assert [event["code"] for event in server.folders.report()["events"]] in ([], ["empty_mask_rescued"])


@pytest.mark.fault("server", "a job that takes over twice its time budget", "503 for health until it ends")
def test_says_that_a_job_does_not_end(start: StartServer, tmp_path: Path) -> None:
    server = start(limited(tmp_path, 0.001))
    server.wait_until_ready()
    server.folders.give(noise(LARGE))
    job = Background(server)
    answers = []
    while job.is_alive():
        answers.append(server.health())
    late = [answer for answer in answers if answer.status != 200]
    assert {answer.status for answer in late} == {503}
    pattern = r"a job has been running for \d+ s, with a time budget of 0\.001 s"
    assert all(re.fullmatch(pattern, answer.error) for answer in late)
    assert job.answer.status == 201
    assert server.health().status == 200


@pytest.mark.fault(
    "server", "a job with too little memory, then a small one", "422 or 500 with the reason; then a mask"
)
def test_a_job_without_enough_memory_leaves_the_server_to_the_next(server: Server) -> None:
    data = re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert data is not None
    limit = int(data[1]) * 1024 + (160 << 20)
    server.folders.give(Volume(np.ones((160, 640, 640), np.float32), Grid((160, 640, 640), (2.0, 1.0, 1.0))))
    resource.prlimit(server.process.pid, resource.RLIMIT_DATA, (limit, limit))
    answer = server.invoke()
    assert answer.status in (422, 500)
    assert "memory" in answer.error.lower()
    assert server.last_line == f"error: {answer.error}"
    assert server.health().content == READY
    server.mask_of(noise(SMALL))


@pytest.mark.fault("server", "an unexpected {error} in a job", "500 with the reason, and 200 for health")
@pytest.mark.parametrize("error", [MemoryError, RuntimeError, OSError])
def test_an_unexpected_error_leaves_the_server_to_the_next_job(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folders: Folders,
    one_fold: Recipe,
    error: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        raise error("what happened")

    worker = loaded_worker(Session(one_fold, DEMO_WEIGHTS, many_cases=True), folders)
    with monkeypatch.context() as patch:
        patch.setattr(server_module, "run_case", fail)
        status, reason = asyncio.run(worker.run())
    assert (status, "what happened" in reason) == (500, True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"error: {reason}"
    assert "Traceback (most recent call last):" in lines, "for developers"
    wait_for(worker)
    assert worker.unusable_because() == ""
    assert asyncio.run(worker.run()) == (201, "")
    folders.mask()


@pytest.mark.fault(
    "server", "the GPU is lost in a job", "the CPU's mask and an event, also for the next job; 200 for health"
)
def test_a_lost_device_leaves_the_server_to_the_next_job(
    monkeypatch: pytest.MonkeyPatch, folders: Folders, one_fold: Recipe
) -> None:
    session = Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)
    worker = loaded_worker(session, folders)
    pretend_to_have_a_gpu(session, monkeypatch)
    logits = Predictor.logits

    def fails_on_the_gpu(predictor: Predictor, *arguments: Any) -> object:
        if predictor.backend.device == "cuda":
            raise LostDeviceError("cuda", "the device failed")
        return logits(predictor, *arguments)

    monkeypatch.setattr(Predictor, "logits", fails_on_the_gpu)
    for _ in range(2):
        folders.give(noise(SMALL))
        assert asyncio.run(worker.run()) == (201, "")
        folders.mask()
        assert "device_failed" in [event["code"] for event in folders.report()["events"]]
        assert worker.unusable_because() == ""


@pytest.mark.fault("server", "a client that hangs up while its job runs", "the mask all the same, and 200 for health")
def test_a_client_that_hangs_up(server: Server) -> None:
    server.folders.give(noise(LARGE))
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/invoke")
    server.wait_until(BUSY)
    connection.close()
    server.wait_until(READY)
    server.folders.mask()


def test_answers_only_the_requests_of_the_contract(server: Server) -> None:
    requests = (("GET", "/invoke"), ("POST", "/health"), ("GET", "/"), ("GET", "/health/"), ("POST", "/invoke/"))
    assert [server.ask(*words).status for words in requests] == [405, 405, 404, 404, 404]
    assert server.folders.files == []


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_refuses_a_port_that_does_not_exist(capsys: pytest.CaptureFixture[str], port: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        entry_point(task_recipe(1), ["--serve", "--port", port])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"--port: expected a number from 0 to 65535, found {port}")


@pytest.mark.fault("server", "the port is in use", "exit code 1, and the reason as stderr's last line")
def test_refuses_a_port_that_is_in_use(capsys: pytest.CaptureFixture[str], folders: Folders, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--serve", "--host", "127.0.0.1", "--port", str(port), "--model", str(models)]
        assert entry_point(task_recipe(1), options) == 1
    reason = f"error: 127.0.0.1:{port}: the server cannot use this address: Address already in use"
    assert capsys.readouterr().err.splitlines()[-1].startswith(reason)


@pytest.mark.fault("server", "the web server's packages are not installed", "an error; single jobs run all the same")
def test_a_single_job_needs_no_web_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folders: Folders, models: Path
) -> None:
    monkeypatch.delitem(sys.modules, "pantherseg.grand_challenge.server", raising=False)
    for name in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    options = ["--input", str(folders.input), "--output", str(folders.output), "--model", str(models)]
    assert entry_point(task_recipe(1), options) == 0
    folders.mask()
    assert entry_point(task_recipe(1), [*options, "--serve"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --serve: expected the packages starlette and uvicorn, found")
    assert last.endswith("pip install 'pantherseg[serve]'")


@pytest.mark.fault("server", "20 jobs of two sizes, some of them damaged", "memory within 5 % from the fifth on")
def test_memory_does_not_grow_from_job_to_job(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    megabytes = []
    for number in range(1, 21):
        volume = server.folders.give(noise((SMALL, MEDIUM)[number % 2], seed=number))
        if number % 5 == 4:
            volume.write_bytes(volume.read_bytes()[:-9])
        assert server.invoke().status == (422 if number % 5 == 4 else 201)
        megabytes.append(server.memory_mb())
    with capsys.disabled():
        print(f"\nresident memory after jobs 1 to 20, MB: {' '.join(f'{value:.0f}' for value in megabytes)}")
    assert megabytes[19] == pytest.approx(megabytes[4], rel=0.05)
