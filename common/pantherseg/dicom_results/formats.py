"""The formats of DICOM results: their names in options, how their files end, and what they hold."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pantherseg.errors import OptionError, OutputError, PantherSegError
from pantherseg.files import written_beside
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.logs import silenced

if TYPE_CHECKING:
    from pydicom import Dataset

    from pantherseg.dicom_results.making import Found, Making
    from pantherseg.io.dicom.source import DicomSource
    from pantherseg.results import DicomOptions
    from pantherseg.volume import Grid


@dataclass(frozen=True)
class ObjectFormat:
    """A kind of DICOM results.

    suffix: of its files. sop_class: Segmentation Storage or RT Structure Set Storage (PS3.4, B.5). module, function:
    what makes the object, below `dicom_results`, whose packages are imported only when it is wanted.
    """

    suffix: str
    sop_class: str
    module: str
    function: str


SEGMENTATION_CLASS, STRUCTURES_CLASS = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
# By their names in `--output-format`.
FORMATS = {
    "dcmseg": ObjectFormat(".seg.dcm", SEGMENTATION_CLASS, "segmentation", "segmentation"),
    "dcmprob": ObjectFormat(".probability.dcm", SEGMENTATION_CLASS, "segmentation", "probability"),
    "rtstruct": ObjectFormat(".rtstruct.dcm", STRUCTURES_CLASS, "structure_set", "structure_set"),
}


def format_of(name: str) -> ObjectFormat | None:
    """Return the format of a DICOM result by the name of its file or by its suffix; None for another result."""
    return next((one for one in FORMATS.values() if name.endswith(one.suffix)), None)


def is_probability(path: Path) -> bool:
    """Return whether a result is the tumour's probability as a DICOM object."""
    return format_of(path.name) is FORMATS["dcmprob"]


def make_object(path: Path, found: Found, making: Making) -> Dataset:
    """Return what a file is to hold by its suffix. Raises OptionError for a series that does not allow the object."""
    made_as = format_of(path.name)
    assert made_as is not None  # whoever asks for an object names it so
    module = import_module(f"pantherseg.dicom_results.{made_as.module}")
    make: Callable[[Found, Making], Dataset] = getattr(module, made_as.function)
    try:
        with quiet_dicom(path):
            return make(found, making)
    except PantherSegError:
        raise
    except Exception as error:
        # The message may quote a header, and so name the patient.
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        problem = f"the headers of the series do not allow {path.name} ({reason})"
        hint = "choose another output format, such as mha"
        raise OptionError(f"series {making.source.series_uid}", problem, hint=hint) from None


def save_object(path: Path, made: Dataset) -> None:
    """Write an object; the file is complete or absent. Raises OutputError."""
    with quiet_dicom(path), written_beside(path) as beside:
        made.save_as(beside, enforce_file_format=True)


def check_headers(paths: Sequence[Path], source: DicomSource, grid: Grid, options: DicomOptions, recipe: str) -> None:
    """Make the objects of files as if nothing had been found, so that headers that do not allow them are named early.

    grid: of the volume that was read from the series. Raises OptionError.
    """
    from pantherseg.dicom_results.making import nothing_found

    found, making = nothing_found(source, grid, options, recipe)
    for path in paths:
        make_object(path, found, making)


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
