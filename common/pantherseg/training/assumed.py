"""The network, patch and batch of every stage, before its data are there: planned for data that the file assumes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pantherseg.datasets.splits import SPLITS
from pantherseg.errors import ModelError
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.labels import LABEL_MAPS
from pantherseg.model_sources.nnunet import DATASET, PLANS, read_configuration, read_json
from pantherseg.tables import decode_registered
from pantherseg.training.estimate import Cost, cost_of
from pantherseg.training.folders import CONFIGURATION, TrainingFolders
from pantherseg.training.graph import Assumed, Stage
from pantherseg.training.lightning_recipe import LightningPlan
from pantherseg.training.planning import make_plans, with_sizes
from pantherseg.training.start import start_configuration
from pantherseg.training.workspace import Workspace
from pantherseg.volume import Grid, Volume

# The published weights that stages start from are residual encoders of nnU-Net's size L.
PUBLISHED_NETWORK = "ResEncL"
INTENSITIES = {"mean": 300.0, "std": 180.0, "percentile_00_5": 90.0, "percentile_99_5": 1100.0}
# What is assumed about data where the file says nothing: phantoms of the small size.
SMALL = Assumed(cases=8, shape=(40, 104, 128), spacing=(3.0, 2.4, 2.4))


class StageCosts:
    """What the stages of a training take. planned: the stages whose plans are made and still valid."""

    def __init__(self, work: Workspace, planned: Container[str] = ()) -> None:
        self._work, self._planned = work, planned
        self._plans: dict[str, dict[str, Any]] = {}
        self.assumed_networks: set[str] = set()
        """The stages that start from weights which are not there yet, so that their network is not known."""

    def of(self, stage: str) -> tuple[Cost, tuple[int, ...], int]:
        """Return what a batch of a stage takes, its patch (z, y, x) and its batch size.

        Raises RecipeError for a plan that is not possible.
        """
        labels = LABEL_MAPS[self._work.graph.stage[stage].labels]
        if (lightning := self._work.graph.stage[stage].lightning) is not None:
            return _lightning_cost(msgspec.json.encode(lightning.plan), len(labels))
        return _cost(json.dumps(self.plans(stage)), json.dumps(labels))

    def network(self, stage: str) -> torch.nn.Module:
        """Return the network of a stage, without values of its weights. Raises RecipeError."""
        labels = LABEL_MAPS[self._work.graph.stage[stage].labels]
        return _network(json.dumps(self.plans(stage)), json.dumps(labels))[0]

    def plans(self, stage: str) -> dict[str, Any]:
        """Return the plans of a stage: those that were made, or else those for assumed data.

        Raises RecipeError, and ModelError for weights to start from that were given and cannot be used.
        """
        if stage not in self._plans:
            self._plans[stage] = self._make_plans(stage)
        return self._plans[stage]

    def _make_plans(self, name: str) -> dict[str, Any]:
        work = self._work
        if name in self._planned and work.dataset(name).is_dir() and (folders := work.folders(name)).plans.is_file():
            return read_json(folders.plans)
        stage = work.graph.stage[name]
        if stage.start_stage is not None:
            return with_sizes(self.plans(stage.start_stage), stage.plan, name)
        settings = stage.plan
        if stage.start is not None:
            try:
                folder = work.start(name) or work.output
                plans = read_json(folder / PLANS) | {"configurations": {CONFIGURATION: start_configuration(folder)}}
                return with_sizes(plans, stage.plan, name)
            except ModelError:
                if name in work.inputs.starts:
                    raise
                # Published weights that were not fetched yet.
                self.assumed_networks.add(name)
                settings = msgspec.structs.replace(settings, network=PUBLISHED_NETWORK)
        with tempfile.TemporaryDirectory(prefix="pantherseg-plan-") as root, torch.device("meta"):
            return make_plans(_pretended(Path(root), work, stage), settings, None)


def _pretended(root: Path, work: Workspace, stage: Stage) -> TrainingFolders:
    """Write what nnU-Net's planner reads of a data set: its description, one case, and its fingerprint."""
    graph = work.graph
    names = [graph.pseudo[name].data if name in graph.pseudo else name for name in stage.data]
    assumed = [graph.data[name].assumed or SMALL for name in names]
    cases, first = sum(each.cases for each in assumed), assumed[0]
    raw = root / "raw" / "Dataset999_assumed"
    tiny = Volume(np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), first.spacing))
    write_volume(tiny, raw / "imagesTr" / "case_0000.mha")
    write_volume(tiny, raw / "labelsTr" / "case.mha")
    labels = LABEL_MAPS[stage.labels]
    description = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".mha"}
    write_text(raw / DATASET, json.dumps(description))
    write_text(raw / SPLITS, "[]")
    folders = TrainingFolders(raw, root)
    fingerprint = {
        "spacings": [first.spacing] * cases,
        "shapes_after_crop": [first.shape] * cases,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }
    write_text(folders.preprocessed / "dataset_fingerprint.json", json.dumps(fingerprint))
    return folders


@cache
def _cost(plans: str, labels: str) -> tuple[Cost, tuple[int, ...], int]:
    network, patch, batch_size = _network(plans, labels)
    return cost_of(network, patch, batch_size), patch, batch_size


@cache
def _lightning_cost(encoded: bytes, classes: int) -> tuple[Cost, tuple[int, ...], int]:
    """Return the same for the encoded plan of the trainer `lightning`."""
    plan = msgspec.json.decode(encoded, type=LightningPlan, dec_hook=decode_registered)
    with torch.device("meta"):
        network = plan.network.build_trainable(Path("network"), classes=classes)
    return cost_of(network, plan.patch_size, plan.batch_size), plan.patch_size, plan.batch_size


def _network(plans: str, labels: str) -> tuple[torch.nn.Module, tuple[int, ...], int]:
    """Return the network of plans, without values of its weights, the patch and the batch size."""
    with tempfile.TemporaryDirectory(prefix="pantherseg-plan-") as folder:
        dataset = {"channel_names": {"0": "MR"}, "labels": json.loads(labels), "numTraining": 1, "file_ending": ".mha"}
        write_text(Path(folder) / PLANS, plans)
        write_text(Path(folder) / DATASET, json.dumps(dataset))
        configuration = read_configuration(Path(folder), CONFIGURATION)
        batch_size = int(json.loads(plans)["configurations"][CONFIGURATION]["batch_size"])
        with torch.device("meta"):  # no weights are computed
            network = configuration.network()
    return network, configuration.patch, batch_size
