"""Model folders of this project's own trainer: plans, and one safetensors file a fold. Nothing is unpickled.

pantherseg_plans.json                   see `model_sources.lightning_plans`
fold_<k>/checkpoint_final.safetensors   the network's state dict after the last epoch, with its auxiliary heads
fold_<k>/checkpoint_best.safetensors    the same after the best epoch

The metadata of a checkpoint repeat what it belongs to: schema, architecture, task, fold and version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pantherseg import __version__
from pantherseg.errors import ModelError
from pantherseg.files import written_beside
from pantherseg.model_sources.checkpoint import misfits
from pantherseg.model_sources.lightning_plans import PLANS, LightningPlans, read_plans
from pantherseg.model_sources.nnunet import RECORD
from pantherseg.model_sources.packable import PackableModel
from pantherseg.networks import AUXILIARY, build_network

if TYPE_CHECKING:
    import torch

FINAL, BEST = "checkpoint_final.safetensors", "checkpoint_best.safetensors"


class LightningSource:
    """Model folders of this project's own trainer."""

    files: tuple[str, ...] = (PLANS,)
    checkpoint = FINAL
    packages: tuple[str, ...] = ("torch",)

    def accepts(self, folder: Path) -> bool:
        """See `Source.accepts`."""
        return (folder / PLANS).is_file() or any(folder.glob("fold_*/*.safetensors"))

    def open(self, folder: Path, checkpoints: Mapping[str, Path]) -> PackableModel:
        """See `Source.open`."""
        plans = read_plans(folder)

        def weights(fold: str) -> dict[str, torch.Tensor]:
            values = read_checkpoint(checkpoints[fold], plans, fold)
            return {name: value for name, value in values.items() if not name.startswith(AUXILIARY)}

        return PackableModel(
            folder=folder,
            described_in=folder / PLANS,
            checkpoints=checkpoints,
            patch=plans.patch_size_zyx,
            labels=plans.labels,
            mirroring_axes=plans.mirroring_axes,
            orientation=plans.orientation,
            preprocessing=plans.preprocessing,
            architecture=plans.network,
            files=tuple(path for name in (PLANS, RECORD) if (path := folder / name).is_file()),
            record={"trainer": "lightning", "task": plans.task},
            weights=weights,
        )


def write_checkpoint(path: Path, weights: Mapping[str, torch.Tensor], plans: LightningPlans, fold: str) -> None:
    """Write the state dict of `Architecture.build_trainable` as the checkpoint of a fold. Raises OutputError."""
    from safetensors.torch import save_file

    metadata = {**_owner(plans, fold), "architecture": json.dumps(plans.network), "version": __version__}
    with written_beside(path) as beside:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, beside, metadata)
        beside.chmod(0o644)  # safetensors creates files that only their owner can read


def read_checkpoint(path: Path, plans: LightningPlans, fold: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a fold, auxiliary heads included.

    Raises ModelError for a damaged file, and for a checkpoint of another schema, task, fold or architecture, or with
    other tensors than the plans' network; the error names those that do not fit.
    """
    metadata, weights = _read(path)
    settings = _settings(metadata.get("architecture", ""))
    wanted: dict[str, Any] = _owner(plans, fold) | plans.network
    stated: dict[str, Any] = metadata | settings
    other = [key for key in dict.fromkeys((*wanted, *settings)) if stated.get(key) != wanted.get(key)]
    if "family" in other:  # whose settings cannot be compared
        other = [key for key in other if key == "family" or key in _owner(plans, fold)]
    network = build_network(path, plans.network, classes=len(plans.labels), trainable=True)
    problem = misfits(network.state_dict(), weights)
    if other or problem:
        expected, found = (
            ", ".join(f"{key} {values.get(key, 'not stated')}" for key in other) for values in (wanted, stated)
        )
        version = f"written by version {metadata.get('version', 'unknown')}"
        raise ModelError(
            path,
            expected=f"a checkpoint of the model in {PLANS}" + (f" ({expected})" if expected else ""),
            found="; ".join(filter(None, (found, problem, version))),
            hint=f"use the checkpoint that was trained with the {PLANS} of this folder",
        )
    return weights


def _owner(plans: LightningPlans, fold: str) -> dict[str, str]:
    """Return what the metadata of a checkpoint say about where it belongs, except for its architecture."""
    return {"schema": str(plans.schema), "task": plans.task, "fold": fold}


def _settings(text: str) -> dict[str, Any]:
    """Return the architecture in the metadata of a checkpoint, empty where it is missing or damaged."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata and the tensors of a safetensors file. Raises ModelError."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        expected = "a complete safetensors file"
        raise ModelError(path, expected=expected, found=str(error), hint="copy the file again") from error
