"""The plans of a model that this project's own trainer makes: everything about it except for its weights.

A results folder has one file of plans, and fold_<k>/checkpoint_final.safetensors and checkpoint_best.safetensors (see
`model_sources.lightning`). The trainer writes both, and packing reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import ModelError, os_reason
from pantherseg.files import write_text
from pantherseg.networks.registry import Architecture
from pantherseg.orientation import Orientation
from pantherseg.preprocessing.intensity import IntensityScheme
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import SPLINE, Resampling
from pantherseg.tables import Positive, Table, decode_registered

PLANS = "pantherseg_plans.json"
SCHEMA: Literal[1] = 1
# As nnU-Net resamples by default.
IMAGES = Resampling(function=SPLINE, order=3, order_z=0)
LOGITS = Resampling(function=SPLINE, order=1, order_z=0)

Count = Annotated[int, Meta(ge=1)]


class LightningPlans(Table, frozen=True):
    """How a model was made. All sizes are (z, y, x). Raises ValueError for values that do not belong together."""

    task: Annotated[str, Meta(min_length=1)]
    """What the model was trained for, such as the name of the stage. Its checkpoints repeat it."""
    architecture: Architecture
    """The network: the name of its family and its settings."""
    labels: dict[str, int]
    """Number of each label by its name, from 0 for the background and without a gap."""
    spacing_zyx: tuple[Positive, Positive, Positive]
    """Spacing in mm to which volumes are resampled."""
    patch_size_zyx: tuple[Count, Count, Count]
    """Size of the network's input in voxels."""
    normalization: IntensityScheme
    """A registered scheme of `preprocessing.intensity` and its settings."""
    orientation: Orientation
    """Of the training volumes."""
    trained_with: dict[str, str]
    """Versions of the packages that trained it, by name."""
    mirroring_axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Axes that training mirrored, 0 = z, and so the engine may: all three are 8 flips."""
    schema: Literal[1] = SCHEMA

    def __post_init__(self) -> None:
        numbers = sorted(self.labels.values())
        if numbers != list(range(max(2, len(numbers)))) or self.labels.get("background") != 0:
            raise ValueError(f"labels must be numbered from 0 without a gap, with background 0, got {self.labels}")
        self.architecture.check_patch(self.patch_size_zyx)

    @property
    def preprocessing(self) -> Preprocessing:
        """How volumes are prepared, in training and at inference: `plans.preprocessing.run(array, spacing, turn)`."""
        return Preprocessing(
            spacing=self.spacing_zyx,
            transpose=(0, 1, 2),
            normalization=self.normalization,
            images=IMAGES,
            logits=LOGITS,
        )

    @property
    def network(self) -> dict[str, Any]:
        """The architecture as plain data of JSON, for `networks.build_network`."""
        data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.architecture))
        return data

    @property
    def described(self) -> dict[str, Any]:
        """All that must be the same for weights to be used, as plain data of JSON: not the versions of packages."""
        data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return {key: value for key, value in data.items() if key != "trained_with"}


def write_plans(folder: Path, plans: LightningPlans) -> Path:
    """Write the plans into a results folder and return the file. Raises OutputError."""
    path = folder / PLANS
    write_text(path, msgspec.json.format(msgspec.json.encode(plans), indent=1).decode() + "\n")
    return path


def read_plans(folder: Path) -> LightningPlans:
    """Read the plans of a results folder. Raises ModelError for a missing or damaged file, and for another schema."""
    path, expected = folder / PLANS, "the plans of a trained model"
    try:
        content = msgspec.json.decode(path.read_bytes())
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            hint = "train the model again with this version, or pack it with the version that trained it"
            raise ModelError(path, expected=f"schema {SCHEMA}", found=str(schema), hint=hint)
        return msgspec.convert(content, LightningPlans, dec_hook=decode_registered)
    except OSError as error:
        raise ModelError(path, expected=expected, found=os_reason(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(path, expected=expected, found=str(error)) from error
