"""Which series of a DICOM study is taken."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from pantherseg.tables import Table

Weighting = Literal["T1", "T2"]
Plane = Literal["axial", "coronal", "sagittal"]
Word = Annotated[str, Meta(min_length=1)]


class SeriesChoice(Table, frozen=True):
    """Which series of a DICOM study is taken; the default takes the only MR volume, and asks where there are several.

    A recipe's table `series`, so that it is part of what decides a mask.
    """

    uid: str = ""
    """The series instance UID; where it is given, nothing else counts."""
    weighting: Weighting | None = None
    """Series that are known to have another weighting, by their description or times, are left out."""
    plane: Plane | None = None
    """Series in other planes are left out; an oblique one counts as the nearest plane."""
    words: tuple[Word, ...] = ()
    """Of several series that are left, those with one of these words in their description are taken."""
    min_slices: Annotated[int, Meta(ge=2)] = 2
    """Series with fewer slices are left out, such as localizers."""


ANY_SERIES = SeriesChoice()
