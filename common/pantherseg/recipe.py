"""A recipe: everything in which one task, or one published system, differs from another, as data.

Recipes are TOML files. Every key is listed here with its unit; an unknown or missing key is a RecipeError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import RecipeError
from pantherseg.fusion import Fusion, MeanLogits
from pantherseg.labels import TUMOUR
from pantherseg.orientation import Orientation
from pantherseg.postprocess import Rescue, Step
from pantherseg.tables import FileName, Fraction, NotNegative, Positive, Table, read_table

Folds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | Literal["all"]
# The same for each axis, or (z, y, x). msgspec 0.22 misreads a tuple of fixed length beside a bounded number.
Lengths = NotNegative | Annotated[tuple[NotNegative, ...], Meta(min_length=3, max_length=3)]


class Sockets(Table, frozen=True):
    """The platform's sockets: slugs under /input/images and /output/images."""

    input: str
    output: str


class Member(Table, frozen=True):
    """One trained model of the ensemble, with all its folds."""

    model: FileName
    """Name of the model's folder in the folder of models."""
    checkpoint: FileName | None = None
    """If omitted: checkpoint_final.pth of an nnU-Net folder; for a bundle the checkpoint that it was packed from."""
    folds: Folds = "all"
    """Folds in the order in which they run; `all` takes every fold_* found."""
    step: Fraction = 0.5
    """Distance of neighbouring tiles as a fraction of the patch."""
    mirroring: bool = False
    """Average over mirrored inputs along the axes that the checkpoint allows."""
    min_folds: Annotated[int, Meta(ge=1)] = 3
    """At least this many folds must be usable; a model with fewer folds needs all of them."""
    orientation: Orientation | None = None
    """Of the volumes that the model was trained on, such as `LPS`; if omitted, what the bundle says."""
    weight: Positive = 1.0
    """In the fusion, relative to the other members: a weight of 2 counts like two members."""

    def __post_init__(self) -> None:
        _refuse_repeated(self.folds)


class Localizer(Table, frozen=True):
    """The model that finds the pancreas before the members look closer."""

    model: FileName
    """Name of the model's folder in the folder of models, or `mrsegmentator` for that package's own weights."""
    label: Annotated[int, Meta(ge=1)]
    """The pancreas in the localizer's label map."""
    margin_mm: Lengths
    """Added to the pancreas's box on each side; of three, z is along the patient, y front to back, x side to side."""
    checkpoint: FileName | None = None
    """As for a member."""
    folds: Folds = "all"
    spacing: tuple[Positive, Positive, Positive] | None = None
    """The localizer sees a copy at this spacing, (z, y, x) in mm; without it the volume as it is."""
    half_resolution: bool = False
    """The localizer sees a copy with voxels of twice the length in each axis."""
    components: Literal["all", "largest"] = "all"
    """Of what the localizer marks: every component, or the largest that can be a pancreas. A tumour may split it."""
    min_component_mm3: NotNegative = 1000.0
    """Smaller components are ignored, unless there is no larger one."""
    min_extent_mm: Lengths = 0.0
    """The box grows about its middle to at least this, margin included; of three, as for the margin."""
    min_side_mm: NotNegative = 10.0
    """Reject boxes shorter than this in any axis."""
    max_share: Fraction = 0.9
    """Reject boxes that hold more than this share of the volume, margin included."""
    min_body_share: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Reject boxes in which less than this share of the voxels is body rather than air."""
    step: Fraction = 0.5
    """As for a member."""
    mirroring: bool = False
    """As for a member."""
    orientation: Orientation | None = None
    """As for a member."""

    def __post_init__(self) -> None:
        _refuse_repeated(self.folds)
        if self.half_resolution and self.spacing is not None:
            raise ValueError("half_resolution and spacing cannot both be given")


class Recipe(Table, frozen=True):
    """How one case is processed."""

    schema: Literal[1]
    name: str
    sockets: Sockets
    members: list[Member]
    time_budget_s: Positive = 900.0
    """Seconds for a case, from reading to writing; what does not fit is left out and reported."""
    tumour_label: Annotated[int, Meta(ge=1)] = TUMOUR
    """The tumour in the members' label maps."""
    localizer: Localizer | None = None
    fusion: Fusion = MeanLogits()
    """How the members' logits become one prediction."""
    postprocess: tuple[Step, ...] = (Rescue(),)
    """Steps that change the tumour mask, in this order."""
    allow_bfloat16: bool = False
    """Where memory is too small for float32, compute in bfloat16 and report it; without it such a case is an error."""

    def with_rescue(self, *, rescue: bool) -> Recipe:
        """Return the recipe with a rescue of empty masks as its last step, or without any."""
        steps = tuple(step for step in self.postprocess if not isinstance(step, Rescue))
        own = [step for step in self.postprocess if isinstance(step, Rescue)] or [Rescue()]
        return msgspec.structs.replace(self, postprocess=(*steps, own[-1]) if rescue else steps)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file and the key."""
    recipe = read_table(path, Recipe)
    if not recipe.members:
        raise RecipeError(path, expected="at least one entry in members", found="none")
    return recipe


def _refuse_repeated(folds: Folds) -> None:
    if len(set(folds)) < len(folds) and folds != "all":
        raise ValueError(f"folds {folds} must be named once each")
