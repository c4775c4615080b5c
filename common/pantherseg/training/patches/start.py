"""The model of an earlier stage that a training starts from: its weights without the heads that do not fit."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch

from pantherseg.errors import first_few
from pantherseg.files import write_text
from pantherseg.model_sources.lightning import read_checkpoint
from pantherseg.model_sources.lightning_plans import LightningPlans, read_plans
from pantherseg.training.start import START_RECORD, Skipped, refuse_start

logger = logging.getLogger(__name__)


def load_start(network: torch.nn.Module, checkpoint: Path, plans: LightningPlans, output: Path) -> None:
    """Load the weights of a checkpoint into a network, and list in start.json what is not taken over.

    Tensors are skipped where their first axis alone differs, and is the number of labels of either model: those of the
    heads. checkpoint: of a model folder with plans. Raises ModelError for any other difference.
    """
    theirs = read_plans(checkpoint.parent.parent)
    weights = read_checkpoint(checkpoint, theirs, checkpoint.parent.name.removeprefix("fold_"))
    classes = len(plans.labels), len(theirs.labels)
    taken: dict[str, torch.Tensor] = {}
    skipped, wrong = [], []
    for name, value in network.state_dict().items():
        found, shape = weights.get(name), tuple(value.shape)
        other = None if found is None else tuple(found.shape)
        if found is not None and shape == other:
            taken[name] = found
        elif other and shape and (shape[0], other[0]) == classes and shape[1:] == other[1:]:
            skipped.append(Skipped(name, shape, other))
        else:
            wrong.append(Skipped(name, shape, other))
    unknown = {name: tuple(value.shape) for name, value in weights.items() if name not in network.state_dict()}
    if wrong or unknown:
        refuse_start(checkpoint, wrong, unknown)
    network.load_state_dict(taken, strict=False)
    names = first_few([f"{one.name} {one.shape}" for one in skipped], 4) or "nothing left out"
    logger.info("starts from %s, without %s", checkpoint, names)
    record = {"checkpoint": str(checkpoint), "skipped": [asdict(one) for one in skipped]}
    write_text(output / START_RECORD, json.dumps(record, indent=2) + "\n")
