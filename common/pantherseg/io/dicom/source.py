"""What DICOM objects about a volume refer to: the headers of the series that it was read from.

They contain what identifies the patient. They may go into DICOM objects only, never into logs, reports or file names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class DicomSource:
    """The series that a volume was read from.

    Voxel (z, y, x) of the volume, as it was read and before it is turned to a model's axes, is row y and column x of
    the frame `frames[z]`: `(instance, frame)`, both counted from 0, where `datasets[instance]` is the instance and
    `frame` its frame. A classic series has one instance for each slice, in the order of the slices, so that
    `frames[z] == (z, 0)`; an Enhanced multi-frame object is one instance, whose frames may be in any order. (DICOM's
    own references count frames from 1.) Slices run along the cross product of the directions of rows and columns, so
    a volume that was read from DICOM is always right-handed.

    datasets: complete headers with file meta information, without pixels.
    """

    series_uid: str
    datasets: tuple[Dataset, ...] = field(repr=False)
    frames: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def is_multi_frame(self) -> bool:
        """Whether the instances describe their frames, as those of Enhanced MR do."""
        return "PerFrameFunctionalGroupsSequence" in self.datasets[0]
