"""A run of an image by the platform's runner on one or more jobs, and what the platform would receive from it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim.image import Image
from shim.machine import NAMESPACES

SIGNING_KEY = "0f" * 32
BUCKET = "platform"
# Where the runner's report on its start goes, and what it records of each job, by the job's number.
START_PREFIX = "start"
PREFIX = "invocations/algorithm-{}"
PK = "algorithm-{}"
RESULT = ".sagemaker_shim/inference_result.json"
# The platform's default machine, 16 GB of which it keeps one.
MEMORY_MB = 15 * 1024
# A run of jobs that takes longer for each is stopped.
MAX_JOB_S = 900


@dataclass(frozen=True)
class Outcome:
    """The results of a job.

    exit_code: of the runner, 0 even where the image fails. setup, result: the runner's reports on the start (the model,
    and a server's health) and on the job, None where there is none. outputs: a folder with the uploaded files. log: of
    the whole run. survivors: command lines of processes that did not end.
    """

    exit_code: int
    setup: dict[str, Any] | None
    result: dict[str, Any] | None
    outputs: Path
    log: list[dict[str, Any]]
    survivors: list[str]

    @property
    def uploaded(self) -> list[str]:
        """Return the uploaded files by their paths below the output folder."""
        files = (path for path in self.outputs.rglob("*") if path.is_file())
        return sorted({str(path.relative_to(self.outputs)) for path in files} - {RESULT})

    @property
    def shown(self) -> str:
        """Return the reason of a failure as the platform shows it: the runner's message, or the last line of stderr."""
        if self.result is None:
            return ""
        lines = [line.strip() for line in self.result["user_process_last_stderr_lines"] if line.strip()]
        return self.result["user_safe_error_message"] or (lines[-1] if lines else "")

    @property
    def ended_by_sigterm(self) -> bool:
        """Return whether SIGTERM was enough to end the server, which was still running then."""
        return "Process group terminated" in [entry["log"] for entry in self.log]

    def lines(self, source: str = "stderr") -> list[str]:
        """Return what the image itself wrote to stdout or stderr."""
        return [entry["log"] for entry in self.log if entry["source"] == source and not entry["internal"]]


def invoke(image: Image, job: Path, work: Path, **options: Any) -> Outcome:
    """Run an image on one job folder; see `invoke_all`."""
    return invoke_all(image, [job], work, **options)[0]


def invoke_all(
    image: Image,
    jobs: Sequence[Path],
    work: Path,
    *,
    python: Path,
    model: Path | None = None,
    timeout: str = "PT900S",
    memory_mb: int = MEMORY_MB,
    start_seconds: int = 300,
) -> list[Outcome]:
    """Run an image on job folders, one after the other, as the platform does; `work` is a new folder for the results.

    python: of the runner's environment. timeout: for each job, a duration in ISO 8601. memory_mb: RLIMIT_DATA.
    start_seconds: how long a server may take to be healthy. Raises RuntimeError where the runner cannot be started.
    """
    for folder in ("results", "mount"):
        (work / folder).mkdir(parents=True)
    settings = {
        "results": str(work / "results"),
        "mount_point": str(work / "mount"),
        "layers": [str(layer) for layer in image.layers],
        "folder": image.folder,
        "environment": environment(image, memory_mb, start_seconds),
        "tasks": [task(number, job, timeout) for number, job in enumerate(jobs, start=1)],
        "model": None if model is None else str(model),
    }
    (work / "run.json").write_text(json.dumps(settings))
    inside = Path(__file__).with_name("inside.py")
    command = [*NAMESPACES, str(python), "-I", str(inside), str(work / "run.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAX_JOB_S * len(jobs))
    if run.returncode:
        raise RuntimeError(f"the runner could not be started: {run.stderr}")
    return [read_outcome(work / "results", PREFIX.format(number)) for number in range(1, len(jobs) + 1)]


def task(number: int, job: Path, timeout: str) -> dict[str, Any]:
    """Return the description of a job as the runner takes it, with the path of each input file."""
    inputs = [
        {
            "relative_path": str(path.relative_to(job)),
            "bucket_name": BUCKET,
            "bucket_key": f"inputs/{number}/{path.relative_to(job)}",
            "decompress": False,
            "path": str(path),
        }
        for path in sorted(job.rglob("*"))
        if path.is_file()
    ]
    where = {"output_bucket_name": BUCKET, "output_prefix": PREFIX.format(number)}
    return {"pk": PK.format(number), "inputs": inputs, **where, "timeout": timeout}


def environment(image: Image, memory_mb: int, start_seconds: int) -> dict[str, str]:
    """Return the runner's environment: the image's own variables and the platform's."""
    platform = {
        "API_METHOD": image.api,
        "START_AND_HEALTH_TIMEOUT_SECONDS": str(start_seconds),
        "CMD_B64J": encoded(image.command),
        "ENTRYPOINT_B64J": encoded(image.entrypoint),
        "USER": image.user,
        "MAX_MEMORY_MB": str(memory_mb),
        "SIGNING_KEY_HEX": SIGNING_KEY,
        "RUNTIME_OUTPUT_BUCKET_NAME": BUCKET,
        "RUNTIME_OUTPUT_PREFIX": START_PREFIX,
    }
    ours = {f"GRAND_CHALLENGE_COMPONENT_{name}": value for name, value in platform.items()}
    return {"HOME": "/root", "PYTHONUNBUFFERED": "1", **image.environment, **ours}


def encoded(value: object) -> str:
    """Return a value as JSON in base64."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def read_outcome(results: Path, prefix: str) -> Outcome:
    """Read the results of a job from the folder of its run. Raises ValueError for an invalid signature."""
    about = json.loads((results / "outcome.json").read_text())
    log = [
        json.loads(line)
        for name in ("stdout", "stderr")
        for line in (results / name).read_text().splitlines()
        if line.startswith("{")
    ]
    reports = []
    for key in (f"{START_PREFIX}/.sagemaker_shim/runtime_setup_result.json", f"{prefix}/{RESULT}"):
        path = results / "objects" / key
        reports.append(verified(path.read_bytes(), about["metadata"][key]) if path.is_file() else None)
    setup, result = reports
    return Outcome(about["exit_code"], setup, result, results / "objects" / prefix, log, about["survivors"])


def verified(content: bytes, metadata: dict[str, str]) -> dict[str, Any]:
    """Return a result after checking its signature as the platform does. Raises ValueError."""
    expected = hmac.new(bytes.fromhex(SIGNING_KEY), content, hashlib.sha256).hexdigest()
    found = metadata.get("signature_hmac_sha256", "none")
    if not hmac.compare_digest(expected, found):
        raise ValueError(f"expected the signature {expected}, found {found}")
    result: dict[str, Any] = json.loads(content)
    return result
