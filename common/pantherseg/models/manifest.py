"""The manifest of a bundle: what its files are, and how a volume is prepared for its network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pantherseg.errors import ModelError, os_reason
from pantherseg.orientation import Orientation
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.tables import FileName, Table, decode_registered

SCHEMA: Literal[2] = 2
MANIFEST = "manifest.json"
Fold = Annotated[str, msgspec.Meta(pattern=r"^(\d+|all)$")]


class Provenance(Table, frozen=True):
    """Where a bundle comes from. Inference needs none of it."""

    record: dict[str, str]
    """What the source says about the training, such as the name of nnU-Net's configuration and trainer."""
    checkpoints_sha256: dict[str, str]
    """Checksum of each fold's checkpoint."""
    files_sha256: dict[FileName, str]
    """Checksums of the files of the source that lie in the bundle unchanged, such as plans.json."""
    versions: dict[str, str]
    """Versions of the packages that packed the bundle."""


class Manifest(Table, frozen=True):
    """The description of a bundle. It names every other file with its checksum."""

    schema: Literal[2]
    checkpoint: str
    """File name of the checkpoints that were packed."""
    folds: tuple[Fold, ...]
    patch: tuple[int, ...]
    """Input size of the network, (z, y, x) or (y, x), in the network's own axes."""
    classes: int
    labels: dict[str, int]
    mirroring_axes: tuple[int, ...]
    """Spatial axes that may be mirrored, 0 = z."""
    preprocessing: Preprocessing
    architecture: dict[str, Any]
    """Plain data from which `networks.build_network` builds the network; the key `family` names its builder."""
    tensors: dict[str, tuple[int, ...]]
    """Shapes of the tensors in every fold's file."""
    peak_activations: int
    """Largest number of features and logits that exist at the same time in a forward pass of one patch."""
    header_sha256: str
    """Checksum of the header of every fold's file. The graph finds each tensor by its position in the file."""
    sha256: dict[FileName, str]
    """Checksums of the files that inference reads: the graph and the folds."""
    provenance: Provenance
    orientation: Orientation | None = None
    """Of the volumes that the network was trained on; None where the source does not say."""

    @property
    def weights(self) -> int:
        """Number of weights of one fold."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises ModelError for a missing or damaged file, and for another schema."""
    expected = "a bundle's manifest"
    try:
        content = msgspec.json.decode(path.read_bytes())
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise ModelError(path, expected=f"schema {SCHEMA}", found=str(schema), hint="pack the model again")
        return msgspec.convert(content, Manifest, dec_hook=decode_registered)
    except OSError as error:
        raise ModelError(path, expected=expected, found=os_reason(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, expected=expected, found=str(error)) from error
