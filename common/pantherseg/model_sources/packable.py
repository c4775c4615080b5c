"""What packing needs of a trained model, whichever framework trained it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pantherseg.orientation import Orientation
from pantherseg.preprocessing.preprocess import Preprocessing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PackableModel:
    """A trained model of which bundles are made.

    folder: the model folder. described_in: the file that describes the network, for errors about it. checkpoints: file
    of each fold, in the order of the folds. patch: the network's input, (z, y, x) or (y, x), in its own axes. labels:
    number by name, background included. mirroring_axes: spatial axes that may be mirrored, 0 = z. orientation: of the
    volumes that the model was trained on, None where it is not known. architecture: plain data for
    `networks.build_network`. files: files of the folder to keep as provenance. record: what to note about the
    training. weights: returns the network's state dict for a fold, and raises ModelError for a damaged fold or one that
    does not belong to the same model.
    """

    folder: Path
    described_in: Path
    checkpoints: Mapping[str, Path]
    patch: tuple[int, ...]
    labels: dict[str, int]
    mirroring_axes: tuple[int, ...]
    orientation: Orientation | None
    preprocessing: Preprocessing
    architecture: dict[str, Any]
    files: tuple[Path, ...]
    record: dict[str, str]
    weights: Callable[[str], dict[str, torch.Tensor]]

    @property
    def folds(self) -> tuple[str, ...]:
        """Names of the folds."""
        return tuple(self.checkpoints)

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels)

    @property
    def checkpoint(self) -> str:
        """File name of the checkpoints."""
        return self.checkpoints[self.folds[0]].name


class Source(Protocol):
    """A kind of model folder: files that describe the model, and fold_<k>/<checkpoint>.

    files: names of the files that a complete folder has beside its folds. checkpoint: file name of the checkpoints
    unless another is asked for. packages: names of the packages that `open` needs. Only `open` may import them.
    """

    files: tuple[str, ...]
    checkpoint: str
    packages: tuple[str, ...]

    def accepts(self, folder: Path) -> bool:
        """Return whether a folder looks like one of this kind, complete or not."""
        ...

    def open(self, folder: Path, checkpoints: Mapping[str, Path]) -> PackableModel:
        """Read the description of a model. The first fold's checkpoint may complete it.

        checkpoints: file of each fold. Raises ModelError for a damaged description or first checkpoint, and for a
        model that this package cannot run.
        """
        ...
