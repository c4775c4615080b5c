"""How the commands end under adverse conditions: the exit code, one line with the reason, and no incomplete result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from conftest import CopiedBundle, SmallDisk, valid_report
from pantherseg.grand_challenge.check import check_output
from pantherseg.io import read_labels, write_volume
from pantherseg.models.find import ModelFolder
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import ROOT, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.volume import Grid, Volume

pytestmark = pytest.mark.slow

SOCKETS = load_recipe(task_recipe(1)).sockets
GRID = Grid((12, 24, 24), (4.0, 3.0, 3.0))
MASKS = f"images/{SOCKETS.output}"
LONGEST_LINE = 8192
SIGNAL_SECONDS = 5
TIMEOUT_SECONDS = 120
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass
class Job:
    """A job folder with one volume, an output folder, and a bundle of one fold."""

    input: Path
    output: Path
    models: Path

    @property
    def volume(self) -> Path:
        """The volume's file."""
        (path,) = (self.input / "images" / SOCKETS.input).iterdir()
        return path

    def command(self, *before: str | Path) -> list[str]:
        """Return the command of the container, preceded by other words."""
        options = ["--input", self.input, "--output", self.output, "--model", self.models]
        return [str(word) for word in (*before, sys.executable, ROOT / "Task1" / "inference.py", *options)]

    def damage(self) -> None:
        """Make the volume unreadable."""
        self.volume.write_bytes(self.volume.read_bytes()[:-9])

    def check_has_mask(self) -> None:
        """Check that the output is valid by the platform's rules, and that the mask is not empty."""
        assert [verdict for verdict in check_output(self.output, SOCKETS, job=self.input) if not verdict.kept] == []
        (mask,) = (self.output / MASKS).iterdir()
        assert read_labels(mask).array.any()

    def check_has_no_result(self, *, hidden_files: bool = False) -> None:
        """Check that the output folder holds no files. hidden_files: apart from hidden ones."""
        files = [path for path in self.output.rglob("*") if path.is_file()]
        assert [path for path in files if not (hidden_files and path.name.startswith("."))] == []


@pytest.fixture
def job(tmp_path: Path, copied_bundle: CopiedBundle) -> Job:
    checksums = json.loads((copied_bundle.path / MANIFEST).read_text())["sha256"]
    others = [f"fold_{fold}.safetensors" for fold in range(1, 5)]
    copied_bundle.change(folds=["0"], sha256={name: sha for name, sha in checksums.items() if name not in others})
    made = Job(tmp_path / "input", tmp_path / "output", copied_bundle.path.parent)
    noise = np.random.default_rng(0).normal(100, 20, GRID.shape).astype(np.float32)
    write_volume(Volume(noise, GRID), made.input / "images" / SOCKETS.input / "uuid.mha")
    made.output.mkdir()
    return made


@pytest.fixture
def raw_models(tmp_path: Path, demo_folder: ModelFolder) -> Path:
    """Return a folder with an nnU-Net model of one fold, which is packed when it is used."""
    folder = tmp_path / "raw" / "task1"
    shutil.copytree(demo_folder.path, folder, ignore=shutil.ignore_patterns("fold_[1234]"))
    return folder.parent


@dataclass
class End:
    """How a process ended."""

    code: int
    stderr: bytes

    @property
    def lines(self) -> list[str]:
        """The lines of stderr, which must be UTF-8 and short."""
        lines = self.stderr.decode("utf-8").splitlines()
        assert all(len(line.encode()) < LONGEST_LINE for line in lines)
        return lines

    def check_is_error(self, *named: object) -> None:
        """Check that the last line names the cause, and that there is no traceback."""
        assert self.code == 1, self.lines
        last = [line for line in self.lines if line.strip()][-1]
        assert re.match(r"error: .+: .+", last), self.lines
        assert all(str(name) in last for name in named), last
        assert "Traceback" not in self.stderr.decode()


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> End:
    """Run a command. environment, without: variables that are added to the environment, and removed from it."""
    variables = {key: value for key, value in os.environ.items() if key not in without} | dict(environment or {})
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, stderr=stderr, check=False, timeout=TIMEOUT_SECONDS
    )
    return End(done.returncode, done.stderr or b"")


def check_makes_mask(job: Job, command: Sequence[str], **options: Any) -> None:
    """Run a job's command, which must end well with a valid mask."""
    end = run(command, **options)
    assert end.code == 0, end.lines
    job.check_has_mask()


class BackgroundCommand:
    """A command that runs in the background, in its own process group."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env={**os.environ, **environment}, start_new_session=True
        )

    def wait_for_line(self, start: bytes) -> None:
        """Wait for a line of stderr with this start."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(start):
                return
        pytest.fail(f"ended with {self.process.wait()} before {start!r}")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is met while the command runs."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.01)

    def end_by(self, number: signal.Signals) -> None:
        """Send a signal and check that it ends the process, and all that it has started, within a few seconds."""
        self.process.send_signal(number)
        self.process.communicate(timeout=SIGNAL_SECONDS)
        assert self.process.returncode == -number
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)


@pytest.mark.fault(
    "ends",
    "{number} while {stage}; then a second run",
    "an immediate end and no result; then a mask, and the temporary files removed",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["networks run", "models are packed"])
def test_ends_on_a_signal(job: Job, raw_models: Path, number: signal.Signals, stage: str, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    if stage == "models are packed":
        job.models = raw_models
    started = BackgroundCommand(job.command(), TMPDIR=str(temporary))
    if stage == "models are packed":
        started.wait_until(lambda: any(temporary.glob(".pantherseg-*/*")))
    else:
        started.wait_for_line(b"models ")
    started.end_by(number)
    job.check_has_no_result(hidden_files=True)
    assert all(path.name.startswith(".") for path in temporary.iterdir())
    check_makes_mask(job, job.command(), environment={"TMPDIR": str(temporary)})
    assert list(temporary.iterdir()) == []


@pytest.mark.fault(
    "ends", "SIGTERM while `pantherseg predict` runs, Task {task}", "an immediate end, and no process left"
)
@pytest.mark.parametrize("task", [1, 2])
def test_predict_ends_on_a_signal(job: Job, tmp_path: Path, task: int) -> None:
    words = ["-m", "pantherseg", "predict", str(job.volume), str(tmp_path / "masks"), "--task", str(task)]
    started = BackgroundCommand([sys.executable, *words])
    started.wait_for_line(b"models ")
    started.end_by(signal.SIGTERM)
    assert list((tmp_path / "masks").glob("[!.]*")) == []


@pytest.mark.fault("ends", "the disk of the output folder has {id}", "an error that names the file, and no result")
@pytest.mark.parametrize(
    ("free_bytes", "named"),
    [(0, MASKS), (4096, "results.json")],
    ids=["no space", "space for the mask, but not for the report"],
)
def test_refuses_a_full_disk(job: Job, small_disk: SmallDisk, free_bytes: int, named: str) -> None:
    disk = small_disk(1 << 20)
    job.output = disk / "output"
    (job.output / MASKS).mkdir(parents=True)
    free = os.statvfs(disk)
    (disk / "filled").write_bytes(bytes(free.f_bavail * free.f_bsize - free_bytes))
    run(job.command()).check_is_error(job.output, named)
    job.check_has_no_result()


@pytest.mark.fault("ends", "files are limited to 100 bytes", "an error that names the file, and no result")
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="no prlimit")
def test_refuses_a_limit_on_the_file_size(job: Job) -> None:
    run(job.command("prlimit", "--fsize=100")).check_is_error(job.output)
    job.check_has_no_result()


@pytest.mark.fault(
    "ends",
    "the disk of temporary files is full, and an nnU-Net folder must be packed",
    "an error that says so, and no result",
)
def test_refuses_a_full_disk_for_temporary_files(job: Job, raw_models: Path, small_disk: SmallDisk) -> None:
    job.models, disk = raw_models, small_disk(1 << 20)
    run(job.command(), environment={"TMPDIR": str(disk)}).check_is_error("No space left")
    job.check_has_no_result()
    assert list(disk.iterdir()) == []


@pytest.mark.fault("ends", "the output folder is read-only", "an error that says so")
@ROOT_ONLY
def test_refuses_a_read_only_output_folder(job: Job, small_disk: SmallDisk) -> None:
    job.output = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", str(job.output)], check=True)
    run(job.command()).check_is_error(job.output, "Read-only file system")


# Makes root subject to file permissions like any other user.
BOUND: tuple[str, ...] = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


needs_setpriv = pytest.mark.skipif(bool(BOUND) and shutil.which(BOUND[0]) is None, reason="no setpriv")


@pytest.mark.fault("ends", "the user may not read the {id}", "an error that says so, and no result")
@needs_setpriv
@pytest.mark.parametrize(
    "part",
    ["", "images", f"images/{SOCKETS.input}", f"images/{SOCKETS.input}/uuid.mha"],
    ids=["job folder", "folder of images", "folder of the volume", "volume"],
)
def test_refuses_a_job_that_the_user_may_not_read(job: Job, part: str) -> None:
    (job.input / part).chmod(0)
    end = run(job.command(*BOUND))
    source = [sys.executable, "-m", "pantherseg", "predict", str(job.input / part), str(job.output), "--task", "1"]
    predicted = run([*BOUND, *source])
    (job.input / part).chmod(0o755)
    end.check_is_error(job.input, "Permission denied")
    predicted.check_is_error(job.input / part)
    job.check_has_no_result()


@pytest.mark.fault("ends", "the user may not write to the output folder", "an error that says so, and no result")
@needs_setpriv
def test_refuses_an_output_folder_that_the_user_may_not_write_to(job: Job) -> None:
    job.output.chmod(0o555)
    run(job.command(*BOUND)).check_is_error(job.output, "Permission denied")
    job.check_has_no_result()


# Run by `unshare`: only $1 can be written to, not temporary folders, shared memory or the home folder.
READ_ONLY = """
mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / && mount -o remount,ro,bind /dev/shm
! touch /tmp/x /var/tmp/x /dev/shm/x "$HOME/x" 2>/dev/null || exit 99
shift
exec "$@"
"""


# Run by `unshare`: /dev has only a few devices, as in some container engines.
NO_SHARED_MEMORY = """
mount --make-rprivate / && mount --bind /dev "$1" && mount -t tmpfs none /dev || exit 99
for device in null zero random urandom; do touch /dev/$device && mount --bind "$1/$device" /dev/$device || exit 99; done
test -e /dev/shm && exit 99
shift
exec "$@"
"""


@ROOT_ONLY
@pytest.mark.fault("ends", "{id}", "a mask")
@pytest.mark.parametrize(
    ("script", "folder"),
    [(READ_ONLY, "output"), (NO_SHARED_MEMORY, "dev")],
    ids=["only the output folder can be written to, not /, /tmp, HOME or /dev/shm", "there is no /dev/shm"],
)
def test_needs_to_write_only_to_the_output_folder(job: Job, tmp_path: Path, script: str, folder: str) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("this user may not have mounts of its own")
    (tmp_path / folder).mkdir(exist_ok=True)
    check_makes_mask(job, job.command("unshare", "-m", "sh", "-c", script, "sh", tmp_path / folder))


@pytest.mark.fault("ends", "{id}", "a mask")
@pytest.mark.parametrize(
    ("environment", "without"),
    [
        ({}, ["HOME", "USER", "LOGNAME"]),
        ({"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}, []),
        ({"HOME": "/proc", "TMPDIR": "/proc"}, []),
    ],
    ids=[
        "HOME and the user name are not set",
        "the home and temporary folders do not exist",
        "the home and temporary folders cannot be written to",
    ],
)
def test_needs_no_home_and_no_temporary_folder(job: Job, environment: dict[str, str], without: list[str]) -> None:
    check_makes_mask(job, job.command(), environment=environment, without=without)


ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.fault("ends", "names beyond ASCII {id}; then a damaged volume", "a mask; then an error")
@pytest.mark.parametrize(
    "environment",
    [ASCII_ONLY, {"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "latin-1"}],
    ids=["in the C locale", "in UTF-8", "with streams in Latin-1"],
)
def test_takes_names_beyond_ascii_in_any_locale(job: Job, environment: dict[str, str]) -> None:
    job.volume.rename(job.volume.with_name("größe 体積.mha"))
    job.models = job.models.rename(job.models.with_name("modèles"))
    job.output = job.output.rename(job.output.with_name("sortie é"))
    check_makes_mask(job, job.command(), environment=environment)
    assert (job.output / MASKS / "größe 体積.mha").is_file()
    job.damage()
    run(job.command(), environment=environment).check_is_error(".mha", "copy it again")


@pytest.mark.fault("ends", "the name of the volume is {id}", "an error that says so, and no result")
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("gr\udcf6sse.mha", ("expected a file name in UTF-8", "gr\\udcf6sse.mha")),
        ("体" * 83 + ".mha", ("File name too long",)),
    ],
    ids=["not UTF-8", "as long as a name can be"],
)
def test_refuses_a_name_that_the_result_cannot_have(job: Job, name: str, named: tuple[str, ...]) -> None:
    job.volume.rename(job.volume.with_name(name))
    run(job.command()).check_is_error(*named)
    job.check_has_no_result()


@pytest.mark.fault(
    "ends", "standard streams are closed or full, `{closed}`; then a damaged volume", "a mask; then exit code 1"
)
@pytest.mark.parametrize(
    "closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full", "2>&- >/dev/full"]
)
def test_runs_with_closed_or_full_streams(job: Job, closed: str) -> None:
    command = job.command("sh", "-c", f'exec "$@" {closed}', "sh")
    assert run(command).code == 0
    job.check_has_mask()
    job.damage()
    assert run(command).code == 1


@pytest.mark.fault("ends", "stderr is a broken pipe, {id}; then a damaged volume", "a mask; then exit code 1")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_runs_with_stderr_as_a_broken_pipe(job: Job, unbuffered: str) -> None:
    for code in (0, 1):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as broken:
            assert run(job.command(), stderr=broken, environment={"PYTHONUNBUFFERED": unbuffered}).code == code
        if code == 0:
            job.check_has_mask()
        job.damage()


def test_predict_runs_with_closed_or_full_streams(job: Job, tmp_path: Path) -> None:
    words = ["predict", job.volume, tmp_path / "masks", "--task", "1", "--model", job.models]
    command = [sys.executable, "-m", "pantherseg", *map(str, words)]
    for closed in ("2>&- >&-", "2>/dev/full >/dev/full"):
        assert run(["sh", "-c", f'exec "$@" {closed}', "sh", *command]).code == 0
        assert read_labels(tmp_path / "masks" / "uuid.mha").grid.difference(GRID) == ""
        shutil.rmtree(tmp_path / "masks")
    job.damage()
    assert run(["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *command]).code == 1


@pytest.mark.fault("ends", "there is one CPU", "a mask")
@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_runs_on_one_cpu(job: Job) -> None:
    cpu = min(os.sched_getaffinity(0))
    check_makes_mask(job, job.command("taskset", "-c", str(cpu)))


FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.mark.fault("time", "the clock jumps back by 2,000 days while a case runs", "a mask, and no negative duration")
@pytest.mark.skipif(FAKETIME is None, reason="no faketime")
def test_reports_no_negative_duration_when_the_clock_jumps(job: Job, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+1000d")
    start = time.monotonic()
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    started = BackgroundCommand(job.command(), **environment)
    started.wait_for_line(b"models ")
    offset.write_text("-1000d")
    clock = [sys.executable, "-c", "import time; print(time.time())"]
    now = subprocess.run(clock, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True).stdout
    assert float(now) < time.time() - 900 * 86400, "the clock jumped"
    started.process.communicate(timeout=TIMEOUT_SECONDS)
    assert started.process.returncode == 0
    job.check_has_mask()
    seconds = valid_report(job.output / "results.json")["seconds"]
    assert all(0 <= value <= time.monotonic() - start for value in seconds.values())
