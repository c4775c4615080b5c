"""A bundle back into the model folder that it was packed of, for what only nnU-Net itself can show."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from pantherseg.models.bundle import DATASET, PLANS, Bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.networks import distinct_tensors, read_plan


def unpack(bundle: Bundle, folder: Path) -> ModelFolder:
    """Write a bundle's folds as nnU-Net's checkpoints, without the state of an optimizer."""
    manifest = bundle.manifest
    folder.mkdir(parents=True)
    for name in (PLANS, DATASET):
        shutil.copyfile(bundle.path / name, folder / name)
    network = read_plan(folder, manifest.provenance.configuration).network()
    for fold in bundle.folds:
        values = load_file(bundle.verify(fold))
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name])
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": manifest.provenance.configuration},
                "trainer_name": manifest.provenance.trainer,
                "inference_allowed_mirroring_axes": manifest.mirroring_axes or None,
            },
            folder / f"fold_{fold}" / manifest.checkpoint,
        )
    return open_model_folder(folder, checkpoint=manifest.checkpoint)
