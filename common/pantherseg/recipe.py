"""A recipe: everything in which one task, or one published system, differs from another, as data.

Recipes are TOML files. Every key is listed here with its unit; an unknown or missing key is a RecipeError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pantherseg.errors import RecipeError
from pantherseg.fast import USUAL, Fast
from pantherseg.fusion import Fusion, MeanLogits
from pantherseg.io.dicom.choice import ANY_SERIES, SeriesChoice
from pantherseg.labels import TUMOUR
from pantherseg.orientation import Orientation
from pantherseg.postprocess import Rescue, Step
from pantherseg.registry import Registry
from pantherseg.tables import FILE_NAME, FileName, Fraction, NotNegative, Positive, Table, did_you_mean, read_table
from pantherseg.verdict import Verdict

# Masks are stored in 8 bits.
Label = Annotated[int, Meta(ge=1, le=255)]
# `--members` takes names with commas between them, and a minus in front of those that are left out.
MemberName = Annotated[
    str,
    Meta(pattern=r"^[^-,\s]([^,]*[^,\s])?$", description="a name without commas that does not begin with a minus"),
]
Folds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | Literal["all"]
# In mm: the same for each axis, or (z, y, x). msgspec 0.22 misreads a tuple of fixed length beside a bounded number.
Length = Annotated[float, Meta(ge=0, le=10_000)]
Lengths = Length | Annotated[tuple[Length, ...], Meta(min_length=3, max_length=3)]
# Of neighbouring tiles, as a fraction of the patch. Tiles that are nearer only take longer.
TileStep = Annotated[float, Meta(ge=0.1, le=1)]
# A file name, or several of which one is used. msgspec 0.22 frees memory twice, when a process ends, for a string with
# a pattern beside a list; so the pattern of the single name is checked by `Member`.
Checkpoint = str | Annotated[tuple[FileName, ...], Meta(min_length=1)]


class Sockets(Table, frozen=True):
    """The platform's sockets: slugs under /input/images and /output/images."""

    input: str
    output: str


class Member(Table, frozen=True):
    """One trained model of the ensemble, with all its folds."""

    model: FileName
    """Name of the model's folder in the folder of models."""
    name: MemberName | None = None
    """By which the member is known, that of the model if omitted; see `Recipe.member_names`."""
    folder: Annotated[str, Meta(min_length=1)] | None = None
    """Pattern (*, ?) of the published name of the model's folder or of one above it, for models not in `model`."""
    checkpoint: Checkpoint | None = None
    """If omitted: checkpoint_final.pth of an nnU-Net folder; for a bundle the checkpoint that it was packed from. Of
    several names, that which most folds have, and of equal ones the first."""
    folds: Folds = "all"
    """Folds in the order in which they run; `all` takes every fold_* found."""
    step: TileStep = 0.5
    """Distance of neighbouring tiles as a fraction of the patch."""
    mirroring: bool = False
    """Average over mirrored inputs along the axes that the checkpoint allows."""
    min_folds: Annotated[int, Meta(ge=1)] = 3
    """At least this many folds must be usable; a model with fewer folds needs all of them."""
    orientation: Orientation | None = None
    """Of the volumes that the model was trained on, such as `LPS`; if omitted, what the bundle says."""
    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """In the fusion, relative to the other members: a weight of 2 counts like two members."""
    threshold: Fraction | None = None
    """In a vote or STAPLE, the member marks a label where its probability is at least this; without it the fusion's."""
    tumour_label: Label | None = None
    """The tumour in the model's label map; if omitted, the recipe's `tumour_label`."""
    pancreas_label: Label | None = None
    """The pancreas in the model's label map; if omitted, the label that is called pancreas, if there is one."""

    def __post_init__(self) -> None:
        _refuse_repeated(self.folds)
        if isinstance(self.checkpoint, str) and not re.match(FILE_NAME, self.checkpoint):
            raise ValueError(f"checkpoint: expected a file name, found '{self.checkpoint}'")


class Localizer(Table, frozen=True):
    """The model that finds the pancreas before the members look closer."""

    model: FileName
    """Name of the model's folder in the folder of models, or `mrsegmentator` for that package's own weights."""
    label: Label
    """The pancreas in the localizer's label map."""
    margin_mm: Lengths
    """Added to the pancreas's box on each side; of three, z is along the patient, y front to back, x side to side."""
    crop: bool = True
    """Whether the members look only at the box; if not, steps with `of = "localizer"` look at the pancreas."""
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
    step: TileStep = 0.5
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
    tumour_label: Label = TUMOUR
    """The tumour in the label maps of members that say nothing else."""
    series: SeriesChoice = ANY_SERIES
    """Which series of a DICOM study is taken."""
    localizer: Localizer | None = None
    min_members: Annotated[int, Meta(ge=1)] | None = None
    """At least this many members must be usable, the others are left out and reported; without it all must be."""
    fusion: Fusion = MeanLogits()
    """How the members' logits become one prediction."""
    postprocess: tuple[Step, ...] = (Rescue(),)
    """Steps that change the tumour mask, in this order."""
    fast: Fast = USUAL
    """What `--mode fast` leaves out."""
    allow_bfloat16: bool = False
    """Where memory is too small for float32, compute in bfloat16 and report it; without it such a case is an error."""

    @property
    def member_names(self) -> tuple[str, ...]:
        """The members' names; of several without one that use the same model, the second is `<model>-2`, and so on."""
        names: list[str] = []
        for number, member in enumerate(self.members):
            same = sum(one.model == member.model and one.name is None for one in self.members[:number])
            names.append(member.name or (f"{member.model}-{same + 1}" if same else member.model))
        return tuple(names)

    def tumour_label_of(self, member: Member) -> int:
        """Return the tumour in the label map of a member."""
        return self.tumour_label if member.tumour_label is None else member.tumour_label

    def with_members(self, names: Sequence[str]) -> Recipe:
        """Return the recipe with only the members of these names, or without those if each has a minus in front.

        The members keep their names and their order. Raises RecipeError for an unknown name, and where none is left.
        """
        known, where = self.member_names, f"members of the recipe {self.name}"
        left_out = all(name.startswith("-") and name not in known for name in names)
        if not left_out and (mixed := [name for name in names if name.startswith("-") and name not in known]):
            expected = "names that all have a minus in front, or none of them"
            raise RecipeError(where, expected=expected, found=f"{mixed[0]} beside others")
        wanted = [name[1:] for name in names] if left_out else list(names)
        for name in wanted:
            if name not in known:
                expected = f"names among {', '.join(known)}"
                raise RecipeError(where, expected=expected, found=name, hint=did_you_mean(name, known).lstrip("; "))
        kept = [
            msgspec.structs.replace(member, name=name)
            for name, member in zip(known, self.members, strict=True)
            if (name in wanted) != left_out
        ]
        if not names or not kept:
            raise RecipeError(where, expected="at least one member", found="none")
        fewest = None if self.min_members is None else min(self.min_members, len(kept))
        return msgspec.structs.replace(self, members=kept, min_members=fewest)

    def with_rescue(self, *, rescue: bool) -> Recipe:
        """Return the recipe with a rescue of empty masks as its last step, or without any."""
        steps = tuple(step for step in self.postprocess if not isinstance(step, Rescue))
        own = [step for step in self.postprocess if isinstance(step, Rescue)] or [Rescue()]
        return msgspec.structs.replace(self, postprocess=(*steps, own[-1]) if rescue else steps)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file and the key."""
    recipe = read_table(path, Recipe)
    check_recipe(recipe, path)
    return recipe


def check_recipe(recipe: Recipe, where: str | Path) -> None:
    """Raise RecipeError for a recipe whose members cannot be fused, or whose steps cannot be applied.

    where: the file, or a name for the recipe. Whatever depends on the models is checked when they are loaded.
    """
    if not recipe.members:
        raise RecipeError(where, expected="at least one entry in members", found="none")
    for problem in (*_problems_of_members(recipe), *_problems_of_steps(recipe)):
        raise RecipeError(where, f"invalid content: {problem}")


def recipe_verdicts(path: Path, members: Sequence[str] | None = None) -> list[Verdict]:
    """Check a recipe without its models. members: the names of those that take part, as for `Recipe.with_members`."""
    rule = "a recipe whose members can be fused and whose steps can be applied"
    try:
        recipe = load_recipe(path)
        recipe = recipe if members is None else recipe.with_members(members)
    except RecipeError as error:
        return [Verdict(rule, False, str(error))]
    name_of = Registry.name_of
    steps = ", ".join(map(name_of, recipe.postprocess)) or "no steps"
    found = f"{recipe.name}: {', '.join(recipe.member_names)}; {name_of(recipe.fusion)}; {steps}"
    return [Verdict(rule, True, found)]


def _problems_of_members(recipe: Recipe) -> Iterator[str]:
    names, fusion = recipe.member_names, recipe.fusion
    kind = fusion.registry.name_of(fusion)
    for number, (name, member) in enumerate(zip(names, recipe.members, strict=True)):
        at = f" - at `$.members[{number}]`"
        if name in names[:number]:
            yield f"two members are called '{name}': give each a `name` of its own{at}"
        if member.pancreas_label == recipe.tumour_label_of(member):
            yield f"label {member.pancreas_label} cannot be both tumour and pancreas{at}"
        if member.threshold is not None and not fusion.takes_thresholds:
            yield f"the fusion {kind} has no use for a `threshold` of a member, only vote and staple have{at}"
        if member.weight != recipe.members[0].weight and not fusion.takes_weights:
            yield f"the fusion {kind} finds weights of its own, so members cannot have different ones{at}"
    if fusion.max_members is not None and len(names) > fusion.max_members:
        yield f"the fusion {kind} takes at most {fusion.max_members} members, and these are {len(names)}"
    if recipe.min_members is not None and recipe.min_members > len(names):
        yield f"min_members is {recipe.min_members}, and the members are {len(names)} - at `$.min_members`"


def _problems_of_steps(recipe: Recipe) -> Iterator[str]:
    located = recipe.localizer is not None and not recipe.localizer.crop
    if located and not any(step.needs == "localizer" for step in recipe.postprocess):
        yield "nothing uses the localizer: leave out `crop`, or add a step with `of` localizer - at `$.localizer.crop`"
    for number, step in enumerate(recipe.postprocess):
        if step.needs == "localizer" and recipe.localizer is None:
            kind = step.registry.name_of(step)
            at = f" - at `$.postprocess[{number}]`"
            yield f"the step '{kind}' looks at the localizer's pancreas, and the recipe has no localizer{at}"


def _refuse_repeated(folds: Folds) -> None:
    if len(set(folds)) < len(folds) and folds != "all":
        raise ValueError(f"folds {folds} must be named once each")
