"""Docker's engine, asked about an image by its tag: what it saves, and whether a container of it starts."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import uuid
from io import BufferedReader
from typing import IO, cast

from pantherseg.archives import ArchiveError, Budget
from pantherseg.errors import UploadError
from pantherseg.grand_challenge.image_archive import Saved, read_saved
from pantherseg.verdict import Verdict

ENGINE_SECONDS, START_SECONDS = 60, 60
# Of the containers that are started here.
CONDITIONS = ("--network", "none", "--tmpfs", "/input:ro")
# The platform's limits: from the start to a healthy server, and for each answer.
SERVER_SECONDS, HEALTH_SECONDS, PAUSE_SECONDS = 300, 10, 0.5
RUNNING = "{{.State.Running}} {{.State.ExitCode}}"
# Exit codes of `docker run`: an error of the engine, an entry point that cannot be executed, and one that is missing.
NOT_STARTED_CODES = (125, 126, 127)
# What a container prints where the kernel refuses to execute its entry point, such as a script without interpreter.
NOT_EXECUTED = re.compile(
    r"(standard_init_linux\.go:\d+: )?exec .*: (exec format error|no such file or directory|permission denied)"
)
MAX_OUTPUT_BYTES = 64 << 10
# Asks a server inside its container, which has no network, and prints the status of the answer. Python must be isolated
# (-I), or it would import modules from the image's working directory.
ASK_HEALTH = """
import http.client, signal, sys
signal.alarm(int(sys.argv[1]))  # also ends an answer that arrives byte by byte
connection = http.client.HTTPConnection("127.0.0.1", 4743)
try:
    connection.request("GET", "/health")
    print("status", connection.getresponse().status)
except (OSError, http.client.HTTPException) as error:
    print(repr(error))
"""


def ask_engine(tag: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of docker and return the beginning of its output. Raises UploadError where it does not end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(
                ["docker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                check=False,
                timeout=ENGINE_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired as error:
            found = f"no end of docker {arguments[0]} within {ENGINE_SECONDS} s"
            raise UploadError(tag, expected="an answer of Docker's engine", found=found) from error
        return subprocess.CompletedProcess(arguments, code, _text(output), _text(errors))


def saved_by_engine(tag: str) -> Saved:
    """Read an image while the engine writes it. Raises ArchiveError; UploadError where the engine fails."""
    result: Saved | ArchiveError
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE, stderr=errors) as engine,
    ):
        try:
            result = read_saved(cast(BufferedReader, engine.stdout), Budget(sys.maxsize))
        except ArchiveError as error:
            result = error
            engine.kill()  # without effect on an engine that has failed already
        failed = engine.wait() > 0  # negative where it was killed
        message = last_line_of(_text(errors))
    if failed:
        raise UploadError(tag, expected="docker save to write the image", found=message or "an error without a message")
    if isinstance(result, ArchiveError):
        raise result
    return result


def start_once(tag: str) -> Verdict:
    """Start an image once as the platform does for a case, but with an empty input. Raises UploadError."""
    rule = "the container starts"
    name = _new_name()
    command = ["docker", "run", "--rm", "--name", name, *CONDITIONS, tag]
    null = subprocess.DEVNULL
    with tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(command, stdin=null, stdout=null, stderr=errors, timeout=START_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # No container is left behind after an interruption either. The command fails where it has ended already.
            running = ask_engine(tag, "kill", name).returncode == 0
        output = _text(errors)
    if code is None:
        if running:
            return Verdict(rule, True, f"still running after {START_SECONDS} s, then stopped")
        raise UploadError(tag, expected="a started container", found=f"none within {START_SECONDS} s")
    started = code not in NOT_STARTED_CODES and not NOT_EXECUTED.match(output)
    found = f"exit code {code} with an empty /input" if started else f"exit code {code}"
    return Verdict(rule, started, _with_reason(found, output))


def start_server(tag: str) -> Verdict:
    """Start an image once as the platform does for a server, and ask for its health. Raises UploadError."""
    rule = "the server answers GET /health"
    name = _new_name()
    began = time.monotonic()
    try:
        run = ask_engine(tag, "run", "--detach", "--name", name, *CONDITIONS, tag)
        if run.returncode:
            return Verdict(rule, False, _with_reason(f"exit code {run.returncode}", run.stderr))
        while True:
            kept, found = _health(tag, name)
            seconds = time.monotonic() - began
            late = seconds > SERVER_SECONDS
            if kept is not None or late:
                return Verdict(rule, bool(kept) and not late, f"{found}, {seconds:.0f} s after the start")
            time.sleep(PAUSE_SECONDS)
    finally:
        ask_engine(tag, "rm", "--force", name)


def _health(tag: str, name: str) -> tuple[bool | None, str]:
    """Ask a container for its health: whether it is good, None if that is still open, and what was found."""
    asked = ask_engine(tag, "exec", name, "python3", "-I", "-c", ASK_HEALTH, str(HEALTH_SECONDS))
    state = ask_engine(tag, "container", "inspect", "--format", RUNNING, name)
    if state.returncode:
        raise UploadError(tag, expected="a container to ask for its health", found=last_line_of(state.stderr))
    running, code = state.stdout.split()
    if running != "true":
        output = ask_engine(tag, "logs", "--tail", "1", name).stderr
        return False, _with_reason(f"exit code {code} with an empty /input and no model", output)
    if asked.returncode in NOT_STARTED_CODES:
        found = last_line_of(asked.stderr) or f"exit code {asked.returncode}"
        raise UploadError(tag, expected="python3 in the image, to ask the server for its health", found=found)
    found = last_line_of(asked.stdout)
    if found == "status 200":
        return True, found
    return (False if found.startswith("status 3") else None), found or "no answer"


def _new_name() -> str:
    return f"pantherseg-check-{uuid.uuid4().hex}"


def _with_reason(found: str, output: str) -> str:
    """Add the reason from the output of `docker run`, in which help on usage may follow Docker's own message."""
    message = next((line for line in output.splitlines() if line.startswith("docker: ")), last_line_of(output))
    return f"{found}: {message}" if message else found


def _text(file: IO[bytes]) -> str:
    """Return the beginning of what was written to a file."""
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace")


def last_line_of(text: str) -> str:
    """Return the last line of a text that may be empty."""
    return (text.strip().splitlines() or [""])[-1]
