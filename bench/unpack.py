"""A bundle back into an nnU-Net model folder, for comparisons with nnU-Net itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from pantherseg.models.bundle import Bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.models.manifest import MANIFEST
from pantherseg.networks import build_network, distinct_tensors


def unpack(bundle: Bundle, folder: Path) -> ModelFolder:
    """Write the folds of a bundle that was packed from an nnU-Net folder as checkpoints without optimizer state."""
    manifest = bundle.manifest
    record = manifest.provenance.record
    folder.mkdir(parents=True)
    for name in manifest.provenance.files_sha256:
        shutil.copyfile(bundle.path / name, folder / name)
    network = build_network(bundle.path / MANIFEST, manifest.architecture, classes=manifest.classes)
    for fold in bundle.folds:
        values = load_file(bundle.verify(fold))
        for name, tensor in distinct_tensors(network).items():
            tensor.copy_(values[name])
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": record["configuration"]},
                "trainer_name": record["trainer"],
                "inference_allowed_mirroring_axes": manifest.mirroring_axes or None,
            },
            folder / f"fold_{fold}" / manifest.checkpoint,
        )
    return open_model_folder(folder, checkpoint=manifest.checkpoint)
