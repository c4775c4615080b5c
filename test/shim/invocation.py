"""One run of an image by the platform's runner, and what the platform would know of it afterwards."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim.image import Image
from shim.machine import NAMESPACES

SIGNING_KEY = "0f" * 32
PREFIX = "invocations/algorithm-1"
PK = "algorithm-1"
# The platform's default machine, 16 GB of which it keeps one.
MEMORY_MB = 15 * 1024
# A run is ended after this, whatever it does; longer than any here takes.
LAST_RESORT_S = 900


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    exit_code: the runner's own, 0 even where the image fails. setup, result: what it says of the models' and of the
    image's run, None where it said nothing. outputs: a folder with what was uploaded. survivors: command lines.
    """

    exit_code: int
    setup: dict[str, Any] | None
    result: dict[str, Any] | None
    outputs: Path
    log: list[dict[str, Any]]
    survivors: list[str]

    @property
    def uploaded(self) -> list[str]:
        """The files that the platform got, by their paths below the output folder."""
        files = (path for path in self.outputs.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.outputs)) for path in files)

    @property
    def shown(self) -> str:
        """What the platform shows of a failure: the runner's words, else the last line of stderr that is not empty."""
        if self.result is None:
            return ""
        lines = [line.strip() for line in self.result["user_process_last_stderr_lines"] if line.strip()]
        return self.result["user_safe_error_message"] or (lines[-1] if lines else "")

    def lines(self, source: str = "stderr") -> list[str]:
        """Return what the image itself wrote to stdout or stderr."""
        return [entry["log"] for entry in self.log if entry["source"] == source and not entry["internal"]]


def invoke(
    image: Image,
    job: Path,
    work: Path,
    *,
    python: Path,
    model: Path | None = None,
    timeout: str = "PT900S",
    memory_mb: int = MEMORY_MB,
) -> Outcome:
    """Run an image on a job folder as the platform does; `work` is a new folder for what the run leaves.

    python: of the runner's environment. timeout: as ISO 8601 writes a duration. memory_mb: RLIMIT_DATA. Raises
    RuntimeError where the run itself could not be made.
    """
    for folder in ("results", "mount"):
        (work / folder).mkdir(parents=True)
    settings = {
        "results": str(work / "results"),
        "mount_point": str(work / "mount"),
        "layers": [str(layer) for layer in image.layers],
        "folder": image.folder,
        "environment": environment(image, memory_mb),
        "inputs": {str(path.relative_to(job)): str(path) for path in sorted(job.rglob("*")) if path.is_file()},
        "model": None if model is None else str(model),
        "pk": PK,
        "prefix": PREFIX,
        "timeout": timeout,
    }
    (work / "run.json").write_text(json.dumps(settings))
    inside = Path(__file__).with_name("inside.py")
    command = [*NAMESPACES, str(python), "-I", str(inside), str(work / "run.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LAST_RESORT_S)
    if run.returncode:
        raise RuntimeError(f"the run could not be made: {run.stderr}")
    return read_outcome(work / "results")


def environment(image: Image, memory_mb: int) -> dict[str, str]:
    """Return what the runner is started with: the image's own variables and the platform's."""
    platform = {
        "CMD_B64J": encoded(image.command),
        "ENTRYPOINT_B64J": encoded(image.entrypoint),
        "USER": image.user,
        "MAX_MEMORY_MB": str(memory_mb),
        "SIGNING_KEY_HEX": SIGNING_KEY,
        "RUNTIME_OUTPUT_BUCKET_NAME": "platform",
        "RUNTIME_OUTPUT_PREFIX": PREFIX,
    }
    ours = {f"GRAND_CHALLENGE_COMPONENT_{name}": value for name, value in platform.items()}
    return {"HOME": "/root", "PYTHONUNBUFFERED": "1", **image.environment, **ours}


def encoded(value: object) -> str:
    """Return a value as JSON in base64."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def read_outcome(results: Path) -> Outcome:
    """Return what a run left in its folder. Raises ValueError for a result that is not signed by its key."""
    about = json.loads((results / "outcome.json").read_text())
    log = [
        json.loads(line)
        for name in ("stdout", "stderr")
        for line in (results / name).read_text().splitlines()
        if line.startswith("{")
    ]
    outputs = results / "objects" / PREFIX
    said = {}
    for name in ("runtime_setup_result", "inference_result"):
        path = outputs / ".sagemaker_shim" / f"{name}.json"
        key = f"{PREFIX}/.sagemaker_shim/{name}.json"
        said[name] = None if not path.is_file() else verified(path.read_bytes(), about["metadata"][key])
        path.unlink(missing_ok=True)
    return Outcome(
        about["exit_code"], said["runtime_setup_result"], said["inference_result"], outputs, log, about["survivors"]
    )


def verified(content: bytes, metadata: dict[str, str]) -> dict[str, Any]:
    """Return a result after checking its signature as the platform does. Raises ValueError."""
    expected = hmac.new(bytes.fromhex(SIGNING_KEY), content, hashlib.sha256).hexdigest()
    found = metadata.get("signature_hmac_sha256", "none")
    if not hmac.compare_digest(expected, found):
        raise ValueError(f"expected the signature {expected}, found {found}")
    result: dict[str, Any] = json.loads(content)
    return result
