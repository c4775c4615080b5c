"""Our masks against those of nnU-Net's own predictor, voxel for voxel, on phantoms that no demo model has seen."""

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
from pantherseg.localize import localize
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.volume import Box, Volume

logger = logging.getLogger(__name__)

TUMOUR = 1
# The Dice from which `fast` may be called the same.
ENOUGH = 0.999
MODES: tuple[Mode, ...] = ("exact", "fast")


def measure(
    task: int, cases: int, work: Path, *, mirroring: bool = False, device: Literal["cpu", "cuda"] = "cpu"
) -> dict[str, Any]:
    """Compare the members' masks in the box that the task's recipe searches, in both modes, nnU-Net's on that device.

    With mirroring, one fold is mirrored along all axes, in both; the demo models themselves were trained without.
    """
    bundle = open_bundle(DEMO_WEIGHTS / f"task{task}")
    if mirroring:
        manifest = msgspec.structs.replace(bundle.manifest, mirroring_axes=(0, 1, 2))
        bundle = replace(bundle, manifest=manifest, folds=bundle.folds[:1])
    reference = _reference(unpack(bundle, work / f"task{task}-{mirroring}").path, device, mirroring=mirroring)
    predictors = {mode: Predictor(bundle, choose_backend(device, mode), mirroring=mirroring) for mode in MODES}
    by_case = {}
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        image = make_phantom(seed, task=task).image
        volume = _searched(Volume(image.array.astype(np.float32), image.grid), task)
        masks: dict[str, NDArray[np.uint8]] = {}
        seconds: dict[str, float] = {}
        for mode, predictor in predictors.items():
            began = time.monotonic()
            masks[mode], _ = predictor.labels(volume)
            seconds[mode] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            expected = reference.predict_single_npy_array(volume.array[None], {"spacing": list(volume.grid.spacing)})
        seconds["nnUNetPredictor"] = round(time.monotonic() - began, 2)
        by_case[str(seed)] = {
            "voxels": expected.size,
            "different": {mode: int((mask != expected).sum()) for mode, mask in masks.items()},
            "tumour_dice": {mode: round(_dice(mask == TUMOUR, expected == TUMOUR), 6) for mode, mask in masks.items()},
            "seconds": seconds,
        }
        logger.info("task %d, mirroring %s, %d: %s", task, mirroring, seed, by_case[str(seed)])
    return {"task": task, "mirroring": mirroring, "folds": len(bundle.folds), "by_case": by_case}


def table(results: list[dict[str, Any]]) -> str:
    """Return a line a comparison as Markdown."""
    lines = [
        "| demo model | cases | voxels | differ in `exact` | differ in `fast` "
        f"| its lowest tumour Dice | below {ENOUGH} |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cases = list(result["by_case"].values())
        voxels = sum(case["voxels"] for case in cases)
        different = [sum(case["different"][mode] for case in cases) for mode in MODES]
        dice = [case["tumour_dice"]["fast"] for case in cases]
        below = sum(value < ENOUGH for value in dice)
        count = f"{result['folds']} fold{'s' if result['folds'] > 1 else ''}"
        name = f"Task {result['task']}, {count}{', mirroring' if result['mirroring'] else ''}"
        lines.append(
            f"| {name} | {len(cases)} | {voxels / 1e6:.1f} M | {different[0]} | {different[1]} | {min(dice):.4f} "
            f"| {below} |"
        )
    return "\n".join(lines)


def _searched(volume: Volume, task: int) -> Volume:
    """Return what the members of a task's recipe look at."""
    settings = load_recipe(task_recipe(task)).localizer
    if settings is None:
        return volume
    localizer = Predictor(open_bundle(DEMO_WEIGHTS / settings.model), choose_backend("cpu"))
    box, _ = localize(volume, localizer, settings)
    return volume.crop(box or Box.whole(volume.grid.shape))


def _reference(folder: Path, device: str, *, mirroring: bool) -> nnUNetPredictor:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), None)
    return predictor


def _dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0
