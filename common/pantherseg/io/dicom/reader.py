"""The reader of DICOM: a folder of a series or study, a zip archive of one, a DICOMDIR, or a file of a series."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pantherseg.errors import InputError
from pantherseg.events import Event
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.io.dicom.identity import is_of_many_patients, neutral_name
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.io.dicom.pixels import read_pixels
from pantherseg.io.dicom.places import Place, dicom_files, first_dicom
from pantherseg.io.dicom.select import select
from pantherseg.io.dicom.source import DicomSource
from pantherseg.io.direction import with_orthogonal_axes
from pantherseg.io.limits import DAMAGED, check_origin, check_spacing
from pantherseg.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class DicomReader:
    """Reads the series of MR images that is chosen.

    other_suffixes: in a folder that also has files with these, only those are volumes.
    """

    other_suffixes: tuple[str, ...]
    choice: SeriesChoice = ANY_SERIES

    def choosing(self, choice: SeriesChoice) -> DicomReader:
        """Return the reader with another choice."""
        return replace(self, choice=choice)

    def accepts(self, source: Path) -> bool:
        """Return whether a source has a DICOM file. A folder with subfolders of several patients is many sources."""
        with suppress(OSError):  # one that cannot be read is no source, so that those beside it are read
            if source.is_dir() and any(child.name.lower().endswith(self.other_suffixes) for child in source.iterdir()):
                return False
            return first_dicom(source) is not None and not is_of_many_patients(source)
        return False

    def case_name(self, source: Path) -> str:
        """Return the name of the file or folder, or one that does not name the patient (`identity.neutral_name`)."""
        return neutral_name(source)

    def mask_suffix(self, source: Path) -> str:
        """Return `.mha`."""
        return ".mha"

    def read(self, source: Path) -> tuple[Volume, tuple[Event, ...]]:
        """Return the volume of the chosen series, its slices in their order along the normal.

        Raises InputError and OSError.
        """
        chosen, grid, events = select(source, self.choice)
        check_origin(source, grid.origin)
        check_spacing(source, grid.spacing[::-1])
        grid, corrected = with_orthogonal_axes(source, grid)
        return Volume(read_pixels(source, chosen.stack), grid), events + corrected

    def files(self, source: Path) -> list[Path]:
        """Return the files of the chosen series, sorted; a zip archive itself. Raises InputError and OSError."""
        chosen, _, _ = select(source, self.choice)
        return sorted({one.instance.place.path for one in chosen.stack.slices})

    def datasets(self, source: Path) -> DicomSource:
        """Return the complete headers of the chosen series. Raises InputError and OSError."""
        chosen, _, _ = select(source, self.choice)
        places = list(dict.fromkeys(one.instance.place for one in chosen.stack.slices))
        with quiet_pydicom(source):
            headers = {place: _whole_header(place, file) for place, file in dicom_files(places)}
        frames = tuple((places.index(one.instance.place), one.frame.number) for one in chosen.stack.slices)
        return DicomSource(chosen.series.uid, tuple(headers[place] for place in places), frames)


def _whole_header(place: Place, file: BinaryIO) -> Dataset:
    import pydicom

    try:
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        header.decode()  # what is damaged is named now, rather than when a result is written
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises errors of many types for damaged files, and quotes their values
        found = f"a header that cannot be read ({type(error).__name__})"
        raise InputError(str(place), expected="a readable DICOM file", found=found, hint=DAMAGED) from error
    return header
