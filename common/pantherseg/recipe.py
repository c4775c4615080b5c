"""A task's recipe: what runs on the way of one case, as data.

Recipes are TOML files. Every key is listed here with its unit; an unknown or missing key is a RecipeError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import RecipeError
from pantherseg.tables import FileName, Fraction, NotNegative, Positive, Table, read_table

Folds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | Literal["all"]


class Sockets(Table, frozen=True):
    """The platform's sockets: slugs under /input/images and /output/images."""

    input: str
    output: str


class Member(Table, frozen=True):
    """One trained model of the ensemble, with all its folds."""

    model: str
    """Name of the model below the model folder."""
    checkpoint: FileName | None = None
    """Without it checkpoint_final.pth of an nnU-Net folder, and whichever a bundle was made of."""
    folds: Folds = "all"
    """Folds in the order in which they run; `all` takes every fold_* found."""
    step: Fraction = 0.5
    """Distance of neighbouring tiles as a fraction of the patch."""
    mirroring: bool = False
    """Average over mirrored inputs along the axes that the checkpoint allows."""
    min_folds: Annotated[int, Meta(ge=1)] = 3
    """With so many folds a mask is made even if the others are missing or damaged; of fewer folds all must work."""

    def __post_init__(self) -> None:
        _refuse_repeated(self.folds)


class Localizer(Table, frozen=True):
    """Where the pancreas is searched before the members look closer."""

    model: str
    """Name of the model below the model folder, or `mrsegmentator` for that package's own weights."""
    label: int
    """The pancreas in the localizer's label map."""
    margin_mm: NotNegative
    """Added to the pancreas's box on each side."""
    checkpoint: FileName | None = None
    """As of a member."""
    folds: Folds = "all"
    spacing: tuple[Positive, Positive, Positive] | None = None
    """The localizer sees a copy at this spacing, (z, y, x) in mm; without it the volume as it is."""
    min_component_mm3: NotNegative = 0.0
    """Components below this are no pancreas, unless there is no larger one."""
    min_side_mm: NotNegative = 10.0
    """A pancreas whose box is shorter along any of the patient's axes is none."""
    max_share: Fraction = 0.9
    """A box that with its margin holds more of the volume narrows nothing."""
    min_body_share: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """A box in which less is body, and not air around it, is wrong."""
    step: Fraction = 0.5

    def __post_init__(self) -> None:
        _refuse_repeated(self.folds)


class Postprocess(Table, frozen=True):
    """What happens to the tumour mask after fusion."""

    min_component_mm3: NotNegative = 0.0
    max_components: Annotated[int, Meta(ge=1)] | None = None
    """Keep at most this many components, the largest first; without it all."""
    rescue: bool = True
    """Fill an empty mask with the most probable component."""
    rescue_max_mm3: Positive = 20_000.0
    """The rescued component never grows beyond this."""


class Recipe(Table, frozen=True):
    """Everything in which one task or system differs from another."""

    schema: Literal[1]
    name: str
    sockets: Sockets
    members: list[Member]
    time_budget_s: Positive = 900.0
    """Seconds for a case, from reading to writing; what does not fit is left out and reported."""
    tumour_label: int = 1
    """The tumour in the members' label maps."""
    localizer: Localizer | None = None
    fusion: Literal["mean_logits"] = "mean_logits"
    postprocess: Postprocess = msgspec.field(default_factory=Postprocess)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file and the key."""
    recipe = read_table(path, Recipe)
    if not recipe.members:
        raise RecipeError(path, expected="at least one entry in members", found="none")
    return recipe


def _refuse_repeated(folds: Folds) -> None:
    if len(set(folds)) < len(folds) and folds != "all":
        raise ValueError(f"folds {folds} must be named once each")
