"""The folder of a new bundle: it appears complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pantherseg.errors import OutputError
from pantherseg.models.manifest import MANIFEST


@contextmanager
def new_bundle_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `target` when the block ends without an error. Raises OutputError.

    An existing empty target may be a mount or a current directory, so it is filled, the manifest last. Each call has
    its own hidden folder: of two processes that write the same target, the first to finish succeeds.
    """
    exists = target.is_dir()
    name = f"{'' if exists else f'.{target.name}'}.{secrets.token_hex(4)}.part"
    unfinished = target / name if exists else target.with_name(name)
    try:
        _check_free(target)
        unfinished.mkdir(parents=True)
        yield unfinished
        _check_free(target)
        if exists:
            for path in sorted(unfinished.iterdir(), key=lambda path: path.name == MANIFEST):
                path.rename(target / path.name)
        else:
            unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise OutputError(target, expected="to write this bundle", found=found) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_free(target: Path) -> None:
    """Raise OutputError unless a target does not exist, or is a folder with nothing but other unfinished bundles."""
    if target.is_dir():
        found = "" if all(map(_is_unfinished, target.iterdir())) else "a folder that is not empty"
    else:
        found = "a file" if target.exists() else "a broken link" if target.is_symlink() else ""
    if found:
        raise OutputError(target, expected="a new folder for the bundle", found=found, hint="move it away")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part") and path.is_dir()
