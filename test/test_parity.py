"""Masks equal nnU-Net's for every kind of network and plans that its planners make.

Each network is trained for some steps: with an untrained one, the logits of all classes are nearly equal and rounding
decides the mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.planned import LABELS, Data, make_folder, make_plans
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from conftest import NnunetMask
from pantherseg.inference.backends import Backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.inference.tiles import tiles
from pantherseg.model_sources.nnunet import PLANS, read_configuration
from pantherseg.models.find import ModelFolder
from pantherseg.packing.pack import pack
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.volume import Grid, Volume

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TORCH_RESAMPLING = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
FEATURES = 4
STEPS = 30
# The fraction of voxels that may differ, which allows none in volumes of this size.
TOLERATED = 1e-6


@dataclass(frozen=True)
class Kind:
    """Settings for nnU-Net's planner and trainer.

    data: describes the data set; axes: the order of (z, y, x) in the volume; arguments: of the network, in the plans.
    """

    planner: str
    data: Data
    configuration: str = "3d_fullres"
    axes: tuple[int, int, int] = (0, 1, 2)
    torch_resampling: bool = False
    normalization: str = "ZScoreNormalization"
    trainer: type[nnUNetTrainer] = nnUNetTrainer
    arguments: dict[str, object] = field(default_factory=dict)


KINDS = {
    "PlainConvUNet": Kind("PlainConvUNet", Data((16, 32, 40), (5.0, 2.4, 2.4))),
    "PlainConvUNet in 2-D": Kind("PlainConvUNet", Data((20, 40, 48), (5.0, 2.4, 2.4)), configuration="2d"),
    "PlainConvUNet in 2-D with transposed volumes": Kind(
        "PlainConvUNet", Data((40, 20, 48), (2.4, 5.0, 2.4)), configuration="2d", axes=(1, 0, 2)
    ),
    "PlainConvUNet with z resampled separately": Kind(
        "PlainConvUNet", Data((12, 40, 40), (8.0, 2.4, 2.4)), normalization="CTNormalization"
    ),
    "ResEncM with transposed volumes": Kind("ResEncM", Data((32, 40, 16), (2.4, 2.4, 5.0)), axes=(1, 2, 0)),
    "ResEncL with torch's resampling": Kind("ResEncL", Data((16, 32, 40), (4.0, 3.0, 3.0)), torch_resampling=True),
    "ResEncXL": Kind("ResEncXL", Data((24, 32, 32), (3.0, 3.0, 3.0))),
    "PlainConvUNet with batch norm": Kind(
        "PlainConvUNet", Data((16, 32, 40), (5.0, 2.4, 2.4)), trainer=nnUNetTrainerBN
    ),
    "PlainConvUNet in 2-D with batch norm": Kind(
        "PlainConvUNet", Data((20, 40, 48), (5.0, 2.4, 2.4)), configuration="2d", trainer=nnUNetTrainerBN
    ),
    "ResEncM with batch norm": Kind("ResEncM", Data((24, 32, 32), (3.0, 3.0, 3.0)), trainer=nnUNetTrainerBN),
    "PlainConvUNet with batch norm in the plans": Kind(
        "PlainConvUNet",
        Data((16, 32, 40), (5.0, 2.4, 2.4)),
        arguments={
            "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
            "norm_op_kwargs": {"eps": 0.01, "affine": False},
            "conv_bias": False,
        },
    ),
}


def plans_of(kind: Kind, work: Path) -> dict[str, Any]:
    plans = make_plans(kind.planner, kind.data, work, base_features=FEATURES)
    configuration = plans["configurations"][kind.configuration]
    configuration["normalization_schemes"] = [kind.normalization]
    configuration["architecture"]["arch_kwargs"] |= kind.arguments
    if kind.torch_resampling:
        for what in ("data", "seg", "probabilities"):
            configuration[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
            configuration[f"resampling_fn_{what}_kwargs"] = TORCH_RESAMPLING | {"is_seg": what == "seg"}
    return json.loads(json.dumps(plans))  # type: ignore[no-any-return]


def new_network(model: ModelFolder, kind: Kind) -> nn.Module:
    """Return the network that the trainer makes of the plans."""
    if kind.trainer is nnUNetTrainer:
        return read_configuration(model.path, kind.configuration).network()
    manager = PlansManager(str(model.path / PLANS))
    settings = manager.get_configuration(kind.configuration)
    network: nn.Module = kind.trainer.build_network_architecture(
        manager, settings, 1, len(LABELS), enable_deep_supervision=False
    )
    return network


def train(model: ModelFolder, kind: Kind, volume: Volume, labels: NDArray[np.uint8]) -> None:
    """Train the network on one volume and save two of its states as two folds."""
    torch.manual_seed(0)
    settings = read_configuration(model.path, kind.configuration)
    prepared = settings.preprocessing.run(volume.array, volume.grid.spacing).data
    targets = labels_like(prepared, labels, settings.preprocessing)
    pads = [(0, max(0, size - have)) for size, have in zip((1, *settings.patch)[-3:], prepared.shape[1:], strict=True)]
    prepared, targets = np.pad(prepared, [(0, 0), *pads]), np.pad(targets, pads)
    where = sorted(tiles(targets.shape, settings.patch, 0.5), key=lambda tile: -int((targets[tile] == 1).sum()))[:2]
    network = new_network(model, kind).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    loss_of = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 40.0, 8.0]))
    for step in range(STEPS):
        tile = where[step % len(where)]
        image = torch.from_numpy(prepared[(slice(None), *tile)].reshape(1, 1, *settings.patch))
        target = torch.from_numpy(targets[tile].reshape(1, *settings.patch)).long()
        optimizer.zero_grad()
        loss_of(network(image), target).backward()
        optimizer.step()
        if step in (STEPS - 5, STEPS - 1):
            path = model.checkpoint_path("0" if step < STEPS - 1 else "1")
            trained = {"network_weights": network.state_dict(), "trainer_name": kind.trainer.__name__}
            torch.save(torch.load(path, weights_only=True) | trained, path)


def labels_like(
    prepared: NDArray[np.float32], labels: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """Resample the labels (z, y, x) of a volume to the network's grid."""
    transposed = labels.transpose(preprocessing.transpose)
    factors = [new / old for new, old in zip(prepared.shape[1:], transposed.shape, strict=True)]
    result: NDArray[np.uint8] = ndimage.zoom(transposed, factors, order=0, grid_mode=True, mode="nearest")
    return result


RUNS = pytest.mark.fault("models", "nnU-Net's {name}", "the mask of nnU-Net's own predictor: no voxel differs")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=RUNS) if "batch norm" in name else pytest.param(name) for name in KINDS]
)
def test_mask_of_every_network_equals_nnunets(
    tmp_path: Path, nnunet_mask: NnunetMask, labelled_pancreas: tuple[Volume, Volume], name: str
) -> None:
    kind = KINDS[name]
    image, labels = labelled_pancreas
    spacing = image.grid.spacing
    array = np.ascontiguousarray(image.array.transpose(kind.axes))
    z, y, x = (spacing[axis] for axis in kind.axes)
    volume = Volume(array, Grid(array.shape, (z, y, x)))
    plans = plans_of(kind, tmp_path / "work")
    model = make_folder(plans, tmp_path / "model", folds=2, configuration=kind.configuration)
    train(model, kind, volume, labels.array.transpose(kind.axes))

    expected = nnunet_mask(model, volume)
    counts = np.bincount(expected.ravel(), minlength=3)
    assert (counts[1:] > 20).all(), "the network has learned too little for a meaningful comparison"
    bundle = pack(model, tmp_path / "bundle")
    backends: tuple[Backend, ...] = (OpenVinoBackend(), TorchBackend("cpu"))
    torch.set_num_threads(1)  # torch's backend takes every CPU
    for backend in backends:
        assert (Predictor(bundle, backend).predict(volume).labels() != expected).mean() <= TOLERATED, backend
