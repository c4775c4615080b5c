"""Model folders like those of nnU-Net's planners and trainers, of any size and number of folds, for benchmarks."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from pantherseg.io import write_volume
from pantherseg.model_sources.nnunet import CHECKPOINT, read_configuration
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.training.folders import nnunet_environment
from pantherseg.volume import Grid, Volume

PLANNERS: dict[str, Callable[..., ExperimentPlanner]] = {
    "PlainConvUNet": ExperimentPlanner,
    "ResEncM": nnUNetPlannerResEncM,
    "ResEncL": nnUNetPlannerResEncL,
    "ResEncXL": nnUNetPlannerResEncXL,
}
# The beginning of the recipes of benchmarks.
RECIPE_HEAD = """\
schema = 1
name = "bench"
[sockets]
input = "image"
output = "mask"
"""
DATASET = "Dataset900_bench"
LABELS = {"background": 0, "tumour": 1, "pancreas": 2}
# Large enough that the planner's limit of 5 % of all voxels in a batch does not shrink the batch.
CASES = 100
INTENSITIES = {"mean": 300.0, "std": 180.0, "percentile_00_5": 90.0, "percentile_99_5": 1100.0}


@dataclass(frozen=True)
class Data:
    """Input of a planner: the shape (z, y, x) of the median volume, its spacing in mm, and the network's (target)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    target: tuple[float, float, float] | None = None


T1 = Data((72, 268, 330), (3.0, 1.1875, 1.1875))
T2 = Data((61, 106, 158), (2.0, 1.0, 1.0))
T1_1MM = Data(T1.shape, T1.spacing, target=(1.0, 1.0, 1.0))
T2_1MM = Data(T2.shape, T2.spacing, target=(1.0, 1.0, 1.0))


def make_plans(planner: str, data: Data, work: Path, *, base_features: int = 32) -> dict[str, Any]:
    """Return the plans of one of nnU-Net's planners for some data."""
    with nnunet_environment(work / "raw", work), contextlib.redirect_stdout(io.StringIO()):
        raw, preprocessed = work / "raw" / DATASET, work / "preprocessed" / DATASET
        content = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": CASES, "file_ending": ".mha"}
        preprocessed.mkdir(parents=True, exist_ok=True)
        tiny = Volume(np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), data.spacing))
        write_volume(tiny, raw / "imagesTr" / "case_0000.mha")
        write_volume(tiny, raw / "labelsTr" / "case.mha")
        (raw / "dataset.json").write_text(json.dumps(content))
        fingerprint = {
            "spacings": [data.spacing] * CASES,
            "shapes_after_crop": [data.shape] * CASES,
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        made = PLANNERS[planner](DATASET, overwrite_target_spacing=data.target and list(data.target))
        made.UNet_base_num_features = base_features
        made.plan_experiment()
        plans: dict[str, Any] = json.loads((preprocessed / f"{made.plans_identifier}.json").read_text())
        return plans


def make_folder(
    plans: dict[str, Any],
    folder: Path,
    *,
    folds: int,
    configuration: str = "3d_fullres",
    labels: dict[str, int] = LABELS,
) -> ModelFolder:
    """Write a model folder with untrained folds, each with optimizer state as nnU-Net's trainer saves it."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": CASES, "file_ending": ".mha"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    settings = read_configuration(folder, configuration)
    for fold in range(folds):
        torch.manual_seed(fold)
        network = settings.network()
        momenta = {i: {"momentum_buffer": torch.zeros_like(value)} for i, value in enumerate(network.parameters())}
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "optimizer_state": {"state": momenta, "param_groups": [{"lr": 0.01, "params": list(momenta)}]},
                "init_args": {"configuration": configuration, "plans": plans, "dataset_json": dataset, "fold": fold},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": tuple(range(len(settings.patch))),
            },
            folder / f"fold_{fold}" / CHECKPOINT,
        )
    return open_model_folder(folder)
