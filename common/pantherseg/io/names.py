"""Which files are volumes, and what their masks are called."""

from __future__ import annotations

from pathlib import Path

from pantherseg.errors import InputError

VOLUME_SUFFIXES = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd")


def is_volume_file(path: Path) -> bool:
    """Tell by the name whether a file is a volume that can be read."""
    return path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES)


def volumes_in(folder: Path) -> list[Path]:
    """Return the volumes of a folder by name; hidden files, such as those that are being written, are none.

    Raises InputError for a folder that may not be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if is_volume_file(path) and not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(folder, expected="a folder that can be read", found=found) from error


def mask_name(path: Path) -> str:
    """Return the name of a volume's mask: <case> in the volume's own format, `.mha` for the two files of an `.mhd`."""
    suffix = path.name[len(case_name(path)) :].lower()
    return case_name(path) + (".mha" if suffix == ".mhd" else suffix)


def case_name(path: Path) -> str:
    """Return a file's name without its volume suffix."""
    for suffix in VOLUME_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name
