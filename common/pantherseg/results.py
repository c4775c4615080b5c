"""The report of a case, `results.json` or `<case>.json`: every key with its meaning and unit.

`schema_text` is the JSON schema of it, published as docs/results.schema.json. A number of the schema stands for keys
that are there and mean the same; docs/evaluation.md says what raises it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pantherseg.errors import InputError, os_reason
from pantherseg.events import Event
from pantherseg.orientation import Orientation
from pantherseg.tables import Table

SCHEMA: Literal[1] = 1
# The name of the schema, whatever place it is read from.
SCHEMA_ID = f"urn:pantherseg:results:{SCHEMA}"

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Role = Literal["member", "localizer"]
Index = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0)]


class ModelUse(Table, frozen=True):
    """A model as it was used for a case."""

    role: Annotated[Role, Meta(description="What it was used for.")]
    path: Annotated[str, Meta(description="Its folder.")]
    folds: Annotated[tuple[str, ...], Meta(description="The folds that took part, in the order in which they ran.")]
    checkpoint: Annotated[str, Meta(description="The file name of the checkpoints that its folds were packed from.")]
    orientation: Annotated[
        Orientation,
        Meta(description="To which the volume was turned for it: the patient's sides to which x, y, z run."),
    ]
    step: Annotated[
        float,
        Meta(description="Distance of tiles, as a share of the patch, as the recipe asks for; events say if not."),
    ]
    mirroring: Annotated[bool, Meta(description="Whether the recipe asks for mirrored inputs; events say if not.")]
    sha256: Annotated[dict[str, Sha256], Meta(description="SHA-256 of the weights of each of these folds.")]
    name: Annotated[str | UnsetType, Meta(description="The name of a member in the recipe.")] = UNSET
    tumour_label: Annotated[
        int | UnsetType, Meta(description="The number of the tumour in the label map of a member's model.")
    ] = UNSET
    tile_share: Annotated[
        Share | UnsetType,
        Meta(
            description="Share of the tiles of its usable folds that was run; `fast` and a short time leave some out."
        ),
    ] = UNSET

    @property
    def left_out_tiles(self) -> bool:
        """Whether tiles or folds of a member were left out. Reports of versions before the share do not say so."""
        return self.tile_share is not UNSET and self.tile_share < 1


class VoxelBox(Table, frozen=True):
    """A box of voxels of the input, axes (z, y, x)."""

    start_zyx: Annotated[tuple[Index, Index, Index], Meta(description="The first voxel.")]
    stop_zyx: Annotated[tuple[Index, Index, Index], Meta(description="One past the last voxel.")]


class LocatedPancreas(Table, frozen=True):
    """The pancreas as the localizer marks it, on the copy that it sees."""

    ml: Annotated[Amount, Meta(description="Its volume in ml.")]
    left_out_ml: Annotated[
        Amount, Meta(description="Volume in ml of what the localizer marks elsewhere, which the recipe leaves out.")
    ]
    centre_xyz_mm: Annotated[
        tuple[float, float, float], Meta(description="Its centroid (x, y, z) in mm, as ITK counts (LPS).")
    ]
    box: Annotated[VoxelBox, Meta(description="The smallest box around it, without the margin.")]


class Confidence(Table, frozen=True):
    """How sure the networks are of the tumour, before post-processing. It is of these models, not of the patient."""

    pairwise_dice: Annotated[
        Share | None,
        Meta(
            description=(
                "Mean Dice of the tumour masks of every two folds of a member, 0 to 1. Null for members of one fold, "
                "where no fold marks a tumour, and where a fold ran only a part of its tiles."
            )
        ),
    ]
    mean_entropy: Annotated[
        Share | None,
        Meta(
            description=(
                "Mean entropy in bits of the fused tumour probability over the voxels of the fused mask, 0 to 1. Null "
                "where that mask is empty."
            )
        ),
    ]
    fold_volumes_ml: Annotated[
        tuple[Amount, ...],
        Meta(
            description=(
                "Tumour volume in ml by each fold of each member, in the order of models. Members of which a fold ran "
                "only a part of its tiles have none."
            )
        ),
    ]
    expected_dice: Annotated[
        Share | None,
        Meta(
            description=(
                "Dice to expect of the mask by the calibration of these models, 0 to 1; 0 where the networks mark no "
                "tumour. Null without a calibration of the models and folds that were used, and where tiles or "
                "folds were left out."
            )
        ),
    ]


class DicomOptions(Table, frozen=True):
    """How DICOM results are made."""

    anonymous: Annotated[bool, Meta(description="Whether they carry nothing over that identifies the patient.")] = False
    stable_uids: Annotated[bool, Meta(description="Whether the same case always gets the same UIDs and dates.")] = False


class Fingerprint(Table, frozen=True):
    """What decides the mask. A case whose fingerprint and version are unchanged need not be segmented again."""

    input_sha256: Annotated[Sha256, Meta(description="SHA-256 of the input's file, or of the files of its folder.")]
    recipe_sha256: Annotated[Sha256, Meta(description="SHA-256 of the recipe as it was used, with its options.")]
    models_sha256: Annotated[
        Sha256, Meta(description="SHA-256 of the weights and settings of all models that the recipe found.")
    ]
    mode: Annotated[Literal["exact", "fast"], Meta(description="The operating point that was asked for.")]
    dicom: Annotated[
        DicomOptions | UnsetType, Meta(description="How the DICOM results were made, if there are any.")
    ] = UNSET


class CaseReport(Table, frozen=True):
    """What pantherseg found in one case, and how. Not for clinical use."""

    schema: Annotated[Literal[1], Meta(description="The number of this schema.")]
    input: Annotated[str, Meta(description="The name of the input's file or folder.")]
    mask: Annotated[
        str,
        Meta(description="The mask's path, relative to the folder of this report, in the first format asked for."),
    ]
    pantherseg: Annotated[str, Meta(description="The version that wrote the report.")]
    not_for_clinical_use: Annotated[Literal[True], Meta(description="Always true.")]
    recipe: Annotated[str, Meta(description="The recipe's name.")]
    device: Annotated[str, Meta(description="Where the networks of the members ran.", examples=["cpu", "cuda"])]
    precision: Annotated[str, Meta(description="In which they computed.", examples=["float32", "bfloat16"])]
    models: Annotated[tuple[ModelUse, ...], Meta(description="The members, then the localizer if there is one.")]
    tumour_ml: Annotated[float, Meta(ge=0, description="Volume of the tumour mask in ml.")]
    confidence: Confidence
    box: Annotated[VoxelBox, Meta(description="Where the members looked for a tumour, with the margin.")]
    pancreas: Annotated[
        LocatedPancreas | None,
        Meta(description="What the localizer found; null without a localizer, and where its box was not used."),
    ]
    events: Annotated[tuple[Event, ...], Meta(description="What was unusual but did not stop the case.")]
    peak_memory_mb: Annotated[int, Meta(ge=0, description="The most memory in MiB that the process has taken.")]
    seconds: Annotated[
        dict[str, Amount], Meta(description="Seconds of each stage, in their order: localizer, members, mask.")
    ]
    probability: Annotated[
        str | UnsetType,
        Meta(
            description="The path of the tumour's probability, relative to the folder of this report, if it was saved."
        ),
    ] = UNSET
    fingerprint: Annotated[Fingerprint | UnsetType, Meta(description="What the case was made from.")] = UNSET
    mask_sha256: Annotated[Sha256 | UnsetType, Meta(description="SHA-256 of the mask's file.")] = UNSET
    other_results: Annotated[
        dict[str, Sha256] | UnsetType,
        Meta(description="SHA-256 of the results in other formats, by their names in the folder of this report."),
    ] = UNSET

    def results(self, folder: Path) -> dict[Path, str | UnsetType]:
        """Return the mask in each of its formats with its SHA-256. folder: of this report."""
        others = {} if self.other_results is UNSET else self.other_results
        return {folder / self.mask: self.mask_sha256, **{folder / name: sha256 for name, sha256 in others.items()}}

    def as_text(self) -> str:
        """Return the file's text, with one key in a line."""
        return json.dumps(msgspec.to_builtins(self), indent=2) + "\n"


def read_report(path: Path) -> CaseReport:
    """Read the report of a case. Raises InputError for a missing or damaged file, and for another schema."""
    expected = "the report of a case (JSON)"
    try:
        content = msgspec.json.decode(path.read_bytes())
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            hint = "segment the case again with `pantherseg predict`"
            raise InputError(path, expected=f"{expected} with schema {SCHEMA}", found=f"schema {found}", hint=hint)
        return msgspec.convert(content, CaseReport)
    except OSError as error:
        raise InputError(path, expected=expected, found=os_reason(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, expected=expected, found=str(error)) from error


def schema_text() -> str:
    """Return the JSON schema of a report (draft 2020-12)."""
    schema = msgspec.json.schema(CaseReport)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, "title": "Report of a case"}
    return json.dumps({**head, **schema}, indent=2) + "\n"
