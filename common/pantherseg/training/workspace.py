"""Where the files of a training are: what the user gave, and what lies in the output folder.

raw/ preprocessed/ results/     nnU-Net's three folders
bundles/<stage>                 what the containers use
probabilities/<stage>/<case>    the tumour's probability by the fold that was not trained on the case
uncropped/                      the data sets of stages that train on crops, before they were cropped
pseudo/<name>/<key>             the masks of a data set that is labelled by a model
state/                          what is finished, and the splits that were given
earlier/                        folds and bundles that were trained with other settings or data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pantherseg.datasets.raw import IMAGES, dataset_folder
from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import ModelError
from pantherseg.model_sources.nnunet import DATASET, PLANS
from pantherseg.models.find import find_localizer
from pantherseg.models.manifest import MANIFEST
from pantherseg.paths import ZOO, own_weights, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.training.content import files_below, files_of_data
from pantherseg.training.folders import SUMMARY, VALIDATION, TrainingFolders
from pantherseg.training.graph import WEIGHTS, DataSource, PseudoLabels, Stage, TrainingFile
from pantherseg.training.steps import Step
from pantherseg.training.trainers import TRAINERS
from pantherseg.weights.zoo import load_zoo


@dataclass(frozen=True)
class Inputs:
    """What the user gave.

    data: folders by data set; starts: model folders by stage, in place of the published weights that the stage names;
    splits: published splits by stage; models: folder with the localizer that crops are made with.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    starts: Mapping[str, Path] = field(default_factory=dict)
    splits: Mapping[str, Path] = field(default_factory=dict)
    models: Path | None = None


@dataclass(frozen=True)
class Workspace:
    """The files of a training."""

    graph: TrainingFile
    output: Path
    inputs: Inputs

    @property
    def raw(self) -> Path:
        """The folder of raw data sets."""
        return self.output / "raw"

    def dataset(self, name: str) -> Path:
        """Return the raw data set of a data set, a stage or a pseudo-labelled data set. Raises OutputError."""
        return dataset_folder(self.raw, self._number(name), name)

    def uncropped(self, stage: str) -> Path:
        """Return the data set of a stage before cropping; for a stage without crops the data set itself."""
        if self.graph.stage[stage].crop is None:
            return self.dataset(stage)
        return dataset_folder(self.output / "uncropped", self._number(stage), stage)

    def folders(self, stage: str) -> TrainingFolders:
        """Return the folders of a stage's trainer."""
        return TRAINERS[self.graph.stage[stage].trainer].folders(self.dataset(stage), self.output)

    def bundle(self, stage: str) -> Path:
        """Return the bundle of a stage."""
        return self.output / "bundles" / stage

    def probabilities(self, stage: str) -> Path:
        """Return the folder of a stage's out-of-fold probabilities."""
        return self.output / "probabilities" / stage

    def masks(self, pseudo: str) -> Path:
        """Return the folder of the masks of a data set that is labelled by a model, with one folder for each model."""
        return self.output / "pseudo" / pseudo

    def kept_splits(self, stage: str) -> Path:
        """Return the copy of the splits that were given for a stage, in this run or an earlier one."""
        return self.output / "state" / "splits" / f"{stage}.json"

    @property
    def models(self) -> Path:
        """The folder with the localizer. Raises ModelError if none was given."""
        if self.inputs.models is None:
            hint = "name it with --model; weights/demo has one for phantoms"
            raise ModelError("localizer", expected="a folder of models to crop the cases by", found="none", hint=hint)
        return self.inputs.models

    def start(self, stage: str) -> Path | None:
        """Return the folder of the published weights from which a stage starts, None if it starts from no such weights.

        Raises ModelError if it is missing.
        """
        settings = self.graph.stage[stage]
        if settings.start is None or settings.start_stage is not None:
            return None
        hint, name = f"name a model folder or bundle with --start {stage}=DIR", settings.start.removeprefix(WEIGHTS)
        if stage not in self.inputs.starts and name in {entry.name for entry in load_zoo(ZOO)}:
            hint += f", or run `pantherseg weights fetch {name}`"
        return _model_folder(self.given(f"start/{stage}") or self.output, hint)

    def given(self, what: str) -> Path | None:
        """Return the file or folder for something that a step reads from outside, None if it was not given.

        what: `data/<data>`, `start/<stage>`, `splits/<stage>` or `localizer/<task>`.
        """
        kind, _, name = what.partition("/")
        if kind == "start":
            published = (self.graph.stage[name].start or "").removeprefix(WEIGHTS)
            return self.inputs.starts.get(name) or own_weights() / published
        if kind == "localizer":
            return self._localizer(int(name))
        if kind == "splits":
            kept = self.kept_splits(name)
            return self.inputs.splits.get(name) or (kept if kept.is_file() else None)
        return self.inputs.data.get(name)

    def files_of(self, what: str) -> dict[str, Path] | None:
        """Return the files of something that a step reads from outside, None if it is not there.

        Raises InputError for a data set without cases.
        """
        path = self.given(what)
        if path is None or not path.exists():
            return None
        kind, _, name = what.partition("/")
        return files_of_data(self.graph.data[name].layout, path) if kind == "data" else files_below(path)

    def missing(self, step: Step) -> Path | None:
        """Return a result of a step that does not exist, None if all exist."""
        return next((path for path in self.results(step) if not path.exists()), None)

    def outputs(self, step: Step) -> list[Path]:
        """Return the files and folders that a step replaces."""
        name = step.subject
        if step.kind in ("import", "data", "pseudo"):
            return [self.dataset(name), *([self.uncropped(name)] if name in self.graph.stage else [])]
        if step.kind == "bundle":
            return [self.bundle(name)]
        folders = self.folders(name)
        fold = folders.fold(step.fold or 0)
        return {"plan": [folders.plans], "fold": [fold], "validate": [fold / VALIDATION]}[step.kind]

    def results(self, step: Step) -> list[Path]:
        """Return the files by which a step is known to be complete."""
        name = step.subject
        if step.kind in ("import", "data", "pseudo"):
            dataset = self.dataset(name)
            links = (dataset / IMAGES).iterdir() if (dataset / IMAGES).is_dir() else ()
            return [dataset / DATASET, *([dataset / SPLITS] if step.kind == "data" else []), *sorted(links)]
        if step.kind == "bundle":
            return [self.bundle(name) / MANIFEST]
        folders = self.folders(name)
        fold, stage = folders.fold(step.fold or 0), self.graph.stage[name]
        files = {
            "plan": [folders.plans, folders.preprocessed / SPLITS],
            "fold": [fold / TRAINERS[stage.trainer].final, fold / stage.used_checkpoint],
            "validate": [fold / VALIDATION / SUMMARY],
        }
        return files[step.kind]

    def _localizer(self, task: int) -> Path | None:
        """Return the localizer of a task's recipe, None without one in the folder of models or without this folder."""
        settings = load_recipe(task_recipe(task)).localizer
        if settings is None or self.inputs.models is None or not self.inputs.models.is_dir():
            return None
        model = find_localizer(self.inputs.models, settings)
        return None if model is None else model.path

    def _number(self, name: str) -> int:
        tables: tuple[Mapping[str, DataSource | Stage | PseudoLabels], ...]
        tables = self.graph.data, self.graph.stage, self.graph.pseudo
        return next(table[name].dataset_id for table in tables if name in table)


def _model_folder(folder: Path, hint: str) -> Path:
    """Return the only nnU-Net model folder or bundle with plans at or below a folder. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(folder, expected="a model to start from", found="no such folder", hint=hint)
    found = [path.parent for path in sorted(folder.rglob(PLANS))]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        expected = f"one nnU-Net model folder or bundle with {PLANS} to start from"
        raise ModelError(folder, expected=expected, found=names, hint=hint)
    return found[0]
