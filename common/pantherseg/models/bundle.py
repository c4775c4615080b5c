"""A model bundle: everything that inference needs of a trained model, readable without torch.

manifest.json            what is in it, and how a volume is prepared for it
graph.xml                the network as an OpenVINO graph whose weights lie in a fold's file
fold_<k>.safetensors     one fold's tensors, each once, float32, in the same layout for every fold
plans.json dataset.json  nnU-Net's own, as they were
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from pantherseg.errors import ModelError, RecipeError, printable
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.tables import FileName, Table

SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"
GRAPH = "graph.xml"
PLANS, DATASET = "plans.json", "dataset.json"
# What the graph needs beside the network's weights (shapes, axes), in every fold's file.
GRAPH_CONSTANTS = "graph.constants"
# Labels that are named in one line; models of the whole body have a hundred.
MOST_LABELS = 8


class Provenance(Table, frozen=True):
    """Where a bundle comes from, for the record."""

    configuration: str
    trainer: str
    checkpoints_sha256: dict[str, str]
    """Of each fold's checkpoint."""
    versions: dict[str, str]


class Architecture(Table, frozen=True):
    """How a network is built: plain data from nnU-Net's plans."""

    network: str
    """Import path of the class."""
    arguments: dict[str, Any]
    imported: tuple[str, ...]
    """Which arguments are import paths themselves."""


Fold = Annotated[str, msgspec.Meta(pattern=r"^(\d+|all)$")]


class Manifest(Table, frozen=True):
    """A bundle's description; every other file is named in it with its checksum."""

    schema: Literal[1]
    checkpoint: str
    """The name of the checkpoints that were packed."""
    folds: tuple[Fold, ...]
    patch: tuple[int, ...]
    """The network's input, (z, y, x) or (y, x), in its own axes."""
    classes: int
    labels: dict[str, int]
    mirroring_axes: tuple[int, ...]
    """Spatial axes that may be mirrored, 0 = z."""
    preprocessing: Preprocessing
    architecture: Architecture
    tensors: dict[str, tuple[int, ...]]
    """Shapes of the tensors in every fold's file."""
    live_values: int
    """Numbers of features and logits that are alive at once in a forward pass."""
    header_sha256: str
    """Of every fold's header: the graph finds tensors by their place in the file."""
    sha256: dict[FileName, str]
    """Of every other file."""
    provenance: Provenance

    @property
    def weights(self) -> int:
        """How many numbers a fold's tensors hold."""
        return sum(math.prod(shape) for shape in self.tensors.values())


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: its manifest, and the folds of it that are used, in their order.

    unpacked: those that it was to be made of and could not, with the reason; it has no files of them. origin: the
    model folder that it was packed of for this process alone.
    """

    path: Path
    manifest: Manifest
    folds: tuple[str, ...]
    unpacked: Mapping[str, ModelError] = field(default_factory=dict)
    origin: Path | None = None

    @property
    def shown(self) -> Path:
        """The folder that a user knows."""
        return self.origin or self.path

    @property
    def graph_path(self) -> Path:
        """The network's graph."""
        return self.path / GRAPH

    def weights_path(self, fold: str) -> Path:
        """Return the file of one fold's tensors."""
        return self.path / weights_name(fold)

    def check_layout(self, fold: str) -> None:
        """Raise ModelError unless one fold's file is complete and laid out as the graph expects; its header is read."""
        if (reason := self.unpacked.get(fold)) is not None:
            raise reason.at(reason.where)  # a new one: tracebacks would pile up on that which is kept
        path = self.weights_path(fold)
        if not path.is_file():
            raise ModelError(self.path, expected=f"folds {' '.join(self.folds)}", found=f"no {path.name}")
        _check_shapes(path, self.manifest)

    def check_content(self, fold: str) -> None:
        """Raise ModelError unless one fold's file has its checksum, and numbers only; it is read whole."""
        path = self.weights_path(fold)
        _check_sum(path, self.manifest)
        _check_numbers(path, self.manifest)

    def verify(self, fold: str) -> Path:
        """Return the file of one fold's tensors after comparing it with the manifest. Raises ModelError."""
        self.check_layout(fold)
        self.check_content(fold)
        return self.weights_path(fold)

    def check_label(self, key: str, label: int) -> None:
        """Raise RecipeError unless the model has the label that a recipe's key names; 0 is the background."""
        highest = self.manifest.classes - 1
        if not 1 <= label <= highest:
            raise RecipeError(self.path, expected=f"{key} between 1 and {highest}", found=str(label))

    def said_labels(self) -> str:
        """Return the labels by number and name, but for the background, for people: `labels 1 tumour, 2 pancreas`."""
        named = sorted((number, name) for name, number in self.manifest.labels.items() if number)
        shown = ", ".join(f"{number} {printable(name)}" for number, name in named[:MOST_LABELS])
        return f"labels {shown}{f' and {len(named) - MOST_LABELS} more' if len(named) > MOST_LABELS else ''}"


def check_classes(bundles: Sequence[Bundle]) -> None:
    """Raise ModelError unless all members of an ensemble have as many classes: their logits are added."""
    for bundle in bundles:
        if (found := bundle.manifest.classes) != (wanted := bundles[0].manifest.classes):
            raise ModelError(bundle.path, expected=f"{wanted} classes, as {bundles[0].path} has", found=str(found))


def weights_name(fold: str) -> str:
    """Return the name of a fold's file."""
    return f"fold_{fold}.safetensors"


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is meant to be a bundle, complete or not."""
    return (folder / MANIFEST).is_file() or any(folder.glob("fold_*.safetensors"))


def open_bundle(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: str | None = None,
    min_folds: int | None = None,
) -> Bundle:
    """Open a bundle and check it, but for the numbers of its folds: `Bundle.verify` does that when one is loaded.

    checkpoint: the name of the checkpoints that the bundle must be made of. min_folds: how many of the folds must be
    complete; without it all. One that is not stays among the bundle's folds, to be named when its turn comes.
    Raises ModelError.
    """
    manifest = _read_manifest(folder / MANIFEST)
    names = manifest.folds if folds == "all" else tuple(str(fold) for fold in folds)
    unknown = [name for name in names if name not in manifest.folds]
    if unknown or not names:
        found = f"no {weights_name(unknown[0])}" if unknown else "none"
        raise ModelError(folder, expected=f"folds {' '.join(names) or 'at all'}", found=found)
    if checkpoint not in (None, manifest.checkpoint):
        raise ModelError(
            folder,
            expected=f"a bundle of {checkpoint}",
            found=f"one of {manifest.checkpoint}",
            hint="pack it again with --checkpoint, or name the other in the recipe",
        )
    for name in (GRAPH, PLANS, DATASET):
        _check_sum(folder / name, manifest)
    bundle = Bundle(folder, manifest, names)
    check_enough(bundle, min_folds)
    return bundle


def check_enough(bundle: Bundle, min_folds: int | None) -> None:
    """Raise the first fold's error where fewer than `min_folds` folds are complete, or fewer than all."""
    errors = []
    for fold in bundle.folds:
        try:
            bundle.check_layout(fold)
        except ModelError as error:
            errors.append(error)
    if errors and len(bundle.folds) - len(errors) < needed(len(bundle.folds), min_folds):
        raise errors[0]


def needed(folds: int, min_folds: int | None) -> int:
    """Return how many of so many folds must work: `min_folds`, or all where there are fewer or none is said."""
    return folds if min_folds is None else min(folds, min_folds)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of nnU-Net's, such as plans.json. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(path, expected="valid JSON", found=str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise ModelError(path, expected="a JSON object", found="another value")
    return content


def read_header(path: Path) -> bytes:
    """Return the header of a sound safetensors file: 8 bytes for the length of the JSON that follows.

    The format: https://huggingface.co/docs/safetensors
    """
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _read_manifest(path: Path) -> Manifest:
    try:
        content = msgspec.json.decode(path.read_bytes())
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise ModelError(path, expected=f"schema {SCHEMA}", found=str(schema), hint="pack the model again")
        return msgspec.convert(content, Manifest)
    except OSError as error:
        raise ModelError(path, expected="a bundle's manifest", found=error.strerror or str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, expected="a bundle's manifest", found=str(error)) from error


def _check_sum(path: Path, manifest: Manifest) -> None:
    expected = manifest.sha256.get(path.name, f"in {MANIFEST}")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ModelError(path, expected="a bundle's file", found=error.strerror or str(error)) from error
    if found != expected:
        raise ModelError(
            path, expected=f"SHA-256 {expected}", found=found, hint="copy the bundle again or pack the model again"
        )


def _check_shapes(path: Path, manifest: Manifest) -> None:
    """Raise ModelError unless a fold's file is complete and holds the manifest's tensors; its header is read only."""
    with _opened(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if found.pop(GRAPH_CONSTANTS, None) is None:
            raise ModelError(path, expected=f"a tensor {GRAPH_CONSTANTS}", found="none")
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
        names = shapes.keys() | manifest.tensors.keys()
        odd = sorted(name for name in names if shapes.get(name) != manifest.tensors.get(name))
        if odd:
            expected, other = manifest.tensors.get(odd[0], "none"), shapes.get(odd[0], "none")
            raise ModelError(path, expected=f"the tensors of {MANIFEST} ({odd[0]}: {expected})", found=str(other))
        for name, tensor in found.items():
            if (dtype := tensor.get_dtype()) != "F32":
                raise ModelError(path, expected=f"float32 numbers in {name}", found=dtype)
    if hashlib.sha256(read_header(path)).hexdigest() != manifest.header_sha256:
        raise ModelError(path, expected=f"tensors where {GRAPH} looks for them", found="another order")


def _check_numbers(path: Path, manifest: Manifest) -> None:
    """Raise ModelError for a fold's file with numbers that are none."""
    with _opened(path) as file:
        for name in manifest.tensors:
            if not np.isfinite(file.get_tensor(name)).all():
                raise ModelError(path, expected=f"finite numbers in {name}", found="NaN or infinite ones")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(path, expected="a complete safetensors file", found=str(error)) from error
