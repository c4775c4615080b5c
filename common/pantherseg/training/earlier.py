"""What took long and is replaced is moved to earlier/ in the output folder, and never removed."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from pantherseg.errors import OutputError, os_reason

logger = logging.getLogger(__name__)

FOLDER = "earlier"
# In place of the fingerprint of files that no record describes.
UNKNOWN = "unknown"
SHORT = 8


def set_aside(output: Path, path: Path, step: str, fingerprint: str) -> None:
    """Move the folder of a step to earlier/<step>-<the beginning of its fingerprint>. Raises OutputError."""
    name = f"{step}-{fingerprint[:SHORT]}"
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    every = (output / FOLDER / each for each in itertools.chain([name], numbered))
    target = next(each for each in every if not each.exists())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise OutputError(path, f"failed to move this to {target}: {os_reason(error)}") from error
    logger.info("%s: what was made before is kept in %s", step, target)
