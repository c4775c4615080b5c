"""The model that a training starts from: its plans, and its weights without those that belong to its task."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import load_file

from pantherseg.errors import ModelError, first_few
from pantherseg.model_sources.checkpoint import read_checkpoint
from pantherseg.model_sources.nnunet import PLANS, read_json
from pantherseg.models.bundle import GRAPH_CONSTANTS, is_bundle, open_bundle
from pantherseg.models.find import open_model_folder

logger = logging.getLogger(__name__)

SEGMENTATION_HEAD = ".seg_layers."
BUNDLED = ".safetensors"
START_RECORD = "start.json"


@dataclass(frozen=True)
class Skipped:
    """A tensor that keeps its new initial values.

    shape: in the new network; found: in the checkpoint, None if absent.
    """

    name: str
    shape: tuple[int, ...]
    found: tuple[int, ...] | None


def start_checkpoint(folder: Path, fold: int) -> Path:
    """Return the weights of a model that a fold starts from: those of the same fold, or the model's only ones.

    folder: nnU-Net model folder or bundle. Raises ModelError if there are no such weights, and for damaged ones of a
    bundle.
    """
    if is_bundle(folder):
        bundle = open_bundle(folder, min_folds=1)
        bundle = open_bundle(folder, folds=[fold]) if len(bundle.folds) > 1 else bundle
        return bundle.verify(bundle.folds[0])
    every = open_model_folder(folder, min_folds=1).folds
    model = open_model_folder(folder, folds=[fold]) if len(every) > 1 else open_model_folder(folder)
    return model.checkpoint_path(model.folds[0])


def start_configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration of the plans that a model was trained with: see `kept_configuration`.

    folder: nnU-Net model folder, or bundle with the plans. Raises ModelError.
    """
    if is_bundle(folder):
        bundle = open_bundle(folder, min_folds=1)
        bundle.check_source(PLANS)
        name = bundle.manifest.provenance.record.get("configuration", "")
    else:
        model = open_model_folder(folder)
        name = read_checkpoint(model.checkpoint_path(model.folds[0])).configuration
    return kept_configuration(read_json(folder / PLANS), name, folder)


def kept_configuration(plans: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    """Return a configuration of plans, with `architecture`, `patch_size`, `batch_size`, `spacing` and so on.

    `spacing` is in the order of the volumes' axes (z, y, x), as nnU-Net's planners take it. where: what an error is
    about. Raises ModelError.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # about plans in nnU-Net's older format, which it understands
            configuration: dict[str, Any] = dict(PlansManager(plans).get_configuration(name).configuration)
        back = plans["transpose_backward"]
        configuration["spacing"] = [float(configuration["spacing"][axis]) for axis in back]
        return configuration | {"architecture": configuration["architecture"]}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        expected = f"{PLANS} with a valid configuration {name}"
        raise ModelError(where, expected=expected, found=repr(error)) from error


def load_start(network: torch.nn.Module, checkpoint: Path, *, channels: int) -> list[Skipped]:
    """Load the weights of another model into a network, and return those that were skipped.

    Skipped are the segmentation heads, which belong to other labels, and the first convolution if the other model has
    another number of input channels. checkpoint: nnU-Net's, or a fold of a bundle; channels: of the network.

    Raises ModelError, naming the tensors and their shapes, if anything else differs, and if the checkpoint cannot be
    read.
    """
    loaded, skipped = _matched(network, checkpoint, channels)
    network.load_state_dict(network.state_dict() | loaded)
    return skipped


def check_start(network: torch.nn.Module, checkpoint: Path, *, channels: int) -> None:
    """Raise the ModelError of `load_start` if weights do not fit. network: its weights may be without values."""
    _matched(network, checkpoint, channels)


def _weights(path: Path, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights in nnU-Net's checkpoint or in a bundle's file by their names in a network.

    Raises ModelError.
    """
    if path.suffix != BUNDLED:
        return read_checkpoint(path).weights
    # `start_checkpoint` has verified the file.
    weights = {name: value for name, value in load_file(path).items() if name != GRAPH_CONSTANTS}
    # nnU-Net's networks have most weights under several names, of which a bundle stores one.
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        stored = [weights[name] for name in same if name in weights]
        weights |= dict.fromkeys(same, stored[0]) if stored else {}
    return weights


def _matched(
    network: torch.nn.Module, checkpoint: Path, channels: int
) -> tuple[dict[str, torch.Tensor], list[Skipped]]:
    """Return the weights that are taken over, and the tensors that are skipped. Raises ModelError."""
    state, weights = network.state_dict(), _weights(checkpoint, network)
    loaded: dict[str, torch.Tensor] = {}
    skipped, wrong = [], []
    for name, value in state.items():
        found = weights.get(name)
        shape, other = tuple(value.shape), None if found is None else tuple(found.shape)
        if SEGMENTATION_HEAD in name or _is_stem_of_other_channels(shape, other, channels):
            skipped.append(Skipped(name, shape, other))
        elif found is None or shape != other:
            wrong.append(Skipped(name, shape, other))
        else:
            loaded[name] = found
    unknown = [name for name in weights if name not in state and SEGMENTATION_HEAD not in name]
    if wrong or unknown:
        refuse_start(checkpoint, wrong, {name: tuple(weights[name].shape) for name in unknown})
    return loaded, skipped


def _is_stem_of_other_channels(shape: tuple[int, ...], found: tuple[int, ...] | None, channels: int) -> bool:
    """Return whether a tensor is the weight of the first convolution, and differs in the input channels alone."""
    if found is None or len(shape) < 4 or len(found) != len(shape):
        return False
    return shape[1] == channels != found[1] and (shape[0], *shape[2:]) == (found[0], *found[2:])


def refuse_start(checkpoint: Path, wrong: list[Skipped], unknown: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError with the first tensors that do not fit."""
    expected = [f"{one.name} {one.shape}" for one in wrong]
    found = [f"{one.name} {'missing' if one.found is None else one.found}" for one in wrong]
    found += [f"{name} {shape}" for name, shape in unknown.items()]
    raise ModelError(
        checkpoint,
        expected=f"weights of the network to train ({first_few(expected, 3) or 'no others'})",
        found=f"{len(found)} that differ ({first_few(found, 3)})",
        hint="start from a model with the same architecture",
    )
