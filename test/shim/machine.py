"""The platform's runner needs root, namespaces, and a separate Python 3.12 environment on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pantherseg.paths import ROOT

LOCK = Path(__file__).with_name("requirements.lock")
ENVIRONMENT = ROOT / ".venv-shim"
# Required by recent releases of the runner; on an older Python pip would install a release of years ago.
VERSION = (3, 12)
# All processes of a run are in these namespaces and end with the first of them, which ends with the process that
# started it. Nothing outside sees their mounts.
NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


def missing() -> str:
    """Return why this machine cannot make a run, or an empty string."""
    if os.geteuid() != 0:
        return "only root may make namespaces and mounts"
    for tool in (NAMESPACES[0], "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    probe = [*NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"no namespaces with separate mounts: {result.stderr.strip()}"
    return "" if has_python() else "no Python 3.12"


def has_python() -> bool:
    """Return whether there is a Python for the runner's environment, which also has moto, a local S3."""
    return next(_interpreters(), None) is not None


def runner() -> Path:
    """Return the interpreter of the runner's environment, which is made on first use and when its lock file changes.

    Raises subprocess.CalledProcessError with pip's message where the runner cannot be installed.
    """
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / LOCK.name
    if not stamp.is_file() or stamp.read_bytes() != LOCK.read_bytes():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        options = ("--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement", str(LOCK))
        for command in (
            [next(_interpreters()), "-m", "venv", str(ENVIRONMENT)],
            [str(python), "-m", "pip", "install", *options],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True)
        shutil.copy(LOCK, stamp)
    return python


def _interpreters() -> Iterator[str]:
    """Yield every Python 3.12 that can be started, on PATH and among pyenv's versions."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    name = f"python{VERSION[0]}.{VERSION[1]}"
    pyenvs = sorted(map(str, versions.glob(f"{VERSION[0]}.{VERSION[1]}.*/bin/{name}")))
    for candidate in (sys.executable, shutil.which(name), *pyenvs):
        if candidate is None:
            continue
        # pyenv puts commands on PATH even for versions that it does not start.
        code = f"import ensurepip, sys; sys.exit(sys.version_info[:2] != {VERSION})"
        if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
            yield candidate
