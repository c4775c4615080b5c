"""Where the files of a training are: what the user gave, and what lies in the output folder.

raw/ preprocessed/ results/     nnU-Net's three folders
bundles/<stage>                 what the containers use
probabilities/<stage>/<case>    the tumour's probability by the fold that was not trained on the case
uncropped/                      the data sets of stages that train on crops, before they were cropped
pseudo/<name>                   the masks of a data set that is labelled by a model
state/                          what is finished
earlier/                        folds and bundles that were trained with other settings or data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pantherseg.datasets.raw import dataset_folder
from pantherseg.errors import ModelError
from pantherseg.model_sources.nnunet import PLANS
from pantherseg.models.bundle import is_bundle
from pantherseg.models.find import find_localizer
from pantherseg.paths import own_weights, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.training.folders import TrainingFolders
from pantherseg.training.graph import WEIGHTS, DataSource, PseudoLabels, Stage, TrainingFile
from pantherseg.training.steps import Step


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
        """Return nnU-Net's folders of a stage. Raises InputError before its data set exists."""
        return TrainingFolders(self.dataset(stage), self.output)

    def bundle(self, stage: str) -> Path:
        """Return the bundle of a stage."""
        return self.output / "bundles" / stage

    def probabilities(self, stage: str) -> Path:
        """Return the folder of a stage's out-of-fold probabilities."""
        return self.output / "probabilities" / stage

    def masks(self, pseudo: str) -> Path:
        """Return the folder of the masks of a data set that is labelled by a model."""
        return self.output / "pseudo" / pseudo

    @property
    def models(self) -> Path:
        """The folder with the localizer. Raises ModelError if none was given."""
        if self.inputs.models is None:
            hint = "name it with --model; weights/demo has one for phantoms"
            raise ModelError("localizer", expected="a folder of models to crop the cases by", found="none", hint=hint)
        return self.inputs.models

    def start(self, stage: str) -> Path | None:
        """Return the model folder from which a stage starts, None without one. Raises ModelError if it is missing."""
        settings = self.graph.stage[stage]
        if settings.start is None:
            return None
        if settings.start_stage is not None:
            return self.folders(settings.start_stage).model
        hint = f"name a model folder with --start {stage}=DIR"
        if stage not in self.inputs.starts:
            hint += f", or run `pantherseg weights fetch {settings.start.removeprefix(WEIGHTS)}`"
        return _model_folder(self.given(f"start/{stage}") or self.output, hint)

    def given(self, what: str) -> Path | None:
        """Return the file or folder for something that a step reads from outside, None if it was not given.

        what: `data/<data>`, `start/<stage>`, `splits/<stage>` or `localizer`.
        """
        kind, _, name = what.partition("/")
        if kind == "start":
            return self.inputs.starts.get(name) or own_weights() / (self.graph.stage[name].start or "").removeprefix(
                WEIGHTS
            )
        if kind == "localizer":
            return self._localizer()
        return (self.inputs.data if kind == "data" else self.inputs.splits).get(name)

    def missing(self, step: Step) -> Path | None:
        """Return a result of a step that does not exist, None if all exist."""
        expected = self.outputs(step)
        return self.output if not expected else next((path for path in expected if not path.exists()), None)

    def outputs(self, step: Step) -> list[Path]:
        """Return the files and folders that a step makes, the most important one first."""
        name = step.subject
        if step.kind in ("import", "data"):
            return [self.dataset(name), *([self.uncropped(name)] if name in self.graph.stage else [])]
        if step.kind == "pseudo":
            return [self.dataset(name), self.masks(name)]
        if step.kind == "bundle":
            return [self.bundle(name)]
        if not self.dataset(name).is_dir():
            return []
        folders = self.folders(name)
        fold = folders.fold(step.fold or 0)
        return {"plan": [folders.plans], "fold": [fold], "validate": [fold / "validation"]}[step.kind]

    def _localizer(self) -> Path | None:
        """Return the localizer of the first stage with crops, None without one or without a folder of models."""
        crops = [stage.crop for stage in self.graph.stage.values() if stage.crop is not None]
        settings = load_recipe(task_recipe(crops[0].task)).localizer if crops else None
        if settings is None or self.inputs.models is None or not self.inputs.models.is_dir():
            return None
        model = find_localizer(self.inputs.models, settings)
        return None if model is None else model.path

    def _number(self, name: str) -> int:
        tables: tuple[Mapping[str, DataSource | Stage | PseudoLabels], ...]
        tables = self.graph.data, self.graph.stage, self.graph.pseudo
        return next(table[name].dataset_id for table in tables if name in table)


def _model_folder(folder: Path, hint: str) -> Path:
    """Return the only nnU-Net model folder at or below a folder. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(folder, expected="a model folder to start from", found="no such folder", hint=hint)
    found = [path.parent for path in sorted(folder.rglob(PLANS)) if not is_bundle(path.parent)]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise ModelError(folder, expected="one nnU-Net model folder to start from", found=names, hint=hint)
    return found[0]
