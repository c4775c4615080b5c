"""Checks everything that a training needs before its first step runs, so that hours are not spent in vain."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pantherseg.datasets.layouts import FoundCase, find_cases
from pantherseg.datasets.raw import is_raw_dataset
from pantherseg.datasets.splits import read_splits
from pantherseg.errors import InputError, OutputError, RecipeError
from pantherseg.evaluation.metrics import surface_distance_library
from pantherseg.files import prepare_folder
from pantherseg.inference.backends import choose_backend
from pantherseg.labels import LABEL_MAPS, TUMOUR_NAME
from pantherseg.training.run import Training
from pantherseg.training.start import start_checkpoint, start_configuration
from pantherseg.training.steps import Step

# A preprocessed case takes about this many times the bytes of its files: float32, and often a finer grid.
PREPROCESSED = 5
GB = 1e9


def check_inputs(training: Training) -> None:
    """Check the inputs of all steps that have to run.

    Raises InputError for a data set that is missing, empty or too small for its folds, or lacks its labels; ModelError
    for a model to start from or a localizer that is missing or damaged; PantherSegError if scores cannot be computed;
    OutputError if the output folder cannot be written or its disk is too small.
    """
    work = training.work
    prepare_folder(work.output)
    cases = {step.subject: _cases(training, step) for step in training.unfinished if step.kind == "import"}
    for step in training.unfinished:
        stage = training.graph.stage.get(step.subject)
        if step.kind == "data" and stage is not None:
            if stage.crop is not None and work.given("localizer") is None:
                raise InputError(work.models, "there is no localizer in this folder of models")
            if (splits := work.inputs.splits.get(step.subject)) is not None:
                read_splits(splits)
            if all(name in cases for name in stage.data if training.graph.is_labelled(name)):
                patients = {
                    case.known.patient for name in stage.data for case in cases.get(name, ()) if not case.known.pseudo
                }
                if len(patients) < stage.folds:
                    expected = f"at least one patient for each of the {stage.folds} folds of stage '{step.subject}'"
                    raise InputError(work.inputs.data[stage.data[0]], expected=expected, found=str(len(patients)))
        elif step.kind in ("plan", "fold") and stage is not None and stage.start is not None and not stage.start_stage:
            folder = work.start(step.subject)
            assert folder is not None  # the stage has a start
            start_checkpoint(folder, step.fold or 0)
            start_configuration(folder)
        elif step.kind == "validate" and stage is not None and TUMOUR_NAME in LABEL_MAPS[stage.labels]:
            surface_distance_library()
    _check_disk(training, cases)


def check_names(training: Training) -> None:
    """Raise RecipeError for an option that names a data set or a stage that the training file does not have."""
    graph, inputs = training.graph, training.work.inputs
    for option, given, known in (
        ("--data", inputs.data, graph.data),
        ("--start", inputs.starts, graph.stage),
        ("--splits", inputs.splits, graph.stage),
    ):
        if unknown := [name for name in given if name not in known]:
            raise RecipeError(option, expected=f"one of {', '.join(known) or 'none'}", found=unknown[0])


def usable_devices(devices: Sequence[str], *, dry_run: bool) -> tuple[str, ...]:
    """Return devices with `auto` replaced by what there is. Raises DeviceError for a GPU that cannot be used."""
    if devices == ("auto",):
        return (choose_backend("auto").device,)
    if not dry_run and any(device.startswith("cuda") for device in devices):
        choose_backend("cuda")
    return tuple(devices)


def _cases(training: Training, step: Step) -> tuple[FoundCase, ...]:
    """Return the cases of a data set that has to be imported."""
    name, settings = step.subject, training.graph.data[step.subject]
    folder = training.work.inputs.data.get(name)
    if folder is None:
        hint = f"name it with --data {name}=FOLDER (layout {settings.layout})"
        raise InputError(f"data set '{name}'", expected="a folder", found="none", hint=hint)
    found = find_cases("raw" if is_raw_dataset(folder) else settings.layout, folder)
    if settings.labelled and not found.values:
        raise InputError(folder, expected=f"images with labels for the data set '{name}'", found="images alone")
    return found.cases


def _check_disk(training: Training, cases: dict[str, tuple[FoundCase, ...]]) -> None:
    """Raise OutputError if the disk has less room than the imported and preprocessed cases are expected to take."""
    sizes = {name: sum(map(_size, _files(found))) for name, found in cases.items()}
    wanted = sum(sizes.values())
    for step in training.unfinished:
        if step.kind == "plan":
            wanted += PREPROCESSED * sum(sizes.get(name, 0) for name in training.graph.stage[step.subject].data)
    free = shutil.disk_usage(training.work.output).free
    if wanted > free:
        expected = f"about {wanted / GB:.1f} GB for imported and preprocessed cases"
        raise OutputError(training.work.output, expected=expected, found=f"{free / GB:.1f} GB free")


def _files(cases: tuple[FoundCase, ...]) -> Iterator[Path]:
    for case in cases:
        yield from (path for path in (case.image, case.label) if path is not None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
