"""The steps of a training file in the order in which they run, and their fingerprints.

import.<data>              the folder of a data set becomes a raw nnU-Net data set
data.<stage>               the raw data set that a stage trains on: its cases, labels and crops
plan.<stage>               fingerprint, plans, splits and preprocessed cases
fold.<stage>.<k>           the training of one fold
validate.<stage>.<k>       its predictions of the cases that it was not trained on
bundle.<stage>             the bundle, with figures and provenance
pseudo.<pseudo>            labels by the model of a stage

The fingerprint of a step is a hash of its settings, of the content that it reads from outside, and of the fingerprints
of the steps that it needs. Where it is unchanged, what was computed for it is still valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from pantherseg.errors import RecipeError
from pantherseg.paths import task_recipe
from pantherseg.recipe import Localizer, load_recipe
from pantherseg.training.graph import Crop, Stage, TrainingFile
from pantherseg.training.training_recipe import UNIMPORTANT

StepKind = Literal["import", "data", "plan", "fold", "validate", "bundle", "pseudo"]
# The steps that go on where they were interrupted; the others begin again.
RESUMABLE: tuple[StepKind, ...] = ("fold", "pseudo")
# The steps that replace files which other steps of the same subject read.
REPLACING: tuple[StepKind, ...] = ("import", "data", "plan", "pseudo")


@dataclass(frozen=True)
class Step:
    """One step. subject: the data set, stage or pseudo-labelled data set; needs: steps that must be finished first.

    outside: what the step reads that no step makes, such as `data/t1` or `start/ct`; records: those of `needs` of which
    it reads the record alone, so that their files may be gone.
    """

    kind: StepKind
    subject: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    fold: int | None = None
    outside: tuple[str, ...] = ()
    records: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in tables, options and file names, such as `fold.teacher.0`."""
        return f"{self.kind}.{self.subject}" + ("" if self.fold is None else f".{self.fold}")

    @property
    def locks(self) -> dict[str, bool]:
        """The subjects whose files the step reads (True) or replaces (False), in the order in which they are locked."""
        sources = [need.partition(".")[2] for need in self.needs if need.startswith(("import.", "pseudo."))]
        return dict(sorted({**dict.fromkeys(sources, True), self.subject: self.kind not in REPLACING}.items()))


@dataclass(frozen=True)
class Steps:
    """All steps by name, each after those that it needs."""

    by_name: Mapping[str, Step] = field(default_factory=dict)

    def needed_for(self, targets: Iterable[str]) -> list[str]:
        """Return the names of some steps and of all that they need, in order."""
        wanted: set[str] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting.extend(self.by_name[name].needs)
        return [name for name in self.by_name if name in wanted]

    def fingerprints(self, outside: Mapping[str, str]) -> dict[str, str]:
        """Return the fingerprint of every step. outside: the fingerprint of each content from outside."""
        found: dict[str, str] = {}
        for name, step in self.by_name.items():
            content = {
                "kind": step.kind,
                "settings": step.settings,
                "outside": {what: outside.get(what, "") for what in step.outside},
                "needs": {need: found[need] for need in step.needs},
            }
            found[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return found


def steps_of(graph: TrainingFile) -> Steps:
    """Return the steps of a training file: first those that only read data, which may turn out to be unusable."""
    steps: dict[str, Step] = {}
    for kind, name in graph.order():
        if kind == "data":
            source = graph.data[name]
            settings = _plain(source, but=("assumed",))
            added = [Step("import", name, (), settings, outside=(f"data/{name}",))]
        elif kind == "stage":
            added = _stage_steps(graph, name, graph.stage[name])
        else:
            pseudo = graph.pseudo[name]
            needs = f"import.{pseudo.data}", f"bundle.{pseudo.by}"
            added = [Step("pseudo", name, needs, _plain(pseudo))]
        steps |= {step.name: step for step in added}
    early = {name: step for name, step in steps.items() if _only_reads_data(step)}
    return Steps(early | steps)


def choose(steps: Steps, *, stage: str | None = None, fold: int | None = None, step: str | None = None) -> list[str]:
    """Return the steps of a stage, of a fold of a stage, or one step, with all that they need; by default all steps.

    Raises RecipeError for a stage, fold or step that there is not.
    """
    if step is not None:
        if step not in steps.by_name:
            raise RecipeError("--step", expected=f"one of {', '.join(steps.by_name)}", found=step)
        return steps.needed_for([step])
    if stage is None:
        return list(steps.by_name)
    stages = {each.subject for each in steps.by_name.values() if each.kind == "bundle"}
    if stage not in stages:
        raise RecipeError("--stage", expected=f"one of {', '.join(sorted(stages))}", found=stage)
    targets = [f"bundle.{stage}"] if fold is None else [f"validate.{stage}.{fold}"]
    if targets[0] not in steps.by_name:
        folds = sorted(
            str(each.fold) for each in steps.by_name.values() if (each.kind, each.subject) == ("fold", stage)
        )
        raise RecipeError("--fold", expected=f"one of {', '.join(folds)} of stage {stage}", found=str(fold))
    return steps.needed_for(targets)


def start_step(graph: TrainingFile, stage: Stage, fold: int) -> str | None:
    """Return the step that trains what a fold starts from: the same fold, or the only one, if any."""
    if stage.start_stage is None:
        return None
    return f"fold.{stage.start_stage}.{start_fold(graph, stage, fold)}"


def start_fold(graph: TrainingFile, stage: Stage, fold: int) -> int:
    """Return the fold from which a fold starts, of the stage from which its stage starts, if it starts from one."""
    folds = graph.stage[stage.start_stage or ""].used_folds
    return fold if len(folds) > 1 else folds[0]


def starts_of(graph: TrainingFile, name: str, fold: int) -> list[tuple[str, int]]:
    """Return the stages and folds from which a fold starts: its own start, the start of that, and so on."""
    found = []
    while (start := graph.stage[name].start_stage) is not None:
        name, fold = start, start_fold(graph, graph.stage[name], fold)
        found.append((name, fold))
    return found


def _only_reads_data(step: Step) -> bool:
    return step.kind == "import" or (step.kind == "data" and all(need.startswith("import.") for need in step.needs))


def _stage_steps(graph: TrainingFile, name: str, stage: Stage) -> list[Step]:
    data_needs = tuple(f"pseudo.{data}" if data in graph.pseudo else f"import.{data}" for data in stage.data)
    outside = (f"splits/{name}", *((f"localizer/{stage.crop.task}",) if stage.crop is not None else ()))
    crop = None if stage.crop is None else {"task": stage.crop.task, "localizer": _plain(crop_settings(stage.crop))}
    data = {"labels": stage.labels, "dataset_id": stage.dataset_id, "crop": crop, "folds": stage.folds}
    # Without a network of its own, a stage takes over the plan of the one that it starts from.
    start_plan = () if stage.start_stage is None else (f"plan.{stage.start_stage}",)
    weights = () if stage.start is None or stage.start_stage else (f"start/{name}",)
    steps = [
        Step("data", name, data_needs, data, outside=outside),
        Step(
            "plan",
            name,
            (f"data.{name}", *start_plan),
            {"plan": _plain(stage.plan if stage.lightning is None else stage.lightning.plan)},
            outside=weights,
            records=start_plan,
        ),
    ]
    schedule = _plain(stage.length, but=UNIMPORTANT)
    training = {"trainer": stage.trainer, "schedule": schedule, "seed": stage.seed}
    for fold in stage.used_folds:
        begins = start_step(graph, stage, fold)
        needs = (f"plan.{name}", *([begins] if begins else []))
        steps.append(Step("fold", name, needs, training, fold, weights))
        steps.append(Step("validate", name, (f"fold.{name}.{fold}",), {"checkpoint": stage.used_checkpoint}, fold))
    validated = tuple(f"validate.{name}.{fold}" for fold in stage.used_folds)
    trained = tuple(f"fold.{name}.{fold}" for fold in stage.used_folds)
    needs = (*trained, *validated)
    return [*steps, Step("bundle", name, needs, {"checkpoint": stage.used_checkpoint}, records=validated)]


def crop_settings(crop: Crop) -> Localizer:
    """Return the localizer of a task's recipe, by which cases are cropped. Raises RecipeError if it has none."""
    recipe = load_recipe(task_recipe(crop.task))
    if recipe.localizer is None:
        raise RecipeError(task_recipe(crop.task), expected="a localizer to crop the cases by", found="none")
    return recipe.localizer


def _plain(table: Any, but: Iterable[str] = ()) -> Any:
    """Return a table as plain data, as it will be read from a record, without some keys that change no result."""
    data = msgspec.json.decode(msgspec.json.encode(table))
    return {key: value for key, value in data.items() if key not in but} if isinstance(data, dict) else data
