"""Planning and preprocessing of a raw nnU-Net data set, by nnU-Net's own planners and preprocessor."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import RecipeError
from pantherseg.files import write_text
from pantherseg.model_sources.nnunet import DATASET, read_json
from pantherseg.training.folders import CONFIGURATION, PLANS_NAME, TrainingFolders
from pantherseg.training.training_recipe import PlanSettings

# A case of a large volume takes gigabytes of memory.
MOST_PROCESSES = 4
CASES_A_PROCESS = 4
PLANNERS: dict[str, type[ExperimentPlanner]] = {
    "PlainConvUNet": ExperimentPlanner,
    "ResidualEncoderUNet": ResEncUNetPlanner,
    "ResEncM": nnUNetPlannerResEncM,
    "ResEncL": nnUNetPlannerResEncL,
    "ResEncXL": nnUNetPlannerResEncXL,
}


def plan_and_preprocess(
    folders: TrainingFolders, settings: PlanSettings, *, kept: dict[str, Any] | None = None
) -> Path:
    """Extract nnU-Net's fingerprint, plan and preprocess, and return the plans file.

    kept: configuration of the model to fine-tune, see `kept_configuration`, whose network, patch size and batch size
    are kept so that its weights fit, and its spacing if the settings name none. What was planned before is replaced.

    Raises RecipeError unless there is either a network in the settings or a model to fine-tune, or if the patch size
    does not suit the network; InputError if the data set is incomplete.
    """
    folders.check()
    check_plan(settings, kept=kept, name=folders.name)
    shutil.rmtree(folders.preprocessed, ignore_errors=True)  # nnU-Net would keep cases that are no longer there
    folders.preprocessed.mkdir(parents=True)
    extract_fingerprint(folders)
    preprocess(folders, make_plans(folders, settings, kept))
    return folders.plans


def extract_fingerprint(folders: TrainingFolders) -> None:
    """Let nnU-Net write the fingerprint of a data set: the sizes, the spacings and the intensities of its cases."""
    number, processes = convert_dataset_name_to_id(folders.name), _processes(folders)
    with folders.environment(), contextlib.redirect_stdout(io.StringIO()):
        extract_fingerprint_dataset(number, num_processes=processes, show_progress_bar=False, verbose=False)


def preprocess(folders: TrainingFolders, plans: dict[str, Any]) -> None:
    """Write plans, and let nnU-Net preprocess a data set, whose fingerprint is extracted, by them."""
    write_text(folders.plans, json.dumps(plans, indent=2) + "\n")
    shutil.copyfile(folders.dataset / DATASET, folders.preprocessed / DATASET)
    number, processes = convert_dataset_name_to_id(folders.name), _processes(folders)
    with folders.environment(), contextlib.redirect_stdout(io.StringIO()):
        preprocess_dataset(number, PLANS_NAME, (CONFIGURATION,), (processes,), show_progress_bar=False)
    shutil.copyfile(folders.dataset / SPLITS, folders.preprocessed / SPLITS)  # last: see `is_preprocessed`


def _processes(folders: TrainingFolders) -> int:
    """Return how many processes read the cases: starting one takes as long as a few small cases."""
    cases = int(read_json(folders.dataset / DATASET)["numTraining"])
    return max(1, min(MOST_PROCESSES, os.cpu_count() or 1, cases // CASES_A_PROCESS))


def make_plans(folders: TrainingFolders, settings: PlanSettings, kept: dict[str, Any] | None) -> dict[str, Any]:
    """Return the plans for a data set whose fingerprint is in its preprocessed folder.

    kept: the configuration of the model to fine-tune, whose network, patch size and batch size are kept, or None.
    Raises RecipeError if the patch size does not suit the network.
    """
    # nnU-Net prints its plans, which are also written to a file.
    with folders.environment(), contextlib.redirect_stdout(io.StringIO()):
        plans: dict[str, Any] = _planner(settings, folders.name, kept).plan_experiment()
    # Only one configuration is trained, so the others are left out of the plans.
    configuration = plans["configurations"][CONFIGURATION]
    if kept is not None:
        configuration |= {key: kept[key] for key in ("architecture", "patch_size", "batch_size")}
    return with_sizes(plans | {"configurations": {CONFIGURATION: configuration}}, settings, folders.name)


def with_sizes(plans: dict[str, Any], settings: PlanSettings, name: str) -> dict[str, Any]:
    """Return plans with the patch and the batch size of the settings, if these give them.

    Raises RecipeError, naming the training, if the patch size does not suit the network.
    """
    sizes = {"patch_size": settings.patch_size and list(settings.patch_size), "batch_size": settings.batch_size}
    changed = plans["configurations"][CONFIGURATION] | {key: value for key, value in sizes.items() if value is not None}
    strides = changed["architecture"]["arch_kwargs"]["strides"]
    steps = [int(step) for step in np.prod([np.broadcast_to(stride, 3) for stride in strides], axis=0)]
    if any(size % step for size, step in zip(changed["patch_size"], steps, strict=True)):
        expected = f"plan.patch_size in multiples of {steps}, which the network needs"
        raise RecipeError(name, expected=expected, found=str(changed["patch_size"]))
    return plans | {"configurations": {CONFIGURATION: changed}}


def check_plan(settings: PlanSettings, *, kept: dict[str, Any] | None, name: str) -> None:
    """Raise RecipeError, naming the training, unless a network or a model to fine-tune is given, and not both."""
    if (settings.network is None) == (kept is None):
        found = "neither" if kept is None else "both"
        raise RecipeError(name, expected="either plan.network or a model to fine-tune", found=found)


def _planner(settings: PlanSettings, dataset: str, kept: dict[str, Any] | None) -> ExperimentPlanner:
    # For fine-tuning, any planner will do: only its normalisation and resampling are used.
    spacing = settings.spacing or (kept and kept["spacing"])
    options = {} if settings.memory_gb is None else {"gpu_memory_target_in_gb": settings.memory_gb}
    planner = PLANNERS[settings.network or "PlainConvUNet"](
        dataset,
        plans_name=PLANS_NAME,
        overwrite_target_spacing=None if spacing is None else list(spacing),
        **options,
    )
    planner.UNet_base_num_features = settings.base_features
    planner.UNet_max_features_3d = settings.max_features
    if settings.blocks_encoder is not None:
        planner.UNet_blocks_per_stage_encoder = tuple(settings.blocks_encoder)
    if settings.blocks_decoder is not None:
        planner.UNet_blocks_per_stage_decoder = tuple(settings.blocks_decoder)
    return planner
