"""Recognises DICOM files, which cannot be read yet, and says how to convert them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pantherseg.errors import InputError, PantherSegError, first_few

# A DICOM file has `DICM` after a preamble of 128 arbitrary bytes.
MARK, MARK_OFFSET = b"DICM", 128
MAX_FILES = 1000
NAMES_SHOWN = 3


def refuse_dicom(path: Path, error: type[PantherSegError] = InputError) -> None:
    """Raise an error if a path is a DICOM file, or a folder that contains such files, also in folders below it.

    Of a folder, MAX_FILES files are looked at. Unreadable files are skipped.
    """
    hint = "convert the series, for example with dcm2niix or 3D Slicer"
    if path.is_dir():
        found = [str(file.relative_to(path)) for file in _files(path) if is_dicom(file)]
        if found:
            names = first_few(found, NAMES_SHOWN)
            raise error(path, f"the folder contains DICOM slices ({names}), which are not read yet", hint=hint)
    elif is_dicom(path):
        raise error(path, "this is a DICOM file, which is not read yet", hint=hint)


def is_dicom(path: Path) -> bool:
    """Return whether a path is a DICOM file, as told by the suffix .dcm or by its content."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return path.suffix.lower() == ".dcm" or file.read(MARK_OFFSET + len(MARK))[MARK_OFFSET:] == MARK
    return False


def _files(folder: Path) -> Iterator[Path]:
    """Yield the first MAX_FILES files in a folder and in those below it, each folder sorted by name."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if count == MAX_FILES:
                return
            count += 1
            yield Path(parent, name)
