"""Model folders of this project's own trainer: plans, and one safetensors file a fold. Nothing is unpickled.

pantherseg_plans.json                   see `model_sources.lightning_plans`
fold_<k>/checkpoint_final.safetensors   the network's state dict after the last epoch, with its auxiliary heads
fold_<k>/checkpoint_best.safetensors    the same after the best epoch

The metadata of a checkpoint repeat what it belongs to, the plans and the fold, and have the version that wrote it and a
checksum of its tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pantherseg import __version__
from pantherseg.errors import ModelError, first_few
from pantherseg.files import written_beside
from pantherseg.model_sources.checkpoint import misfits
from pantherseg.model_sources.lightning_plans import PLANS, LightningPlans, read_plans
from pantherseg.model_sources.nnunet import RECORD
from pantherseg.model_sources.packable import PackableModel
from pantherseg.networks import AUXILIARY, build_network

if TYPE_CHECKING:
    import torch

FINAL, BEST = "checkpoint_final.safetensors", "checkpoint_best.safetensors"
# What an error names alone where it differs: it says more than the rest.
OWNER = ("schema", "task", "fold", "family")


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

    values = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    stated = {"plans": json.dumps(plans.described), "fold": fold}
    with written_beside(path) as beside:
        save_file(values, beside, {**stated, "version": __version__, "sha256": weights_sha256(values)})
        beside.chmod(0o644)  # safetensors creates files that only their owner can read


def read_checkpoint(path: Path, plans: LightningPlans, fold: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a fold, auxiliary heads included.

    Raises ModelError for a damaged file, and for a checkpoint of another fold or other plans, or with other tensors
    than the plans' network; the error names what does not fit.
    """
    metadata, weights = _read(path)
    wanted, stated = _flat(plans.described, fold), _flat(_plans(metadata.get("plans", "")), metadata.get("fold"))
    other = [key for key in dict.fromkeys((*wanted, *stated)) if stated.get(key) != wanted.get(key)]
    if owner := [key for key in OWNER if key in other]:  # the rest is then another model's
        other = owner
    network = build_network(path, plans.network, classes=len(plans.labels), trainable=True).state_dict()
    problem = misfits(network, weights) or _other_types(network, weights)
    if other or problem:
        expected, found = (
            ", ".join(f"{key} {_shown(values.get(key))}" for key in other) for values in (wanted, stated)
        )
        version = f"written by version {metadata.get('version', 'unknown')}"
        raise ModelError(
            path,
            expected=f"a checkpoint of the model in {PLANS}" + (f" ({expected})" if expected else ""),
            found="; ".join(filter(None, (found, problem, version))),
            hint=f"use the checkpoint that was trained with the {PLANS} of this folder",
        )
    if weights_sha256(weights) != metadata.get("sha256"):
        hint = "copy the file again, or train the fold again"
        raise ModelError(path, expected="tensors with the checksum of this file", found="others", hint=hint)
    return weights


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors, in hexadecimal digits: of the name and the bytes of each, by name."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(plans: Mapping[str, Any], fold: str | None) -> dict[str, Any]:
    """Return what a checkpoint belongs to, with the settings of the network beside the other entries of the plans."""
    network = plans.get("architecture")
    rest = {key: value for key, value in plans.items() if key != "architecture"}
    return {"fold": fold, **rest, **(network if isinstance(network, dict) else {})}


def _shown(value: object) -> str:
    return "not stated" if value is None else str(value)


def _plans(text: str) -> dict[str, Any]:
    """Return the plans in the metadata of a checkpoint, empty where they are missing or damaged."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _other_types(network: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """Return which weights have another type than in the network, a few by name, and an empty string for none."""
    found = [
        f"{name} {weights[name].dtype} in place of {value.dtype}"
        for name, value in network.items()
        if weights[name].dtype != value.dtype
    ]
    return f"{len(found)} of another type: {first_few(found, 2)}" if found else ""


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata and the tensors of a safetensors file. Raises ModelError."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        expected = "a complete safetensors file"
        raise ModelError(path, expected=expected, found=str(error), hint="copy the file again") from error
