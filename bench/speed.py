"""Whole processes side by side: ours against nnU-Net's, on a Task 2 crop, with networks of nnU-Net's planners.

The networks are untrained: their speed is that of trained ones, their masks mean nothing (bench.parity looks at those).
"""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bench import planned
from bench.processes import Run, run
from pantherseg.packing import pack
from pantherseg.phantom import make_phantom
from pantherseg.volume import Grid, Volume, read_labels, write_volume

logger = logging.getLogger(__name__)

FOLDS = 5
SEED = 9100
CROP = Grid((61, 106, 158), (2.0, 1.0, 1.0))
DATASET_ID = planned.DATASET.removeprefix("Dataset")[:3]
RECIPE = """\
schema = 1
name = "bench"
[sockets]
input = "image"
output = "mask"
[[members]]
model = "model"
mirroring = {mirroring}
folds = {folds}
"""
NETWORKS = {
    "plain": ("PlainConvUNet", planned.T2),
    "residual_l_1mm": ("ResEncL", planned.T2_1MM),
}


@dataclass(frozen=True)
class Bench:
    """One network's model folder, its bundle, an image, and a folder for everything else."""

    work: Path
    folder: Path
    bundles: Path
    image: Path

    @classmethod
    def prepare(cls, network: str, work: Path) -> Bench:
        """Plan the network, write its folds, pack them, and write the crop."""
        planner, data = NETWORKS[network]
        folder = work / "results" / planned.DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        bench = cls(work, folder, work / "bundles", work / "images" / "case_0000.mha")
        pack(planned.make_folder(planned.make_plans(planner, data, work), folder, folds=FOLDS), bench.bundles / "model")
        write_volume(crop(), bench.image)
        return bench

    def ours(self, mode: str, *, folds: int = FOLDS, mirroring: bool = False) -> Run:
        """Run `pantherseg predict`."""
        recipe = self.work / f"{mode}-{folds}-{mirroring}.toml"
        recipe.write_text(RECIPE.format(mirroring=str(mirroring).lower(), folds=list(range(folds))))
        return self._run(recipe.stem, ["-m", "pantherseg", *self.arguments(recipe, mode)])

    def arguments(self, recipe: Path, mode: str) -> list[str | Path]:
        """Return the arguments of `pantherseg` that segment the image."""
        output = self.work / f"masks-{recipe.stem}"
        return [
            *("predict", self.image, output, "--recipe", recipe),
            *("--model", self.bundles, "--mode", mode, "--device", "cpu"),
        ]

    def first_tile(self, mode: str) -> float:
        """Return the seconds from the start of a process to its first forward pass."""
        recipe = self.work / "first.toml"
        recipe.write_text(RECIPE.format(mirroring="false", folds=list(range(FOLDS))))
        self._run("first", ["-m", "bench.first_tile", *self.arguments(recipe, mode)])
        return float((self.work / "first.log").read_text().splitlines()[-1])

    def command(self, *folds: int) -> Run:
        """Run `nnUNetv2_predict --disable_tta` with some folds."""
        script = Path(sys.executable).parent / "nnUNetv2_predict"
        arguments = [
            "-i",
            self.image.parent,
            "-o",
            self._masks(folds),
            "-d",
            DATASET_ID,
            "-c",
            "3d_fullres",
            "-f",
            *folds,
        ]
        return self._run("nnunet", [script, *arguments, "--disable_tta", "-device", "cpu"])

    def five_processes(self) -> Run:
        """Run nnU-Net's command once a fold and vote on the labels, as system C of the challenge did."""
        runs = [self.command(fold) for fold in range(FOLDS)]
        masks = np.stack([read_labels(self._masks((fold,)) / "case.mha").array for fold in range(FOLDS)])
        np.argmax([(masks == label).sum(axis=0) for label in planned.LABELS.values()], axis=0)
        return Run(sum(one.seconds for one in runs), max(one.peak_mb for one in runs))

    def predictor(self, *folds: int, mirroring: bool) -> Run:
        """Run nnU-Net's predictor in one process."""
        flags = ["--folds", *folds, *(["--mirroring"] if mirroring else [])]
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


def crop() -> Volume:
    """Return a piece of a phantom with the voxels of a Task 2 crop."""
    image = make_phantom(SEED, task=2).image.array.astype(np.float32)
    zoom = [size / given for size, given in zip(CROP.shape, image.shape, strict=True)]
    return Volume(ndimage.zoom(image, zoom, order=1), CROP)


def measure(network: str, work: Path, *, repeats: int, slow: bool) -> dict[str, Any]:
    """Return seconds, memory and ratios of one network; what is compared runs in turns.

    slow: also compare with five processes, and with mirroring.
    """
    bench = Bench.prepare(network, work)
    runs: dict[str, Callable[[], Run]] = {
        "exact": lambda: bench.ours("exact"),
        "fast": lambda: bench.ours("fast"),
        "nnUNetv2_predict --disable_tta": lambda: bench.command(*range(FOLDS)),
    }
    measured = {name: [one()] for name, one in runs.items()}
    for _ in range(repeats - 1):
        for name, one in runs.items():
            measured[name].append(one())
    if slow:  # minutes each, so once
        measured |= {
            "five processes, label voting": [bench.five_processes()],
            "exact, mirroring, one fold": [bench.ours("exact", folds=1, mirroring=True)],
            "nnUNetPredictor, mirroring, one fold": [bench.predictor(0, mirroring=True)],
        }
    bench.first_tile("exact")  # so that files are in memory
    result = {
        "seconds": {name: round(statistics.median(one.seconds for one in many), 2) for name, many in measured.items()},
        "peak_mb": {name: round(max(one.peak_mb for one in many)) for name, many in measured.items()},
        "all": {name: [one.as_dict() for one in many] for name, many in measured.items()},
        "first_tile_s": round(min(bench.first_tile("exact") for _ in range(3)), 3),
    }
    shutil.rmtree(work)  # several GB
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    lines = ["| network | | ratio | seconds |", "|---|---|---|---|"]
    for network, result in results.items():
        seconds, peak = result["seconds"], result["peak_mb"]
        reference = "nnUNetv2_predict --disable_tta"
        pairs = [("exact", reference), ("fast", reference)]
        pairs += [("exact", "five processes, label voting")]
        pairs += [("exact, mirroring, one fold", "nnUNetPredictor, mirroring, one fold")]
        for mine, theirs in pairs:
            if theirs in seconds:
                ratio = seconds[theirs] / seconds[mine]
                lines.append(
                    f"| {network} | `{mine}` against {theirs} | {ratio:.1f}x faster "
                    f"| {seconds[mine]:.1f} against {seconds[theirs]:.1f} |"
                )
        for mode in ("exact", "fast"):
            share = peak[mode] / peak[reference]
            lines.append(
                f"| {network} | peak memory, `{mode}` | {share:.2f} | {peak[mode]} against {peak[reference]} MB |"
            )
        lines.append(f"| {network} | start to the first tile | | {result['first_tile_s']} |")
    return "\n".join(lines)
