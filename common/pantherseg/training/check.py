"""Checks everything that a training needs before its first step runs, so that hours are not spent in vain."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from pantherseg.datasets.importing import distinct_names
from pantherseg.datasets.layouts import FoundCase, find_cases
from pantherseg.datasets.raw import RawCase, is_raw_dataset
from pantherseg.datasets.splits import check_number, check_splits, make_splits, read_splits
from pantherseg.errors import DeviceError, InputError, OutputError, RecipeError
from pantherseg.files import prepare_folder
from pantherseg.inference.backends import choose_backend
from pantherseg.machine.memory import room_bytes
from pantherseg.training.assumed import StageCosts
from pantherseg.training.graph import TrainingFile
from pantherseg.training.leaks import SplitCases, check_starts, read_split_dataset
from pantherseg.training.run import Training
from pantherseg.training.start import check_start, start_checkpoint, start_configuration
from pantherseg.training.workspace import Inputs

# A preprocessed case takes about this many times the bytes of its files: float32, and often a finer grid.
PREPROCESSED = 5
GB = 1e9
# The memory of a training is known to about a sixth, and a machine may swap a little.
MUCH_TOO_SMALL = 1.5
LEAVE_OUT = "leave out this option"


def check_names(graph: TrainingFile, inputs: Inputs, output: Path) -> None:
    """Check the options before anything is read.

    Raises RecipeError for an option that names a data set or a stage that the training file does not have, or gives
    weights to a stage that starts from no published ones, and OutputError for an output folder in a data set, which
    would change whenever something is written.
    """
    for option, given, known in (
        ("--data", inputs.data, graph.data),
        ("--start", inputs.starts, [name for name, stage in graph.stage.items() if stage.starts_from_weights]),
        ("--splits", inputs.splits, graph.stage),
    ):
        if unknown := [name for name in given if name not in known]:
            if not known:
                raise RecipeError(option, "no stage of the training file starts from published weights", hint=LEAVE_OUT)
            raise RecipeError(option, expected=f"one of {', '.join(known)}", found=unknown[0])
    for folder in inputs.data.values():
        if output.resolve().is_relative_to(folder.resolve()):
            raise OutputError(output, expected="a folder outside the data", found=f"one in {folder}")


def usable_devices(devices: Sequence[str], *, dry_run: bool) -> tuple[str, ...]:
    """Return devices with `auto` replaced by what there is. Raises DeviceError for a GPU that cannot be used."""
    if devices == ("auto",):
        return (choose_backend("auto").device,)
    if not dry_run and any(device.startswith("cuda") for device in devices):
        choose_backend("cuda")
        import torch

        count = torch.cuda.device_count()
        for device in devices:
            number = device.partition(":")[2]
            if number and int(number) >= count:
                raise DeviceError("--devices", expected=f"GPUs from cuda:0 to cuda:{count - 1}", found=device)
    return tuple(devices)


def check_inputs(training: Training) -> None:
    """Check the inputs of all steps that have to run.

    Raises InputError for a data set that is missing, empty or too small for its folds, or lacks its labels, for splits
    that do not suit it, and for validation on patients on whom a start was trained; ModelError for a model to start
    from or a localizer that is missing or damaged, or does not fit; PantherSegError if scores cannot be computed;
    OutputError if the output folder cannot be written or its disk is too small.
    """
    prepare_folder(training.work.output)
    known, costs, fitting = KnownData(training), StageCosts(training.work, training.planned), set[tuple[str, Path]]()
    for step in training.unfinished:
        if step.kind == "import":
            known.of_data(step.subject)
    for step in training.unfinished:
        stage = training.graph.stage.get(step.subject)
        if stage is None:
            continue
        if step.kind == "data":
            if stage.crop is not None and training.work.given(f"localizer/{stage.crop.task}") is None:
                raise InputError(training.work.models, "there is no localizer in this folder of models")
            known.splits_of(step.subject)
            check_starts(training.graph, step.subject, known.splits_of)
        elif step.kind in ("plan", "fold") and (folder := training.work.start(step.subject)) is not None:
            start_configuration(folder)
            checkpoint = start_checkpoint(folder, step.fold or 0)
            if (step.subject, checkpoint) not in fitting:
                check_start(costs.network(step.subject), checkpoint, channels=1)
                fitting.add((step.subject, checkpoint))
    _check_disk(training, known, costs)


@dataclass
class Known:
    """What is known about a data set: where it comes from, its cases by name, and the size of its files in bytes."""

    folder: Path
    cases: Mapping[str, RawCase]
    size: int


class KnownData:
    """What is known about data sets before they are imported, labelled or split."""

    def __init__(self, training: Training) -> None:
        self._training, self._graph, self._work = training, training.graph, training.work
        self._data: dict[str, Known] = {}
        self._splits: dict[str, SplitCases | None] = {}

    @cached_property
    def _unfinished(self) -> set[str]:
        return {step.name for step in self._training.unfinished}

    def of_data(self, name: str) -> Known:
        """Return what is known about a data set, or one that is to be labelled. Raises InputError."""
        if name not in self._data:
            self._data[name] = self._read(name)
        return self._data[name]

    def of_stage(self, stage: str) -> dict[str, RawCase]:
        """Return the cases of a stage by the names that they will have. Raises InputError.

        Of cases with one name, the import takes the first, and those labelled by experts go first.
        """
        sources = self._graph.stage[stage].data
        every = [(data, name, case) for data in sources for name, case in self.of_data(data).cases.items()]
        names = distinct_names([(data, name, case.pseudo) for data, name, case in every])
        known: dict[str, RawCase] = {}
        for name, (_, _, case) in sorted(zip(names, every, strict=True), key=lambda named: named[1][2].pseudo):
            known.setdefault(name, case)
        return known

    def splits_of(self, name: str) -> SplitCases | None:
        """Return the splits that a stage has or will have, and its cases; None if they were removed after its training.

        Raises InputError.
        """
        if name not in self._splits:
            finished = f"data.{name}" not in self._unfinished
            self._splits[name] = read_split_dataset(self._work.dataset(name)) if finished else self._future_splits(name)
        return self._splits[name]

    def _future_splits(self, name: str) -> SplitCases:
        stage, cases, given = self._graph.stage[name], self.of_stage(name), self._work.given(f"splits/{name}")
        if given is None:
            labelled = next(data for data in stage.data if self._graph.is_labelled(data))
            where = self.of_data(labelled).folder
            patients = {case.patient for case in cases.values() if not case.pseudo}
            if len(patients) < stage.folds:
                expected = f"at least one patient for each of the {stage.folds} folds of stage '{name}'"
                raise InputError(where, expected=expected, found=str(len(patients)))
            return make_splits(where, cases, folds=stage.folds), cases
        splits = read_splits(given)
        check_number(given, splits, stage.folds, stage=name)
        # The import may refuse cases that the splits leave out.
        named = {case for split in splits for part in split.values() for case in part}
        check_splits(given, splits, {case: known for case, known in cases.items() if case in named or known.pseudo})
        return splits, cases

    def _read(self, name: str) -> Known:
        if name in self._graph.pseudo:
            source = self.of_data(self._graph.pseudo[name].data)
            cases = {case: msgspec.structs.replace(known, pseudo=True) for case, known in source.cases.items()}
            return Known(source.folder, cases, source.size)
        if f"import.{name}" not in self._unfinished and self._work.dataset(name).is_dir():
            folder = self._work.dataset(name)
            found = find_cases("raw", folder)
        else:
            folder = self._given(name)
            found = find_cases("raw" if is_raw_dataset(folder) else self._graph.data[name].layout, folder)
            if self._graph.is_labelled(name) and not found.values:
                raise InputError(folder, expected=f"images with labels for the data set '{name}'", found="images alone")
        usable = {case.name: case.known for case in found.cases if not case.problem}
        return Known(folder, usable, sum(map(_size, found.cases)))

    def _given(self, name: str) -> Path:
        folder = self._work.inputs.data.get(name)
        if folder is None:
            hint = f"name it with --data {name}=FOLDER (layout {self._graph.data[name].layout})"
            raise InputError(f"data set '{name}'", expected="a folder", found="none", hint=hint)
        return folder


def _check_disk(training: Training, known: KnownData, costs: StageCosts) -> None:
    """Raise OutputError if the disk has less room than what the steps write is expected to take."""
    wanted = 0.0
    for step in training.unfinished:
        stage = training.graph.stage.get(step.subject)
        if step.kind == "import":
            wanted += known.of_data(step.subject).size
        elif stage is not None and step.kind in ("data", "plan"):
            size = sum(known.of_data(name).size for name in stage.data)
            if step.kind == "plan":
                wanted += PREPROCESSED * size
            elif stage.crop is not None:
                wanted += size
        elif stage is not None and step.kind == "fold":
            wanted += costs.of(step.subject)[0].disk(stage.length)
    free = shutil.disk_usage(training.work.output).free
    if wanted > free:
        expected = f"about {wanted / GB:.1f} GB for imported and preprocessed cases and for checkpoints"
        raise OutputError(training.work.output, expected=expected, found=f"{free / GB:.1f} GB free")


def check_memory(training: Training, devices: Sequence[str]) -> None:
    """Raise DeviceError for a device that is much too small for a patch that the training file asks for.

    devices: on which the folds are trained. nnU-Net chooses the patches of its own stages by the memory that it is
    given, so these are not checked.
    """
    free = {device: _free_bytes(device) for device in devices}
    smallest = min(free, key=free.__getitem__)
    costs = StageCosts(training.work, training.planned)
    for step in training.unfinished:
        stage = training.graph.stage.get(step.subject)
        if stage is None or stage.lightning is None or step.kind != "fold":
            continue
        cost, patch, batch_size = costs.of(step.subject)
        wanted = cost.memory(stage.length, smallest)
        if wanted > MUCH_TOO_SMALL * free[smallest]:
            sizes = f"{batch_size} patches of {'x'.join(map(str, patch))} voxels (z, y, x)"
            raise DeviceError(
                smallest,
                expected=f"about {wanted / GB:.1f} GB of memory for stage {step.subject}, which trains on {sizes}",
                found=f"{free[smallest] / GB:.1f} GB",
                hint="choose smaller patches in the training file",
            )


def _free_bytes(device: str) -> int:
    """Return how much memory of a device, such as cpu or cuda:1, is free."""
    if device == "cpu":
        return room_bytes()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def _size(case: FoundCase) -> int:
    return sum(path.stat().st_size for path in (case.image, case.label) if path is not None and path.is_file())
