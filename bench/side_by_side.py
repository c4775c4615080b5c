"""Runs whole processes with one network on one image: ours, and nnU-Net's as they are commonly used.

The networks are untrained, which does not change their speed; bench.parity compares masks of trained networks.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bench import planned
from bench.processes import Run, run
from pantherseg.io import read_labels, write_volume
from pantherseg.packing.pack import pack
from pantherseg.phantom import make_phantom
from pantherseg.volume import Grid, Volume

logger = logging.getLogger(__name__)

FOLDS = 5
SEED = 9100
CROP = Grid((61, 106, 158), (2.0, 1.0, 1.0))
DATASET_ID = planned.DATASET.removeprefix("Dataset")[:3]
RECIPE = (
    planned.RECIPE_HEAD
    + """\
[[members]]
model = "model"
mirroring = {mirroring}
folds = {folds}
"""
)


@dataclass(frozen=True)
class Network:
    """Arguments for nnU-Net's planner, and the grid of the image to segment."""

    planner: str
    data: planned.Data
    image: Grid = CROP
    base_features: int = 32

    def plans(self, work: Path) -> dict[str, Any]:
        """Return the plans of the network."""
        return planned.make_plans(self.planner, self.data, work, base_features=self.base_features)


@dataclass(frozen=True)
class Bench:
    """The model folder and the bundle of one network, an image, and a folder for all other files."""

    work: Path
    folder: Path
    bundles: Path
    image: Path
    device: str

    @classmethod
    def prepare(cls, network: Network, work: Path, device: str = "cpu") -> Bench:
        """Plan the network, write its folds, pack them, and write the image."""
        folder = work / "results" / planned.DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        bench = cls(work, folder, work / "bundles", work / "images" / "case_0000.mha", device)
        pack(planned.make_folder(network.plans(work), folder, folds=FOLDS), bench.bundles / "model")
        write_volume(image_on(network.image), bench.image)
        return bench

    def ours(self, mode: str, *, folds: int = FOLDS, mirroring: bool = False) -> Run:
        """Run `pantherseg predict`."""
        recipe = self.work / f"{mode}-{folds}-{mirroring}.toml"
        recipe.write_text(RECIPE.format(mirroring=str(mirroring).lower(), folds=list(range(folds))))
        return self._run(recipe.stem, ["-m", "pantherseg", *self.arguments(recipe, mode)])

    def report(self, mode: str, *, folds: int = FOLDS, mirroring: bool = False) -> dict[str, Any]:
        """Return the report of the last run of `ours` with these arguments."""
        path = self.work / f"masks-{mode}-{folds}-{mirroring}" / "case_0000.json"
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    def arguments(self, recipe: Path, mode: str) -> list[str | Path]:
        """Return the arguments for `pantherseg` to segment the image."""
        output = self.work / f"masks-{recipe.stem}"
        return [
            *("predict", self.image, output, "--redo", "--recipe", recipe),
            *("--model", self.bundles, "--mode", mode, "--device", self.device),
        ]

    def first_tile(self, mode: str) -> float:
        """Return the seconds from the start of a process to its first forward pass."""
        recipe = self.work / "first.toml"
        recipe.write_text(RECIPE.format(mirroring="false", folds=list(range(FOLDS))))
        self._run("first", ["-m", "bench.first_tile", *self.arguments(recipe, mode)])
        return float((self.work / "first.log").read_text().splitlines()[-1])

    def command(self, *folds: int) -> Run:
        """Run `nnUNetv2_predict --disable_tta` with these folds."""
        script = Path(sys.executable).parent / "nnUNetv2_predict"
        arguments = [
            *("-i", self.image.parent, "-o", self._masks(folds), "-d", DATASET_ID, "-c", "3d_fullres", "-f", *folds),
            *("--disable_tta", "-device", self.device),
        ]
        return self._run("nnunet", [script, *arguments])

    def five_processes(self) -> Run:
        """Run nnU-Net's command once per fold and take the majority label, as system C of the challenge did."""
        runs = [self.command(fold) for fold in range(FOLDS)]
        masks = np.stack([read_labels(self._masks((fold,)) / "case.mha").array for fold in range(FOLDS)])
        np.argmax([(masks == label).sum(axis=0) for label in planned.LABELS.values()], axis=0)
        return Run(sum(run.seconds for run in runs), max(run.peak_mb for run in runs))

    def predictor(self, *folds: int, mirroring: bool) -> Run:
        """Run nnU-Net's predictor in one process."""
        flags = ["--device", self.device, "--folds", *folds, *(["--mirroring"] if mirroring else [])]
        return self._run(
            "predictor", ["-m", "bench.reference", self.folder, self.image, self.work / "reference", *flags]
        )

    def _masks(self, folds: tuple[int, ...]) -> Path:
        return self.work / f"nnunet-{'-'.join(map(str, folds))}"

    def _run(self, name: str, command: list[Any]) -> Run:
        if not str(command[0]).startswith("/"):
            command = [sys.executable, *command]
        folders = {f"nnUNet_{part}": str(self.work / part) for part in ("raw", "preprocessed", "results")}
        measured = run(command, log=self.work / f"{name}.log", environment=folders)
        logger.info("%-24s %7.1f s %7.0f MB", name, measured.seconds, measured.peak_mb)
        return measured


def image_on(grid: Grid) -> Volume:
    """Return a phantom stretched to fill a grid."""
    image = make_phantom(SEED, task=2).image.array.astype(np.float32)
    zoom = [size / given for size, given in zip(grid.shape, image.shape, strict=True)]
    return Volume(ndimage.zoom(image, zoom, order=1), grid)
