"""A training file: where data come in, and the stages that train models on them, as a declared graph.

[data.<name>]     a data set that is imported
[stage.<name>]    a model that is trained on data sets; it may start from the weights of another stage
[pseudo.<name>]   a data set without labels, labelled by the model of a stage

Training files are TOML. `extends` takes over the tables of another one, so that the stages of Task 2 continue those of
Task 1 and share what was finished for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pantherseg.datasets.layouts import LAYOUTS
from pantherseg.errors import RecipeError
from pantherseg.labels import LABEL_MAPS, LabelMapName
from pantherseg.orientation import DEFAULT_ORIENTATION, Orientation
from pantherseg.tables import Positive, Table, read_table
from pantherseg.training.lightning_recipe import LightningSettings
from pantherseg.training.trainers import LIGHTNING, NNUNET, TRAINERS
from pantherseg.training.training_recipe import Count, Length, PlanSettings, ScheduleSettings

# Names are parts of folder names and of options.
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$")]
DatasetId = Annotated[int, Meta(ge=1, le=999)]
Kind = Literal["data", "stage", "pseudo"]
# What `start` begins with where it names published weights instead of a stage.
WEIGHTS = "weights/"


class Assumed(Table, frozen=True):
    """What a plan is made for before there is data: the number of cases, and the median shape and spacing (z, y, x)."""

    cases: Count
    shape: tuple[Count, Count, Count]
    spacing: tuple[Positive, Positive, Positive]


class DataSource(Table, frozen=True):
    """A data set that comes in from a folder."""

    layout: str
    """How the folder is laid out, a name in `datasets.layouts`; a raw nnU-Net data set is recognised by itself."""
    dataset_id: DatasetId
    """nnU-Net's number of the imported data set, 1 to 999."""
    labels: LabelMapName = "tumour+pancreas"
    labelled: bool | None = None
    """Whether there are labels by experts; if omitted, what the layout says."""
    require_tumour: bool = False
    """Refuse cases without a tumour."""
    orientation: Orientation = DEFAULT_ORIENTATION
    """Volumes are turned to it, and the models that are trained on them know it."""
    assumed: Assumed | None = None
    """What `--dry-run` reckons with as long as the folder is not given."""

    @property
    def has_labels(self) -> bool:
        """Whether there are labels by experts."""
        return LAYOUTS[self.layout].labelled if self.labelled is None else self.labelled


class Crop(Table, frozen=True):
    """Each case is cropped around its pancreas before training, as at inference."""

    task: Literal[1, 2] = 2
    """The task whose recipe has the localizer and the margin."""


class Stage(Table, frozen=True):
    """A model that is trained."""

    data: Annotated[list[str], Meta(min_length=1)]
    """Names of data sets and pseudo-labelled data sets."""
    dataset_id: DatasetId
    """nnU-Net's number of the data set that the stage trains on, with its labels and crops."""
    plan: PlanSettings = PlanSettings()
    """nnU-Net's network, patch and preprocessing."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The schedule of nnU-Net's trainer."""
    lightning: LightningSettings | None = None
    """The network and the schedule of the trainer `lightning`, in place of the two above."""
    labels: LabelMapName = "tumour+pancreas"
    """The label map that is learned."""
    folds: Annotated[int, Meta(ge=2)] = 5
    """Number of folds of the cross-validation."""
    trained_folds: Count | None = None
    """Train only the first folds, this many of them; if omitted, all."""
    start: str | None = None
    """The stage, or the published weights `weights/NAME`, from which the folds start."""
    crop: Crop | None = None
    """If omitted, the whole volume is used."""
    checkpoint: str = ""
    """The checkpoint that is validated and goes into the bundle, such as checkpoint_best.pth; if omitted, the final
    one, from which later stages start."""
    seed: int = 0
    trainer: str = NNUNET
    """A name in `trainers.TRAINERS`."""

    @property
    def used_folds(self) -> range:
        """The folds that are trained."""
        return range(self.trained_folds or self.folds)

    @property
    def used_checkpoint(self) -> str:
        """The file name of the checkpoint that is validated."""
        return self.checkpoint or TRAINERS[self.trainer].final

    @property
    def length(self) -> Length:
        """How long the training of a fold is, whichever the trainer."""
        return self.schedule if self.lightning is None else self.lightning.schedule

    @property
    def starts_from_weights(self) -> bool:
        """Whether the folds start from published weights."""
        return self.start is not None and self.start.startswith(WEIGHTS)

    @property
    def start_stage(self) -> str | None:
        """The stage from which the folds start, None where they start from nothing or from published weights."""
        return None if self.starts_from_weights else self.start


class PseudoLabels(Table, frozen=True):
    """Labels for a data set without labels, made by the model of a stage."""

    data: str
    by: str
    dataset_id: DatasetId
    drop_empty: bool = True
    """Leave out cases in which the model finds nothing but background."""


class TrainingFile(Table, frozen=True):
    """All data sets and stages of a system."""

    schema: Literal[2]
    name: Name
    extends: str | None = None
    """Another training file, relative to this one, whose tables are part of this one."""
    data: dict[Name, DataSource] = msgspec.field(default_factory=dict)
    stage: dict[Name, Stage] = msgspec.field(default_factory=dict)
    pseudo: dict[Name, PseudoLabels] = msgspec.field(default_factory=dict)

    def order(self) -> list[tuple[Kind, str]]:
        """Return every data set, stage and pseudo-labelled data set after those that it depends on."""
        return list(_sorter(self).static_order())

    def is_labelled(self, data: str) -> bool:
        """Return whether a data set that a stage names has labels by experts."""
        return data in self.data and self.data[data].has_labels


def load_training_file(path: Path) -> TrainingFile:
    """Read a training file and those that it extends.

    Raises RecipeError with the file and the key: for an invalid value, a name that is defined twice or not at all, a
    circle, a data set number that is used twice, and a stage without labels to learn from.
    """
    graph = _read(path, ())
    if not graph.stage:
        raise RecipeError(path, expected="at least one [stage.<name>]", found="none")
    for problem in problems(graph):
        raise RecipeError(path, problem)
    try:
        _sorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(name for _, name in error.args[1])
        raise RecipeError(path, expected="stages that do not depend on themselves", found=circle) from error
    return graph


def _read(path: Path, extended_by: tuple[Path, ...]) -> TrainingFile:
    if path.resolve() in extended_by:
        raise RecipeError(path, "this file extends itself")
    graph = read_table(path, TrainingFile)
    if graph.extends is None:
        return graph
    base = _read(path.parent / graph.extends, (*extended_by, path.resolve()))
    merged: dict[str, Any] = {}
    for table in ("data", "stage", "pseudo"):
        mine, theirs = getattr(graph, table), getattr(base, table)
        if twice := sorted(mine.keys() & theirs.keys()):
            raise RecipeError(path, f"[{table}.{twice[0]}] is also defined in {graph.extends}")
        merged[table] = theirs | mine
    return msgspec.structs.replace(graph, extends=None, **merged)


def _sorter(graph: TrainingFile) -> TopologicalSorter[tuple[Kind, str]]:
    def data_node(name: str) -> tuple[Kind, str]:
        return ("pseudo", name) if name in graph.pseudo else ("data", name)

    sorter: TopologicalSorter[tuple[Kind, str]] = TopologicalSorter()
    for name in graph.data:
        sorter.add(("data", name))
    for name, stage in graph.stage.items():
        starts: list[tuple[Kind, str]] = [("stage", stage.start_stage)] if stage.start_stage else []
        sorter.add(("stage", name), *map(data_node, stage.data), *starts)
    for name, pseudo in graph.pseudo.items():
        sorter.add(("pseudo", name), ("data", pseudo.data), ("stage", pseudo.by))
    return sorter


def problems(graph: TrainingFile) -> Iterator[str]:
    """Yield what is wrong with the names of a graph."""
    yield from _repeated(graph)
    for name, source in graph.data.items():
        if source.layout not in LAYOUTS:
            yield f"data.{name}.layout names '{source.layout}', which is not among the layouts: {_known(LAYOUTS)}"
    for name, pseudo in graph.pseudo.items():
        if pseudo.data not in graph.data:
            yield f"pseudo.{name}.data names '{pseudo.data}', which is not among the data sets: {_known(graph.data)}"
        if pseudo.by not in graph.stage:
            yield f"pseudo.{name}.by names '{pseudo.by}', which is not among the stages: {_known(graph.stage)}"
    for name, stage in graph.stage.items():
        if unknown := [data for data in stage.data if data not in graph.data and data not in graph.pseudo]:
            known = _known(graph.data | graph.pseudo)
            yield f"stage.{name}.data names '{unknown[0]}', which is not among the data sets: {known}"
        if stage.start_stage is not None and stage.start_stage not in graph.stage:
            known = _known(graph.stage)
            yield f"stage.{name}.start names '{stage.start}', which is neither {WEIGHTS}NAME nor a stage: {known}"
        if not any(map(graph.is_labelled, stage.data)):
            yield f"stage.{name} has no data set with labels by experts, which its validation needs"
        if len(stage.used_folds) > stage.folds:
            yield f"stage.{name}.trained_folds is {stage.trained_folds}, but there are only {stage.folds} folds"
        yield from _unlike_labels(graph, name, stage)
        yield from _trainer(graph, name, stage)
        if (start := graph.stage.get(stage.start_stage or "")) and 1 < len(start.used_folds) < len(stage.used_folds):
            found = f"{len(stage.used_folds)} folds, but '{stage.start}' has {len(start.used_folds)} to start from"
            yield f"stage.{name} has {found}"


def _trainer(graph: TrainingFile, name: str, stage: Stage) -> Iterator[str]:
    """Yield what is wrong with the settings of a stage's trainer."""
    if stage.trainer not in TRAINERS:
        yield f"stage.{name}.trainer names '{stage.trainer}', which is not among the trainers: {_known(TRAINERS)}"
        return
    known = TRAINERS[stage.trainer].final, TRAINERS[stage.trainer].best
    if stage.used_checkpoint not in known:
        yield f"stage.{name}.checkpoint names '{stage.checkpoint}', which is not among {' and '.join(known)}"
    if stage.trainer != LIGHTNING:
        if stage.lightning is not None:
            yield f'stage.{name} has a table `lightning`, which needs trainer = "{LIGHTNING}"'
        elif (stage.plan.network is None) == (stage.start is None):
            yield f"stage.{name} needs either plan.network or start, and not both"
    elif stage.lightning is None:
        yield f"stage.{name} needs a table `lightning` with `plan` and `schedule` for its trainer"
    else:
        if (stage.plan, stage.schedule) != (PlanSettings(), ScheduleSettings()):
            yield f"stage.{name} has `plan` or `schedule`, which are nnU-Net's, beside the table `lightning`"
        names = LABEL_MAPS[stage.labels]
        if unknown := [label for label in stage.lightning.schedule.sampling if label not in names]:
            found = f"'{unknown[0]}', which is not among the labels: {_known(names)}"
            yield f"stage.{name}.lightning.schedule.sampling names {found}"
        if stage.starts_from_weights:
            yield f"stage.{name} starts from {stage.start}, but its trainer can only start from a stage"
    start = graph.stage.get(stage.start_stage or "")
    if start is not None and start.trainer != stage.trainer:
        yield f"stage.{name} has the trainer {stage.trainer}, but '{stage.start}' has {start.trainer}"
    elif start is not None and start.lightning is not None and stage.lightning is not None:
        mine, theirs = (msgspec.to_builtins(one.lightning.plan.network) for one in (stage, start) if one.lightning)
        if differing := [key for key in mine | theirs if mine.get(key) != theirs.get(key)]:
            found = f"{differing[0]} {mine.get(differing[0])}, but '{stage.start}' has {theirs.get(differing[0])}"
            yield f"stage.{name} must have the network of the stage that it starts from: it has {found}"


def _unlike_labels(graph: TrainingFile, name: str, stage: Stage) -> Iterator[str]:
    for data in stage.data:
        if data in graph.data:
            given, labelled = graph.data[data].labels, graph.data[data].has_labels
        else:
            pseudo = graph.pseudo.get(data)
            given, labelled = (
                (graph.stage[pseudo.by].labels if pseudo and pseudo.by in graph.stage else stage.labels),
                True,
            )
        if not labelled:
            yield f"stage.{name}.data names '{data}', which has no labels: let a [pseudo.<name>] label it"
        if given != stage.labels and (given, stage.labels) != ("tumour+pancreas", "tumour"):
            yield f"stage.{name} learns {stage.labels}, but '{data}' has {given}"


def _repeated(graph: TrainingFile) -> Iterator[str]:
    """Yield numbers and names that two tables have: folders are named by them."""
    owners: dict[int, str] = {}
    tables: dict[str, str] = {}
    for table in ("data", "stage", "pseudo"):
        for name, entry in getattr(graph, table).items():
            if (other := tables.setdefault(name, table)) != table:
                yield f"{other}.{name} and {table}.{name} have the same name"
            if (owner := owners.setdefault(entry.dataset_id, f"{table}.{name}")) != f"{table}.{name}":
                yield f"{owner} and {table}.{name} have the same dataset_id {entry.dataset_id}"


def _known(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "there are none"
