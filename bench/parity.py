"""Compares our masks with those of nnU-Net's own predictor, voxel by voxel, on phantoms not used for training."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from bench.demo import FIRST_SEED
from bench.unpack import unpack
from pantherseg.inference.backends import Mode, choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.localize import localize
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.training.folders import trainer_environment
from pantherseg.volume import Box, Volume

logger = logging.getLogger(__name__)

# The tumour Dice that `fast` should reach against nnU-Net's mask.
REQUIRED_DICE = 0.999
MODES: tuple[Mode, ...] = ("exact", "fast")


def measure(
    task: int, cases: int, work: Path, *, mirroring: bool = False, device: Literal["cpu", "cuda"] = "cpu"
) -> dict[str, Any]:
    """Compare the masks of a task's demo model with nnU-Net's on the same device, in both modes.

    Masks are computed in the region that the task's recipe gives to its members. mirroring: compare one fold, mirrored
    along all axes, although the demo models were trained without mirroring.
    """
    bundle = open_bundle(DEMO_WEIGHTS / f"task{task}")
    if mirroring:
        manifest = msgspec.structs.replace(bundle.manifest, mirroring_axes=(0, 1, 2))
        bundle = replace(bundle, manifest=manifest, folds=bundle.folds[:1])
    reference = _reference(unpack(bundle, work / f"task{task}-{mirroring}").path, device, mirroring=mirroring)
    predictors = {
        mode: Predictor(bundle, choose_backend(device, mode), mirroring=mirroring, compared_label=TUMOUR)
        for mode in MODES
    }
    by_case = {}
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        image = make_phantom(seed, task=task).image
        volume = member_input(Volume(image.array.astype(np.float32), image.grid), task)
        masks: dict[str, NDArray[np.uint8]] = {}
        seconds: dict[str, float] = {}
        for mode, predictor in predictors.items():
            began = time.monotonic()
            masks[mode] = predictor.predict(volume).labels()
            seconds[mode] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            expected = reference.predict_single_npy_array(volume.array[None], {"spacing": list(volume.grid.spacing)})
        seconds["nnUNetPredictor"] = round(time.monotonic() - began, 2)
        by_case[str(seed)] = {
            "voxels": expected.size,
            "different": {mode: int((mask != expected).sum()) for mode, mask in masks.items()},
            "tumour_dice": {mode: round(dice(tumour_of(mask), tumour_of(expected)), 6) for mode, mask in masks.items()},
            "seconds": seconds,
        }
        logger.info("task %d, mirroring %s, %d: %s", task, mirroring, seed, by_case[str(seed)])
    return {"task": task, "mirroring": mirroring, "folds": len(bundle.folds), "by_case": by_case}


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per comparison."""
    lines = [
        "| demo model | cases | voxels | differ in `exact` | differ in `fast` "
        f"| lowest tumour Dice of `fast` | below {REQUIRED_DICE} |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cases = list(result["by_case"].values())
        voxels = sum(case["voxels"] for case in cases)
        different = [sum(case["different"][mode] for case in cases) for mode in MODES]
        values = [case["tumour_dice"]["fast"] for case in cases]
        below = sum(value < REQUIRED_DICE for value in values)
        count = f"{result['folds']} fold{'s' if result['folds'] > 1 else ''}"
        name = f"Task {result['task']}, {count}{', mirroring' if result['mirroring'] else ''}"
        lines.append(
            f"| {name} | {len(cases)} | {voxels / 1e6:.1f} M | {different[0]} | {different[1]} | {min(values):.4f} "
            f"| {below} |"
        )
    return "\n".join(lines)


def member_input(volume: Volume, task: int) -> Volume:
    """Return the part of a volume that the members of a task's recipe get."""
    settings = load_recipe(task_recipe(task)).localizer
    if settings is None:
        return volume
    localizer = Predictor(open_bundle(DEMO_WEIGHTS / settings.model), choose_backend("cpu"))
    box = localize(volume, localizer, settings).box
    return volume.crop(box or Box.whole(volume.grid.shape))


def _reference(folder: Path, device: str, *, mirroring: bool) -> nnUNetPredictor:
    # nnU-Net looks for the class of the trainer that the checkpoint names.
    trainers = trainer_environment()
    with trainers, contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), None)
    return predictor


def dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks, 1 for two that are empty."""
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0
