"""The formats of DICOM results: their names in options, how their files end, and what they hold."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pantherseg.errors import InputError, OutputError, PantherSegError
from pantherseg.files import written_beside
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.logs import silenced

if TYPE_CHECKING:
    from pydicom import Dataset

    from pantherseg.dicom_results.making import Found, Making
    from pantherseg.io.dicom.source import DicomSource
    from pantherseg.results import DicomOptions
    from pantherseg.volume import Grid

# By the suffix of a file: the module below `dicom_results`, and the function in it that makes the object.
SUFFIXES = {
    ".seg.dcm": ("segmentation", "segmentation"),
    ".probability.dcm": ("segmentation", "probability"),
    ".rtstruct.dcm": ("structure_set", "structure_set"),
}
# By the name of a format in `--output-format`.
FORMATS = {"dcmseg": ".seg.dcm", "dcmprob": ".probability.dcm", "rtstruct": ".rtstruct.dcm"}
# The SOP classes of the objects: Segmentation Storage and RT Structure Set Storage (PS3.4, B.5).
SOP_CLASSES = {
    ".seg.dcm": "1.2.840.10008.5.1.4.1.1.66.4",
    ".probability.dcm": "1.2.840.10008.5.1.4.1.1.66.4",
    ".rtstruct.dcm": "1.2.840.10008.5.1.4.1.1.481.3",
}


def is_object(path: Path) -> bool:
    """Return whether a result is a DICOM object by its name."""
    return path.name.endswith(tuple(SUFFIXES))


def is_probability(path: Path) -> bool:
    """Return whether a result is the tumour's probability as a DICOM object."""
    return path.name.endswith(FORMATS["dcmprob"])


def sop_class(path: Path) -> str:
    """Return the SOP class of a DICOM object by the name of its file."""
    return next(uid for suffix, uid in SOP_CLASSES.items() if path.name.endswith(suffix))


def write_object(path: Path, found: Found, making: Making) -> None:
    """Write what a file is to hold by its suffix; it is complete or absent.

    Raises OutputError, and InputError for a series whose headers do not allow the object.
    """
    with quiet_dicom(path):
        made = _made(path, found, making)
        with written_beside(path) as beside:
            made.save_as(beside, enforce_file_format=True)


def check_headers(paths: Sequence[Path], source: DicomSource, grid: Grid, options: DicomOptions, recipe: str) -> None:
    """Make the objects of files as if nothing had been found, so that headers that do not allow them are named early.

    grid: of the volume that was read from the series. Raises InputError.
    """
    from pantherseg.dicom_results.making import nothing_found

    found, making = nothing_found(source, grid, options, recipe)
    for path in paths:
        with quiet_dicom(path):
            _made(path, found, making)


def _made(path: Path, found: Found, making: Making) -> Dataset:
    """Return what a file is to hold by its suffix. Within `quiet_dicom`. Raises InputError."""
    module, function = next(entry for suffix, entry in SUFFIXES.items() if path.name.endswith(suffix))
    make: Callable[[Found, Making], Dataset] = getattr(import_module(f"pantherseg.dicom_results.{module}"), function)
    try:
        return make(found, making)
    except PantherSegError:
        raise
    except Exception as error:
        # The message may quote a header, and so name the patient.
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        problem = f"the headers of the series do not allow {path.name} ({reason})"
        hint = "choose another output format, such as mha"
        raise InputError(f"series {making.source.series_uid}", problem, hint=hint) from None


def check_installed(where: Path) -> None:
    """Raise OutputError where a package that DICOM results need is not installed."""
    for package in ("highdicom", "pydicom", "pynetdicom"):
        try:
            import_module(package)
        except ImportError as error:
            expected, hint = f"the package {package}, which DICOM results need", "pip install 'pantherseg[dicom]'"
            raise OutputError(where, expected=expected, found="not installed", hint=hint) from error


@contextmanager
def quiet_dicom(where: Path) -> Iterator[None]:
    """Keep highdicom and pydicom from logging and warning within the block: they quote names."""
    with silenced("highdicom"), quiet_pydicom(where):
        yield
