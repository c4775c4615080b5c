"""Small models in the layouts in which the published systems' weights are distributed, and in that of our trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.small_networks import SMALL_B, SMALL_D, make_weights
from bench.unpack import unpack
from pantherseg.model_sources.lightning import BEST as OWN_BEST
from pantherseg.model_sources.lightning import FINAL
from pantherseg.model_sources.lightning_plans import LightningPlans
from pantherseg.model_sources.mrsegmentator import BASE_CLASSES, VERSION, VERSION_KEY
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS

BEST = "checkpoint_best.pth"
# Of system A: Zenodo 17212158.
TASK1 = "Dataset901_PANTHER/nnUNetTrainer1e3__nnUNetResEncUNetLPlansPancCTMultiTalentV2__3d_fullres_iso1x1x1"
TASK2 = "Dataset902_PANTHER_HR/nnUNetTrainer1e3__nnUNetResEncUNetLPlansTask1PancCTMultiTalentV2__3d_fullres_iso1x1x1"
DEMO_CONFIGURATION, ONE_MM = "3d_fullres", "3d_fullres_iso1x1x1"
# Axes of mirroring: one, because each doubles the time.
MIRRORED = (2,)
# A class with this bias is never the largest.
NEVER = -100.0
# Its number in MRSegmentator's label map.
PANCREAS = 7
C_TASK1 = "task1/Dataset101_X/nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres"
C_TASK2 = "task2/Dataset102_X/nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres"
LOCALIZER = "localizer/base"


def model_folder(
    role: str,
    folder: Path,
    folds: Sequence[int],
    checkpoints: Sequence[str],
    *,
    configuration: str = DEMO_CONFIGURATION,
) -> Path:
    """Write a demo model as a model folder, with a name for its configuration. Folds beyond the demo's repeat them."""
    demo = unpack(open_bundle(DEMO_WEIGHTS / role), folder.with_name("unpacked"))
    plans = json.loads((demo.path / PLANS).read_text())
    plans["configurations"][configuration] = plans["configurations"].pop(DEMO_CONFIGURATION)
    folder.mkdir()
    (folder / PLANS).write_text(json.dumps(plans))
    shutil.copy(demo.path / DATASET, folder)
    for fold in folds:
        content = torch.load(demo.checkpoint_path(demo.folds[fold % len(demo.folds)]), weights_only=True)
        content["init_args"]["configuration"] = configuration
        content["inference_allowed_mirroring_axes"] = MIRRORED
        content["trainer_name"] = "nnUNetTrainer"  # which nnU-Net itself knows
        (folder / f"fold_{fold}").mkdir()
        for name in checkpoints:
            torch.save(content, folder / f"fold_{fold}" / name)
    shutil.rmtree(demo.path)
    return folder


def mrsegmentator_folder(folder: Path, folds: Sequence[int] = (0,), *, role: str = "localizer") -> Path:
    """Write a demo model in the layout of MRSegmentator: 40 structures, of which those that it knows are found.

    role: `localizer`, which was trained on T2 phantoms, or `task1`, whose tumour and pancreas become one structure.
    """
    model_folder(role, folder, folds, [CHECKPOINT])
    for path in folder.glob(f"fold_*/{CHECKPOINT}"):
        content = torch.load(path, weights_only=True)
        weights = content["network_weights"]
        for name in [name for name in weights if ".seg_layers." in f".{name}"]:
            weights[name] = _with_more_classes(weights[name], is_bias=name.endswith(".bias"))
        torch.save(content, path)
    labels = {"background": 0, **{str(number): number for number in range(1, BASE_CLASSES)}}
    content = json.loads((folder / DATASET).read_text()) | {"labels": labels}
    (folder / DATASET).write_text(json.dumps(content))
    (folder / VERSION).write_text(json.dumps({VERSION_KEY: 1.2}))
    return folder


def _with_more_classes(values: torch.Tensor, *, is_bias: bool) -> torch.Tensor:
    """Return the values of a last layer with 41 classes in place of the localizer's 8, or of Task 1's 3."""
    more = torch.full((BASE_CLASSES, *values.shape[1:]), NEVER if is_bias else 0.0)
    if len(values) > PANCREAS:
        more[: len(values)] = values
    else:
        background, tumour, pancreas = values
        more[0], more[PANCREAS] = background, tumour + pancreas - background
    return more


@dataclass(frozen=True)
class System:
    """A recipe, its task, the folds that it uses, and what writes its models below a folder, as they are published."""

    recipe: str
    task: int
    folds: tuple[str, ...]
    checkpoint: str
    write: Callable[[Path], object]

    def __str__(self) -> str:
        """Return the recipe's name, by which tests are called."""
        return self.recipe


def write_a(root: Path) -> None:
    """Write the two data sets of Zenodo 17212158, with the folds and checkpoints that its README names."""
    for role, name, folds in (("task1", TASK1, range(6)), ("task2", TASK2, range(5))):
        path = root / name
        path.parent.mkdir(parents=True)
        model_folder(role, path, folds, [BEST], configuration=ONE_MM)


def write_with_localizer(role: str, name: str, folds: int, checkpoint: str) -> Callable[[Path], None]:
    """Return what writes a tumour model, and MRSegmentator's weights as the localizer."""

    def write(root: Path) -> None:
        """Write both models."""
        for path in (root / name, root / LOCALIZER):
            path.parent.mkdir(parents=True, exist_ok=True)
        model_folder(role, root / name, range(folds), [checkpoint])
        mrsegmentator_folder(root / LOCALIZER, role="task1" if role == "task1" else "localizer")

    return write


def write_own(plans: LightningPlans, name: str) -> Callable[[Path], None]:
    """Return what trains a small model of our own trainer's kind, of two folds."""

    def write(root: Path) -> None:
        """Write the model."""
        make_weights(root / "task1", plans, name=name)

    return write


TWO, THREE, FIVE, SIX = (tuple(map(str, range(count))) for count in (2, 3, 5, 6))
SYSTEMS = (
    System("system_a_task1", 1, SIX, BEST, write_a),
    System("system_a_task2", 2, FIVE, BEST, write_a),
    System("system_b_task1", 1, TWO, OWN_BEST, write_own(SMALL_B, OWN_BEST)),
    System("system_c_task1", 1, FIVE, CHECKPOINT, write_with_localizer("task1", C_TASK1, 5, CHECKPOINT)),
    System("system_c_task2", 2, THREE, CHECKPOINT, write_with_localizer("task2", C_TASK2, 3, CHECKPOINT)),
    System("system_d_task1", 1, TWO, FINAL, write_own(SMALL_D, FINAL)),
    System("system_e_task1", 1, THREE, BEST, write_with_localizer("task1", "task1", 3, BEST)),
    System("system_e_task2", 2, THREE, BEST, write_with_localizer("task2", "task2", 3, BEST)),
    System("rank2_task2", 2, FIVE, CHECKPOINT, write_with_localizer("task2", "task2", 5, CHECKPOINT)),
    System("task1_crop", 1, FIVE, CHECKPOINT, write_with_localizer("task1", "task1", 5, CHECKPOINT)),
)
