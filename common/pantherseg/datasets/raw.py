"""Raw nnU-Net data sets: the form in which all training data are kept, so that nnU-Net's own tools work on them.

Dataset<id>_<name>/
    dataset.json                      nnU-Net's description
    cases.json                        ours: patient, origin and more of each case
    imagesTr/<case>_0000<ending>      one channel; a link where the original could be used as it is
    labelsTr/<case><ending>           absent in a data set without labels
    splits_final.json                 written by `splits`, in nnU-Net's own form
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from pantherseg.errors import InputError, OutputError, os_reason
from pantherseg.files import folder_written_beside, link_target, write_text
from pantherseg.io import find_sources, read_labels, read_volume, write_volume
from pantherseg.model_sources.nnunet import DATASET
from pantherseg.orientation import Orientation, Turn
from pantherseg.tables import Table
from pantherseg.volume import Box, Shape, Volume

logger = logging.getLogger(__name__)

T = TypeVar("T")

CASES = "cases.json"
SCHEMA = 1
IMAGES, LABELS = "imagesTr", "labelsTr"
CHANNEL = "_0000"
# nnU-Net normalises a channel named CT by the data set's intensities, and every other by the case's own mean and
# standard deviation. The published systems do the latter with CT too, which is why they can be fine-tuned for MR.
CHANNEL_NAMES = {"0": "MR"}
# The endings that nnU-Net reads with SimpleITK.
FILE_ENDINGS = (".mha", ".nii.gz", ".nrrd")
NAME = r"Dataset(\d{3})_([A-Za-z0-9_-]+)"


class Crop(Table, frozen=True):
    """The box of a case that was cut out of a larger volume, in voxels of that volume, and its shape; all (z, y, x)."""

    start: Shape
    stop: Shape
    shape: Shape
    by_reference: bool = False
    """The box is that around the label map, because the localizer failed; nobody has it at inference."""

    @property
    def box(self) -> Box:
        """The box in the larger volume."""
        return Box(self.start, self.stop)

    def turned(self, turn: Turn) -> Crop:
        """Return the same crop after a turn of the larger volume."""
        box = self.box.turned(turn, self.shape)
        return msgspec.structs.replace(self, start=box.start, stop=box.stop, shape=turn.order(self.shape))


class RawCase(Table, frozen=True):
    """What is known about a case beyond its files."""

    patient: str
    """Cases of one patient are never on both sides of a split."""
    origin: str = ""
    """The file that the image comes from."""
    pseudo: bool = False
    """Labelled by a model; such a case is never used for validation."""
    crop: Crop | None = None
    remark: str = ""

    def turned(self, turn: Turn) -> RawCase:
        """Return the case after a turn of its volumes, which moves the box of its crop."""
        return self if self.crop is None else msgspec.structs.replace(self, crop=self.crop.turned(turn))


class _CasesFile(Table, frozen=True):
    """The content of cases.json."""

    schema: int
    cases: dict[str, RawCase]


class _DatasetFile(msgspec.Struct, frozen=True):
    """What is used of dataset.json; nnU-Net and users may write more."""

    channel_names: dict[str, str]
    labels: dict[str, int]
    numTraining: int  # noqa: N815 - nnU-Net's spelling
    file_ending: str
    orientation: Orientation | None = None
    dataset: Any = None


@dataclass(frozen=True)
class RawDataset:
    """A raw data set on disk.

    labels: names and numbers; orientation: to which all volumes are turned, None where dataset.json does not say so;
    file_ending: such as `.mha`; num_training: the number of cases that dataset.json states; cases: by name, sorted;
    has_labels: False for a data set of images alone.
    """

    folder: Path
    labels: Mapping[str, int]
    orientation: Orientation | None
    file_ending: str
    num_training: int
    cases: Mapping[str, RawCase]
    has_labels: bool

    @classmethod
    def open(cls, folder: Path) -> RawDataset:
        """Open a data set: its description and the names of its cases, but no volume.

        A data set that was not written here has no cases.json; its patients are then assumed by `patient_of`, and the
        log says so. Raises InputError if a description is missing or invalid, if there is no case, if cases.json and
        imagesTr differ, if an image is a link to a file that does not exist or if there is more than one channel.
        """
        description = _decode(folder / DATASET, _DatasetFile)
        if len(description.channel_names) != 1 or description.dataset is not None:
            found = "a list of files" if description.dataset else f"{len(description.channel_names)} channels"
            raise InputError(folder / DATASET, expected="one channel, in imagesTr and labelsTr", found=found)
        ending = description.file_ending
        names = _case_names(folder / IMAGES, CHANNEL + ending)
        if (folder / CASES).exists():
            content = _decode(folder / CASES, dict)
            if (schema := content.get("schema")) != SCHEMA:
                raise InputError(
                    folder / CASES, expected=f"schema {SCHEMA}", found=str(schema), hint="import the data again"
                )
            cases = _decode(folder / CASES, _CasesFile, content).cases
            if different := sorted(cases.keys() ^ set(names)):
                image = folder / IMAGES / f"{different[0]}{CHANNEL}{ending}"
                found = f"only in {CASES if different[0] in cases else IMAGES}"
                raise InputError(image, expected=f"each case in {CASES} and {IMAGES}", found=found)
        else:
            cases = {name: RawCase(patient=patient_of(name)) for name in names}
            patients = len({case.patient for case in cases.values()})
            logger.warning(
                "%s has no %s: its %d cases are assumed to be of %d patients", folder, CASES, len(cases), patients
            )
        if not cases:
            raise InputError(folder / IMAGES, expected=f"images <case>{CHANNEL}{ending}", found="none")
        return cls(
            folder=folder,
            labels=description.labels,
            orientation=description.orientation,
            file_ending=ending,
            num_training=description.numTraining,
            cases=dict(sorted(cases.items())),
            has_labels=(folder / LABELS).is_dir(),
        )

    @property
    def name(self) -> str:
        """The folder's name, such as Dataset901_PANTHER, by which nnU-Net knows the data set."""
        return self.folder.name

    def image_path(self, case: str) -> Path:
        """Return the path of a case's image."""
        return self.folder / IMAGES / f"{case}{CHANNEL}{self.file_ending}"

    def label_path(self, case: str) -> Path:
        """Return the path of a case's label map."""
        return self.folder / LABELS / f"{case}{self.file_ending}"

    def image(self, case: str) -> Volume:
        """Return a case's image, float32. Raises InputError."""
        return read_volume(self.image_path(case))

    def label(self, case: str) -> Volume | None:
        """Return a case's label map, None in a data set without labels. Raises InputError."""
        return read_labels(self.label_path(case)) if self.has_labels else None


class NewDataset:
    """A raw data set that is being written to a hidden folder, which becomes `target`; see `new_dataset`."""

    def __init__(self, folder: Path, target: Path, file_ending: str, labels: Mapping[str, int], root: Path) -> None:
        self.folder, self.target, self.file_ending, self.labels, self.root = folder, target, file_ending, labels, root
        self.cases: dict[str, RawCase] = {}
        self._labelled = 0

    def add(self, name: str, case: RawCase, image: Volume | Path, label: Volume | None = None) -> None:
        """Add a case. image: a volume to write, or a file with the data set's ending to link to; label: as uint8.

        The label map is written with the geometry of the image exactly as it is stored. Raises OutputError, which names
        the data set and the case, and ValueError for a name that is used already, for a label map on another grid than
        the image and for numbers that are not among the labels of the data set.
        """
        if name in self.cases:
            raise ValueError(f"there is a case {name} already")
        if label is not None:
            if unknown := set(np.unique(label.array).tolist()) - set(self.labels.values()):
                raise ValueError(f"the label map of {name} has {sorted(unknown)}, which are not labels of the data set")
            if isinstance(image, Volume) and (difference := image.grid.difference(label.grid)):
                raise ValueError(f"the label map of {name} has another grid than its image: {difference}")
        try:
            self._write(name, image, label)
        except OutputError as error:
            reason = error.problem.removeprefix("failed to write this file: ") or str(error)
            raise OutputError(self.target, f"failed to write the case {name}: {reason}") from error
        self.cases[name] = case
        self._labelled += label is not None

    def check_complete(self) -> None:
        """Raise OutputError unless every image and label map is there that was written."""
        for folder, written in ((IMAGES, len(self.cases)), (LABELS, self._labelled)):
            path = self.folder / folder
            files = sum(1 for _ in path.iterdir()) if path.is_dir() else 0
            if files != written:
                raise OutputError(self.target, expected=f"the {written} files written to {folder}", found=str(files))

    def _write(self, name: str, image: Volume | Path, label: Volume | None) -> None:
        image_path = self.folder / IMAGES / f"{name}{CHANNEL}{self.file_ending}"
        if isinstance(image, Path):
            image_path.parent.mkdir(exist_ok=True)
            image_path.symlink_to(link_target(image, self.target / IMAGES, within=self.root))
        else:
            write_volume(_compact(image), image_path)
        if label is not None:
            label = Volume(label.array.astype(np.uint8), label.grid)
            # A relative link leads to the image only when the data set is at its place.
            like = image if isinstance(image, Path) else image_path
            write_volume(label, self.folder / LABELS / f"{name}{self.file_ending}", like=like)


@contextmanager
def new_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    *,
    labels: Mapping[str, int],
    orientation: Orientation,
    file_ending: str,
    root: Path | None = None,
) -> Iterator[NewDataset]:
    """Yield a new data set, to which cases are added; it appears as raw/Dataset<id>_<name> when the block ends.

    labels: names and numbers; orientation: to which all volumes are turned; file_ending: one of FILE_ENDINGS;
    root: the folder that is moved as a whole, by default `raw`: links to images in it are relative, others absolute.

    Raises OutputError if it cannot be written, if another data set has the number, and if the name has characters that
    nnU-Net does not take.
    """
    target = dataset_folder(raw, dataset_id, name)
    with folder_written_beside(target) as folder:
        new = NewDataset(folder, target, file_ending, labels, root or raw)
        yield new
        new.check_complete()
        description = {
            "channel_names": CHANNEL_NAMES,
            "labels": labels,
            "numTraining": len(new.cases),
            "file_ending": file_ending,
            "orientation": orientation,
        }
        cases = _CasesFile(schema=SCHEMA, cases=dict(sorted(new.cases.items())))
        for path, content in ((folder / DATASET, description), (folder / CASES, cases)):
            write_text(path, msgspec.json.format(msgspec.json.encode(content)).decode() + "\n")


def dataset_folder(raw: Path, dataset_id: int, name: str) -> Path:
    """Return raw/Dataset<id>_<name>. Raises OutputError for an invalid name and for a number that another one has."""
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    if not re.fullmatch(NAME, folder.name):
        expected = "a number from 1 to 999 and a name of letters, digits, - and _"
        raise OutputError(raw, expected=expected, found=f"{dataset_id} and {name!r}")
    if others := [path.name for path in raw.glob(f"Dataset{dataset_id:03d}_*") if path != folder]:
        raise OutputError(folder, f"the number {dataset_id} belongs to {others[0]}", hint="choose another number")
    return folder


def patient_of(case: str) -> str:
    """Return the patient of a case by its name: 10000 of 10000_0001, and the whole name where it has another form."""
    match = re.fullmatch(r"(\d+)_\d+", case)
    return match[1] if match else case


def is_raw_dataset(folder: Path) -> bool:
    """Return whether a folder is a raw nnU-Net data set: its dataset.json names channels and a file ending."""
    try:
        _decode(folder / DATASET, _DatasetFile)
    except InputError:
        return False
    return True


def _decode(path: Path, kind: type[T], content: Any = None) -> T:
    """Return the content of a JSON file, or what was decoded of it before, checked for a type."""
    try:
        return msgspec.convert(msgspec.json.decode(path.read_bytes()) if content is None else content, kind)
    except OSError as error:
        raise InputError(path, f"failed to read this file: {os_reason(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"invalid content: {error}") from error


def _case_names(folder: Path, suffix: str) -> list[str]:
    if broken := dangling_links(folder):
        found = f"a link to {broken[0].readlink()}, which does not exist"
        raise InputError(broken[0], expected="an image", found=found)
    return [path.name.removesuffix(suffix) for path in find_sources(folder) if path.name.endswith(suffix)]


def dangling_links(folder: Path) -> list[Path]:
    """Return the links in a folder to files that do not exist, except for hidden ones, sorted. Raises InputError."""
    try:
        children = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in children if not path.name.startswith(".") and path.is_symlink() and not path.exists()]
    except OSError as error:
        raise InputError(folder, expected="a folder that can be read", found=os_reason(error)) from error


def _compact(image: Volume) -> Volume:
    """Return an image as int16, which most scanners store, if that changes no voxel."""
    whole = np.rint(np.clip(image.array, -(1 << 15), (1 << 15) - 1)).astype(np.int16)
    return Volume(whole, image.grid) if np.array_equal(whole, image.array) else image
