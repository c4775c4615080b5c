"""The series in a source: found by reading headers only, and described as far as choosing one needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from pantherseg.errors import InputError
from pantherseg.io.dicom.choice import Plane, Weighting
from pantherseg.io.dicom.identity import RESULTS
from pantherseg.io.dicom.instance import DIRECTORY_CLASS, HeaderError, Instance, read_instance
from pantherseg.io.dicom.library import quiet_pydicom
from pantherseg.io.dicom.pixels import stored_pixels
from pantherseg.io.dicom.places import Place, dicom_files, is_zip, places_in, stamped, without_directory
from pantherseg.io.dicom.stack import Stack, stacks_of

# Words in descriptions by which series are T1- or T2-weighted, or neither. `T1` and `T2` themselves count too.
WEIGHTING_WORDS: dict[str, Weighting | None] = {
    **dict.fromkeys(("vibe", "lava", "thrive", "flash", "spgr", "mprage", "dixon", "starvibe", "disco", "twist"), "T1"),
    **dict.fromkeys(("haste", "ssfse", "blade", "propeller", "tse", "fse"), "T2"),
    **dict.fromkeys(("dwi", "adc", "diff", "diffusion", "ep2d", "mrcp", "trufi", "fiesta", "bffe", "trufisp"), None),
}
# In ms. Spin echoes with a longer echo time are T2-weighted, gradient echoes with a shorter one T1-weighted.
T2_ECHO_MS, T1_ECHO_MS = 60.0, 7.0
PLANES: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")  # by the patient's axis nearest to the normal


@dataclass(frozen=True)
class Series:
    """The instances of a series, in no particular order."""

    instances: tuple[Instance, ...]

    @property
    def uid(self) -> str:
        """The series instance UID."""
        return self.instances[0].series_uid

    @property
    def number(self) -> int | None:
        """The number that the scanner gave to the series in its study."""
        return self.instances[0].series_number

    @property
    def description(self) -> str:
        """What the scanner or its operator called the series, as it may be shown."""
        return self.instances[0].shown

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """Its volumes, or slices that are none with the reason why."""
        images = [one for one in self.instances if not one.problem]
        return stacks_of(images) if images else (Stack((), problem=self.instances[0].problem),)

    @property
    def weighting(self) -> Weighting | str | None:
        """T1 or T2; `other` where it is known to be neither; None where nothing tells."""
        first = self.instances[0]
        if first.contrast in ("T1", "T2"):
            return first.contrast
        words = re.findall(r"t[12](?![\d])|[^\W\d_]+\d?d?", first.description.casefold())
        if any(word in WEIGHTING_WORDS and WEIGHTING_WORDS[word] is None for word in words):
            return "other"
        if named := {word.upper() for word in words if word in ("t1", "t2")}:
            return named.pop() if len(named) == 1 else "other"
        if known := {WEIGHTING_WORDS[word] for word in words if word in WEIGHTING_WORDS}:
            return known.pop() if len(known) == 1 else None
        echo = first.times[1]
        if echo is not None and echo >= T2_ECHO_MS and "SE" in first.sequence:
            return "T2"
        return "T1" if echo is not None and echo <= T1_ECHO_MS and first.sequence.split() == ["GR"] else None

    def has_word(self, wanted: Sequence[str]) -> bool:
        """Return whether the description has one of some words, apart from digits and capitals."""
        words = re.findall(r"[^\W\d_]+", self.instances[0].description.casefold())
        return any(word.casefold() in words for word in wanted)


def plane_of(stack: Stack) -> Plane | None:
    """Return the plane that is nearest to a stack's slices; None where they state no directions."""
    orientation = stack.slices[0].frame.orientation if stack.slices else None
    if orientation is None:
        return None
    return PLANES[int(np.abs(np.cross(orientation[:3], orientation[3:])).argmax())]


@dataclass(frozen=True)
class Scan:
    """What a source contains. damaged: DICOM files that cannot be read, and why; others: how many other files.

    A DICOMDIR, which lists the files, is none of them.
    """

    series: tuple[Series, ...]
    damaged: tuple[tuple[Place, str], ...]
    others: int

    def patients(self, uid: str = "") -> list[Instance]:
        """Return an image of each patient. uid: only of this series, or of the series of this volume.

        Segmentations do not count: an anonymous one of the same patient may lie beside the series.
        """
        chosen = [series for series in self.series if not uid or uid.partition("/")[0] == series.uid]
        every = (one for series in chosen for one in series.instances)
        images = [one for one in every if one.size is not None and one.modality not in RESULTS]
        return list({one.patient: one for one in reversed(images)}.values())[::-1]


def scan(source: Path) -> Scan:
    """Read the headers of all DICOM files of a source: a folder, a zip archive, a DICOMDIR, or a file of a series.

    A file stands for its series: that of a classic series is looked for in the file's own folder. The headers of
    unchanged files are kept from call to call. Raises InputError and OSError.
    """
    folder = without_directory(source)
    if folder.is_dir() or is_zip(folder):
        return _scan(source, tuple(places_in(folder)))
    alone = _scan(source, (stamped(source),))
    if not alone.series or len(alone.series[0].instances[0].frames) != 1:
        return alone
    beside = _scan(source, tuple(places_in(source.parent, below=False)))
    return Scan(tuple(one for one in beside.series if one.uid == alone.series[0].uid), beside.damaged, 0)


@lru_cache(maxsize=4)
def _scan(source: Path, places: tuple[Place, ...]) -> Scan:
    by_uid: dict[str, dict[str, Instance]] = {}
    damaged: list[tuple[Place, str]] = []
    found = 0
    with quiet_pydicom(source):
        for place, file in dicom_files(places):
            found += 1
            try:
                instance = read_instance(place, file)
            except HeaderError as error:
                damaged.append((place, str(error)))
                continue
            if instance.sop_class == DIRECTORY_CLASS:
                continue
            known = by_uid.setdefault(instance.series_uid, {}).setdefault(instance.uid or str(place), instance)
            # A copy of a file counts once.
            if known is not instance and not (instance.problem or known.problem) and not _is_copy(known, instance):
                damaged.append((place, f"several images with the same UID, also in {known.place.name}"))
    series = [Series(tuple(instances.values())) for instances in by_uid.values()]
    series.sort(key=lambda one: (one.instances[0].study_uid, one.number is None, one.number or 0, one.uid))
    return Scan(tuple(series), tuple(damaged), len(places) - found)


def _is_copy(one: Instance, other: Instance) -> bool:
    """Return whether two images lie at the same place, and have the same pixels. Within `quiet_pydicom`."""
    if [frame.position for frame in one.frames] != [frame.position for frame in other.frames]:
        return False
    contents = [stored_pixels(file) for _, file in chain(dicom_files([one.place]), dicom_files([other.place]))]
    return contents[0] == contents[1]


def refuse_without_images(source: Path, found: Scan) -> None:
    """Raise InputError for a source without any DICOM image, and for one with damaged DICOM files."""
    if found.damaged:
        place, reason = found.damaged[0]
        more = f", as in {len(found.damaged) - 1} other files" if len(found.damaged) > 1 else ""
        hint = "copy it again, or move it away if it does not belong to the series"
        raise InputError(str(place), expected="a readable DICOM file", found=reason + more, hint=hint)
    if not found.patients():
        kinds = ", ".join(sorted({one.problem for series in found.series for one in series.instances}))
        raise InputError(source, expected="MR images", found=kinds or "no other DICOM file than a DICOMDIR")
