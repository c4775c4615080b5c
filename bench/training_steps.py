"""Optimisation steps of the published trainings: `python -m bench.training_steps [--device cuda] [--steps 4]`.

Plans every stage of the training files with the real schedules for the data that they assume, and lets PantherTrainer
take its first steps on full-size phantoms, with the stage's network, patch, batch, augmentation, optimizer and learning
rate. Prints the memory and the time of a step beside what `pantherseg train --dry-run` expects, and writes
bench/results/training-steps.json. `--smallest-patch` is for machines without a GPU; `--only "system_c task2"` takes the
steps of one stage, and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bench.processes import machine
from pantherseg.datasets.importing import Source, import_data
from pantherseg.datasets.raw import RawDataset
from pantherseg.datasets.splits import split_dataset
from pantherseg.evaluation.tables import aligned
from pantherseg.files import write_text
from pantherseg.labels import LabelMapName
from pantherseg.machine.memory import forget_peak, peak_mb
from pantherseg.paths import ROOT
from pantherseg.phantom import write_dataset
from pantherseg.training.assumed import StageCosts
from pantherseg.training.estimate import GB, Cost, cost_of, measured_speed
from pantherseg.training.folders import CONFIGURATION, TrainingFolders, environment
from pantherseg.training.folds import make_trainer
from pantherseg.training.graph import Stage, load_training_file
from pantherseg.training.nnunet_trainers.pantherseg_trainer import SETTINGS_KEY
from pantherseg.training.planning import extract_fingerprint, preprocess
from pantherseg.training.training_recipe import TrainingSettings
from pantherseg.training.workers import WORKERS, workers_for_augmentation
from pantherseg.training.workspace import Inputs, Workspace

RESULTS = Path(__file__).parent / "results" / "training-steps.json"
SYSTEMS = ("system_a", "system_c")
# Two phantoms: one to train on, and nnU-Net wants one to validate on.
FIRST_SEED, CASES = 9500, 2
HEADING = ("stage", "patch (z, y, x)", "batch", "loss", "memory GB", "expected", "seconds a step", "expected")


class Phantoms:
    """Phantoms as preprocessed nnU-Net data sets, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[int, str, tuple[float, ...]], TrainingFolders] = {}

    def preprocessed(self, task: int, labels: LabelMapName, plans: dict[str, Any]) -> TrainingFolders:
        """Return the folders of phantoms of a task, preprocessed by plans."""
        key = (task, labels, tuple(plans["configurations"][CONFIGURATION]["spacing"]))
        if key not in self._made:
            source = self._root / f"task{task}"
            if not source.is_dir():
                write_dataset(source, task=task, cases=CASES, seed=FIRST_SEED)
            number = 700 + len(self._made)
            sources = [Source("panther", source)]
            report = import_data(sources, self._root / "raw", number, "phantoms", labels=labels)
            split_dataset(RawDataset.open(report.dataset), folds=CASES)
            folders = TrainingFolders(report.dataset, self._root)
            extract_fingerprint(folders)
            preprocess(folders, plans | {"dataset_name": folders.name})
            self._made[key] = folders
        return self._made[key]


@dataclass(frozen=True)
class Steps:
    """The first steps of a stage.

    losses, seconds: of each step; peak: of its memory, in bytes; output: shape of the network's output at full
    resolution, (batch, classes, z, y, x); changed: the share of the tensors of weights that the steps changed.
    """

    losses: list[float]
    seconds: list[float]
    peak: float
    output: tuple[int, ...]
    changed: float


def take_steps(stage: Stage, plans: dict[str, Any], folders: TrainingFolders, device: str, steps: int) -> Steps:
    """Take the first steps of a stage."""
    settings = TrainingSettings(schedule=stage.schedule, seed=stage.seed)
    plans = plans | {"dataset_name": folders.name, SETTINGS_KEY: msgspec.to_builtins(settings)}
    losses, seconds = [], []
    shapes: list[tuple[int, ...]] = []
    workers = environment(**{WORKERS: workers_for_augmentation()})
    with folders.environment(), workers, contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(folders, plans, fold=0, device=device)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        # The loss gets the outputs of all resolutions, the full one first; a network that is compiled has no hooks.
        trainer.loss.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0][0].shape)))
        before = _checksums(trainer.network)
        forget_peak()
        for _ in range(steps):
            batch = next(trainer.dataloader_train)
            began = time.monotonic()
            losses.append(float(trainer.train_step(batch)["loss"]))  # on the host, so the device is done
            seconds.append(time.monotonic() - began)
        peak = torch.cuda.max_memory_reserved() if device == "cuda" else peak_mb() * 2.0**20
        changed = [was != now for was, now in zip(before, _checksums(trainer.network), strict=True)]
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()
    return Steps(losses, seconds, float(peak), shapes[-1], sum(changed) / len(changed))


def _checksums(network: torch.nn.Module) -> list[int]:
    """Return a checksum of each tensor of weights: copies would count among the memory that is measured."""
    return [zlib.crc32(weights.detach().cpu().numpy().tobytes()) for weights in network.parameters()]


def smallest_patch(plans: dict[str, Any]) -> dict[str, Any]:
    """Return plans with two voxels in each axis at the lowest resolution, which is the least that is normalised."""
    configuration = plans["configurations"][CONFIGURATION]
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    patch = [2 * int(step) for step in np.prod([np.broadcast_to(stride, 3) for stride in strides], axis=0)]
    return plans | {"configurations": {CONFIGURATION: configuration | {"patch_size": patch}}}


def measure(device: str, steps: int, *, smallest: bool, only: str, root: Path) -> Iterator[dict[str, Any]]:
    """Yield the sizes, the losses, and the measured and expected memory and time of every stage, or of one alone."""
    phantoms, speed = Phantoms(root), measured_speed(device)
    for system in SYSTEMS:
        graph = load_training_file(ROOT / "Task2" / "training" / f"{system}.toml")
        costs = StageCosts(Workspace(graph, root / system, Inputs()))
        for name, stage in graph.stage.items():
            if only and only != f"{system} {name}":
                continue
            plans = smallest_patch(costs.plans(name)) if smallest else costs.plans(name)
            configuration = plans["configurations"][CONFIGURATION]
            folders = phantoms.preprocessed(2 if name == "task2" else 1, stage.labels, plans)
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            taken = take_steps(stage, plans, folders, device, steps)
            cost = _cost(costs, name, plans)
            yield {
                "stage": f"{system} {name}",
                "patch": configuration["patch_size"],
                "batch": configuration["batch_size"],
                "output": taken.output,
                "losses": taken.losses,
                "changed_weights": round(taken.changed, 3),
                "memory_gb": round(taken.peak / GB, 2),
                "expected_memory_gb": round(cost.memory(stage.schedule, device) / GB, 2),
                # The first step also chooses the algorithms of the convolutions.
                "seconds_a_step": round(statistics.median(taken.seconds[1:] or taken.seconds), 3),
                "expected_seconds_a_step": round(cost.operations / speed, 3),
            }


def _cost(costs: StageCosts, name: str, plans: dict[str, Any]) -> Cost:
    configuration = plans["configurations"][CONFIGURATION]
    return cost_of(costs.network(name), tuple(configuration["patch_size"]), int(configuration["batch_size"]))


def main() -> None:
    """Take the steps, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--smallest-patch", action="store_true")
    parser.add_argument("--only", default="", metavar="STAGE", help="such as 'system_c task2'")
    options = parser.parse_args()
    result = {
        **machine(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "compiled": os.environ.get("nnUNet_compile", "true"),  # noqa: SIM112 - as nnU-Net spells it
        "smallest_patch": options.smallest_patch,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pantherseg-bench-") as root:
        for row in measure(
            options.device, options.steps, smallest=options.smallest_patch, only=options.only, root=Path(root)
        ):
            rows.append(row)
            # Written after each stage: a benchmark that runs out of time keeps what it measured.
            if options.device == "cuda" and not options.smallest_patch and not options.only:
                write_text(RESULTS, json.dumps(result | {"stages": rows}, indent=2) + "\n")
    if not rows:
        parser.error(f"--only: expected one of the stages of {' and '.join(SYSTEMS)}, found '{options.only}'")
    print(aligned([HEADING, *(_cells(row) for row in rows)]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    sizes = "x".join(map(str, row["patch"])), str(row["batch"])
    figures = (row["losses"][-1], row["memory_gb"], row["expected_memory_gb"])
    times = (row["seconds_a_step"], row["expected_seconds_a_step"])
    return (row["stage"], *sizes, *(f"{value:.2f}" for value in figures), *(f"{value:.3f}" for value in times))


if __name__ == "__main__":
    main()
