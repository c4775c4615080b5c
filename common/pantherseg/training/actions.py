"""What each kind of step does. Each function returns what the step's record keeps as its result."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pantherseg.datasets.crops import crop_dataset, load_localizer
from pantherseg.datasets.importing import REPORT, Source, import_data
from pantherseg.datasets.raw import RawCase, RawDataset, is_raw_dataset, new_dataset
from pantherseg.datasets.splits import check_number, read_splits, split_dataset
from pantherseg.errors import InputError, ModelError, OutputError
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_labels, write_volume
from pantherseg.labels import LABEL_MAPS
from pantherseg.models.bundle import open_bundle
from pantherseg.orientation import DEFAULT_ORIENTATION
from pantherseg.paths import task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.training.earlier import UNKNOWN, set_aside
from pantherseg.training.leaks import check_starts, read_split_dataset
from pantherseg.training.out_of_fold import OutOfFold, dice_by_label
from pantherseg.training.provenance import write_bundle
from pantherseg.training.start import start_checkpoint, start_configuration
from pantherseg.training.state import State
from pantherseg.training.steps import Step, start_fold, steps_of
from pantherseg.training.trainers import TRAINERS, Configuration
from pantherseg.training.validation import validate_fold
from pantherseg.training.workspace import Workspace
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

Result = dict[str, Any]
Action = Callable[[Workspace, Step, str], Result]


def import_step(work: Workspace, step: Step, device: str) -> Result:
    """Import a data set from the folder that was given for it."""
    settings, folder = work.graph.data[step.subject], work.inputs.data[step.subject]
    source = Source("raw" if is_raw_dataset(folder) else settings.layout, folder)
    report = import_data(
        [source],
        work.raw,
        settings.dataset_id,
        step.subject,
        labels=settings.labels,
        orientation=settings.orientation,
        require_tumour=settings.require_tumour,
        root=work.output,
    )
    if report.refused:
        logger.warning("%s: %d cases were refused, see %s", step.name, len(report.refused), report.dataset / REPORT)
    return {"cases": len(report.imported), "refused": len(report.refused)}


def data_step(work: Workspace, step: Step, device: str) -> Result:
    """Make the data set that a stage trains on, and split it."""
    name, stage = step.subject, work.graph.stage[step.subject]
    given = work.given(f"splits/{name}")
    if given is not None:
        check_number(given, read_splits(given), stage.folds, stage=name)
    sources = [Source("raw", work.dataset(data)) for data in stage.data]
    orientation = RawDataset.open(sources[0].folder).orientation or DEFAULT_ORIENTATION
    raw = work.uncropped(name).parent
    # An image that is also among those without labels is left out there: cases labelled by experts go first.
    report = import_data(
        sources, raw, stage.dataset_id, name, labels=stage.labels, orientation=orientation, root=work.output
    )
    result: Result = {"cases": len(report.imported), "refused": len(report.refused)}
    if stage.crop is not None:
        settings = load_recipe(task_recipe(stage.crop.task))
        localizer, wanted = load_localizer(settings, work.models, device=device)
        source = RawDataset.open(work.uncropped(name))
        cropped = crop_dataset(source, work.raw, stage.dataset_id, name, localizer=localizer, settings=wanted)
        result["remarks"] = {case: known.remark for case, known in cropped.cases.items() if known.remark}
    splits = split_dataset(RawDataset.open(work.dataset(name)), folds=stage.folds, given=given)
    _check_starts(work, name)
    return result | {"validation": [len(split["val"]) for split in splits]}


def plan_step(work: Workspace, step: Step, device: str) -> Result:
    """Plan and preprocess."""
    _check_starts(work, step.subject)  # again: now the data sets of all starts are there
    stage = work.graph.stage[step.subject]
    kept: Configuration | None = None
    if stage.start_stage is not None:
        record = State(work.output).finished(steps_of(work.graph).by_name[f"plan.{stage.start_stage}"])
        kept = None if record is None else record.result["configuration"]
    elif (weights := work.start(step.subject)) is not None:
        kept = start_configuration(weights)
    return {"configuration": TRAINERS[stage.trainer].plan(work.folders(step.subject), stage, kept=kept)}


def fold_step(work: Workspace, step: Step, device: str) -> Result:
    """Train a fold, or go on where its training was interrupted."""
    stage, fold = work.graph.stage[step.subject], step.fold or 0
    start: Path | None = None
    if stage.start_stage is not None:
        begins = start_fold(work.graph, stage, fold)
        start = work.folders(stage.start_stage).fold(begins) / TRAINERS[stage.trainer].final
    elif (weights := work.start(step.subject)) is not None:
        start = start_checkpoint(weights, fold)
    TRAINERS[stage.trainer].train(work.folders(step.subject), stage, fold=fold, start=start, device=device)
    return {}


def validate_step(work: Workspace, step: Step, device: str) -> Result:
    """Segment the cases that a fold was not trained on, and keep the scores and the tumour's probabilities."""
    stage, fold = work.graph.stage[step.subject], step.fold or 0
    kept = OutOfFold(work.uncropped(step.subject), work.dataset(step.subject), work.probabilities(step.subject))
    summary = validate_fold(
        work.folders(step.subject), fold=fold, device=device, checkpoint=stage.used_checkpoint, each=kept.add
    )
    return {"dice": dice_by_label(summary, stage.labels), "scores": kept.scores, "unscored": kept.unscored}


def bundle_step(work: Workspace, step: Step, device: str) -> Result:
    """Pack the folds into a bundle that says where it comes from. Folds that the stage no longer has are set aside."""
    folders, used = work.folders(step.subject), set(work.graph.stage[step.subject].used_folds)
    for path in sorted(folders.model.glob("fold_*")):
        number = path.name.removeprefix("fold_")
        if number.isdigit() and int(number) not in used:
            set_aside(work.output, path, f"fold.{step.subject}.{number}", UNKNOWN)
    return write_bundle(work, step, State(work.output))


def pseudo_step(work: Workspace, step: Step, device: str) -> Result:
    """Label a data set by the model of a stage. Masks that this model made of these images before are kept."""
    settings = work.graph.pseudo[step.subject]
    source, dropped = RawDataset.open(work.dataset(settings.data)), []
    new_labels = new_dataset(
        work.raw,
        settings.dataset_id,
        step.subject,
        labels=LABEL_MAPS[work.graph.stage[settings.by].labels],
        orientation=source.orientation or DEFAULT_ORIENTATION,
        file_ending=source.file_ending,
    )
    with new_labels as new, _masks_of_one_model(work, step) as folder:
        predictor = Predictor(open_bundle(work.bundle(settings.by)), choose_backend(device))
        for case, known in source.cases.items():
            label = _mask(predictor, source, case, folder / f"{case}{source.file_ending}")
            if settings.drop_empty and not label.array.any():
                dropped.append(case)
                continue
            new.add(
                case, RawCase(patient=known.patient, origin=known.origin, pseudo=True), source.image_path(case), label
            )
        if not new.cases:
            found = f"nothing but background in {len(source.cases)} cases"
            raise InputError(source.folder, expected=f"cases that the model of '{settings.by}' can label", found=found)
    for other in work.masks(step.subject).iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    logger.info("%s: %d cases labelled, %d dropped", step.name, len(source.cases) - len(dropped), len(dropped))
    return {"cases": len(source.cases) - len(dropped), "dropped": dropped}


ACTIONS: dict[str, Action] = {
    "import": import_step,
    "data": data_step,
    "plan": plan_step,
    "fold": fold_step,
    "validate": validate_step,
    "bundle": bundle_step,
    "pseudo": pseudo_step,
}


def _check_starts(work: Workspace, stage: str) -> None:
    """Check that no fold is validated on patients on whom its start was trained. Raises InputError."""
    check_starts(work.graph, stage, lambda other: read_split_dataset(work.dataset(other)))


@contextmanager
def _masks_of_one_model(work: Workspace, step: Step) -> Iterator[Path]:
    """Yield the folder of the masks that a model makes, while its bundle must not be replaced.

    Raises OutputError where another process has replaced it, also if it could therefore not be read.
    """
    folder = _masks_folder(work, step)
    try:
        yield folder
    except ModelError:
        _check_not_replaced(work, step, folder)
        raise
    _check_not_replaced(work, step, folder)


def _check_not_replaced(work: Workspace, step: Step, folder: Path) -> None:
    if _masks_folder(work, step) != folder:
        problem = "another process replaced this bundle while it labelled cases"
        raise OutputError(work.bundle(work.graph.pseudo[step.subject].by), problem, hint="run the command again")


def _masks_folder(work: Workspace, step: Step) -> Path:
    """Return the folder of the masks that one model makes of some images: its name follows from both."""
    state, steps = State(work.output), steps_of(work.graph).by_name
    made_of = [record.fingerprint for need in step.needs if (record := state.finished(steps[need])) is not None]
    return work.masks(step.subject) / hashlib.sha256("".join(made_of).encode()).hexdigest()[:8]


def _mask(predictor: Predictor, source: RawDataset, case: str, path: Path) -> Volume:
    """Return the label map that a model makes of a case; the one in `path` if it is there."""
    if not path.is_file():
        image = source.image(case)
        write_volume(Volume(predictor.predict(image).labels(), image.grid), path)
    return read_labels(path)
