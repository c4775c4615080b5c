"""A model bundle: a folder with everything that inference needs of a trained model, readable without torch.

manifest.json            the description of the bundle; see `pantherseg.models.manifest`
graph.xml                the network as an OpenVINO graph, which reads its weights from a fold's file
fold_<k>.safetensors     the weights of one fold in float32, at the same positions in every fold's file

Files of the model's source, such as nnU-Net's plans.json, may lie beside them as provenance. Inference ignores them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from pantherseg.errors import ModelError, RecipeError, os_reason, printable
from pantherseg.io.digest import sha256_of
from pantherseg.models.manifest import MANIFEST, Manifest, read_manifest

GRAPH = "graph.xml"
# Name of the tensor, in every fold's file, with the constants of the graph that are not weights (shapes, axes).
GRAPH_CONSTANTS = "graph.constants"
# How many labels are listed in one line; models of the whole body have a hundred.
MAX_LISTED_LABELS = 8


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    folds: the folds that are used, in this order. fold_errors: for folds without a file because they could not be
    packed, the reason. packed_from: the model folder from which this process packed the bundle for its own use.
    """

    path: Path
    manifest: Manifest
    folds: tuple[str, ...]
    fold_errors: Mapping[str, ModelError] = field(default_factory=dict)
    packed_from: Path | None = None

    @property
    def display_path(self) -> Path:
        """The path to show to users: the folder that they chose, not a temporary one."""
        return self.packed_from or self.path

    @property
    def graph_path(self) -> Path:
        """Path of the network's graph."""
        return self.path / GRAPH

    @property
    def folds_sha256(self) -> dict[str, str]:
        """The checksum of the weights of each used fold, which tells the model from others."""
        checksums = self.manifest.sha256
        # A fold that could not be packed has no file.
        return {fold: checksums[name] for fold in self.folds if (name := weights_name(fold)) in checksums}

    def weights_path(self, fold: str) -> Path:
        """Return the path of one fold's weights."""
        return self.path / weights_name(fold)

    def check_layout(self, fold: str) -> None:
        """Raise ModelError unless a fold's file is complete and laid out as the graph expects. Reads only its header.

        Raises the reason again for a fold that could not be packed.
        """
        if (reason := self.fold_errors.get(fold)) is not None:
            raise reason.at(reason.where)  # a copy: raising the kept error again would lengthen its traceback each time
        path = self.weights_path(fold)
        if not path.is_file():
            raise ModelError(self.path, expected=f"folds {' '.join(self.folds)}", found=f"no {path.name}")
        _check_header(path, self.manifest)

    def check_content(self, fold: str) -> None:
        """Raise ModelError unless a fold's file has its checksum and only finite weights. Reads the whole file."""
        path = self.weights_path(fold)
        _check_sha256(path, self.manifest.sha256)
        _check_finite(path, self.manifest)

    def verify(self, fold: str) -> Path:
        """Return the path of one fold's weights after checking it. Raises ModelError."""
        self.check_layout(fold)
        self.check_content(fold)
        return self.weights_path(fold)

    def verify_all(self) -> None:
        """Check every file: the graph, the used folds and the provenance. Raises ModelError for the first fault."""
        _check_sha256(self.graph_path, self.manifest.sha256)
        for fold in self.folds:
            self.verify(fold)
        for name in self.manifest.provenance.files_sha256:
            self.check_source(name)

    def check_source(self, name: str) -> None:
        """Raise ModelError unless a file of the source, such as plans.json, is there with its checksum."""
        _check_sha256(self.path / name, self.manifest.provenance.files_sha256)

    def check_label(self, key: str, label: int) -> None:
        """Raise RecipeError unless the model has the label that a key of the recipe names. Label 0 is background."""
        highest = self.manifest.classes - 1
        if not 1 <= label <= highest:
            raise RecipeError(self.path, expected=f"{key} between 1 and {highest}", found=str(label))

    def describe_labels(self) -> str:
        """Return the labels other than background by number and name, such as `labels 1 tumour, 2 pancreas`."""
        named = sorted((number, name) for name, number in self.manifest.labels.items() if number)
        listed = ", ".join(f"{number} {printable(name)}" for number, name in named[:MAX_LISTED_LABELS])
        more = len(named) - MAX_LISTED_LABELS
        return f"labels {listed} and {more} more" if more > 0 else f"labels {listed}"


def weights_name(fold: str) -> str:
    """Return the file name of a fold's weights."""
    return f"fold_{fold}.safetensors"


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is meant to be a bundle, complete or not."""
    return (folder / MANIFEST).is_file() or any(folder.glob("fold_*.safetensors"))


def open_bundle(
    folder: Path,
    *,
    folds: Sequence[int] | Literal["all"] = "all",
    checkpoint: str | tuple[str, ...] | None = None,
    min_folds: int | None = None,
) -> Bundle:
    """Open a bundle and check its manifest, graph and fold headers. `Bundle.verify` checks the weights on loading.

    checkpoint: file name of the checkpoints from which the bundle must have been packed, or several. min_folds: number
    of folds that must be complete, by default all; the incomplete ones stay in `Bundle.folds` and raise an error when
    loaded. Raises ModelError.
    """
    manifest = read_manifest(folder / MANIFEST)
    names = manifest.folds if folds == "all" else tuple(str(fold) for fold in folds)
    if not names:
        raise ModelError(folder, expected="at least one fold", found="none")
    if unknown := [name for name in names if name not in manifest.folds]:
        raise ModelError(folder, expected=f"folds {' '.join(names)}", found=f"no {weights_name(unknown[0])}")
    accepted = (checkpoint,) if isinstance(checkpoint, str) else checkpoint
    if accepted is not None and manifest.checkpoint not in accepted:
        raise ModelError(
            folder,
            expected=f"a bundle of {' or '.join(accepted)}",
            found=f"a bundle of {manifest.checkpoint}",
            hint="pack it again with --checkpoint, or name the other checkpoint in the recipe",
        )
    _check_sha256(folder / GRAPH, manifest.sha256)
    bundle = Bundle(folder, manifest, names)
    check_enough_folds(bundle, min_folds)
    return bundle


def check_enough_folds(bundle: Bundle, min_folds: int | None) -> None:
    """Raise the ModelError of the first incomplete fold if fewer than `min_folds` folds, by default all, are complete.

    Reads only the headers.
    """
    errors = []
    for fold in bundle.folds:
        try:
            bundle.check_layout(fold)
        except ModelError as error:
            errors.append(error)
    if errors and len(bundle.folds) - len(errors) < needed(len(bundle.folds), min_folds):
        raise errors[0]


def needed(folds: int, min_folds: int | None) -> int:
    """Return how many of `folds` folds must work: `min_folds`, but never more than there are; all for None."""
    return folds if min_folds is None else min(folds, min_folds)


def read_header(path: Path) -> bytes:
    """Return the header of a valid safetensors file: 8 bytes with the length of the JSON that follows.

    The format: https://huggingface.co/docs/safetensors
    """
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _check_sha256(path: Path, checksums: Mapping[str, str]) -> None:
    """Raise ModelError unless a file has the checksum that the manifest lists under its name."""
    expected = checksums.get(path.name, f"in {MANIFEST}")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ModelError(path, expected="a bundle's file", found=os_reason(error)) from error
    if found != expected:
        hint = "copy the bundle again or pack the model again"
        raise ModelError(path, expected=f"SHA-256 {expected}", found=found, hint=hint)


def _check_header(path: Path, manifest: Manifest) -> None:
    """Raise ModelError unless a fold's file is complete and has the tensors of the manifest at their positions."""
    with _open_safetensors(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
        if found.pop(GRAPH_CONSTANTS, None) is None:
            raise ModelError(path, expected=f"a tensor {GRAPH_CONSTANTS}", found="none")
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
        names = sorted(shapes.keys() | manifest.tensors.keys())
        if wrong := [name for name in names if shapes.get(name) != manifest.tensors.get(name)]:
            expected, other = (lists.get(wrong[0], "none") for lists in (manifest.tensors, shapes))
            raise ModelError(path, expected=f"the tensors of {MANIFEST} ({wrong[0]}: {expected})", found=str(other))
        for name, tensor in found.items():
            if (dtype := tensor.get_dtype()) != "F32":
                raise ModelError(path, expected=f"float32 values in {name}", found=dtype)
    if hashlib.sha256(read_header(path)).hexdigest() != manifest.header_sha256:
        raise ModelError(path, expected=f"tensors at the positions that {GRAPH} names", found="another order")


def _check_finite(path: Path, manifest: Manifest) -> None:
    with _open_safetensors(path) as file:
        for name in manifest.tensors:
            if not np.isfinite(file.get_tensor(name)).all():
                raise ModelError(path, expected=f"finite values in {name}", found="NaN or infinite values")


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(path, expected="a complete safetensors file", found=str(error)) from error
