"""A small network of 40 structures in the layout of MRSegmentator's weights, trained on phantoms in a minute or two.

Structures 1 to 7 are the phantom's organs, 7 the pancreas; 8 to 40 divide the rest of the body by intensity, so that
all 40 compete. It starts from the demo localizer, and the folds differ by the cases that they see.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from bench.unpack import unpack
from pantherseg.model_sources.mrsegmentator import BASE_CLASSES, VERSION, VERSION_KEY
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS, read_configuration
from pantherseg.models.bundle import open_bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.phantom import Phantom, make_phantom

# Numbered names, as in the data that the published weights were trained on.
LABELS = {"background": 0, **{str(number): number for number in range(1, BASE_CLASSES)}}
PANCREAS = 7
FIRST_LAYER = 8
CONFIGURATION = "3d_fullres"
# Smaller than the demo localizer's, so that a volume takes several tiles.
PATCH = (40, 64, 48)
# Axes along which nnU-Net's own trainer mirrors, and the package at inference.
MIRRORED = (0, 1, 2)
LEARNING_RATE = 1e-3
# Not among the seeds of weights/demo/make.sh, of the tests and of other benchmarks.
FIRST_SEED = 3000


def make_weights(folder: Path, *, folds: int = 2, cases: int = 6, iterations: int = 120) -> ModelFolder:
    """Train the folds and write the folder: plans.json, dataset.json, version.json and fold_<k>/checkpoint_final.pth.

    iterations: of the first fold; the others go on from it with a fifth as many.
    """
    demo = unpack(open_bundle(DEMO_WEIGHTS / "localizer"), folder.with_name(f"{folder.name}-start"))
    folder.mkdir(parents=True)
    plans = json.loads((demo.path / PLANS).read_text())
    plans["configurations"][CONFIGURATION]["patch_size"] = PATCH
    (folder / PLANS).write_text(json.dumps(plans))
    content = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / DATASET).write_text(json.dumps(content))
    write_version(folder)
    network = _start(folder, demo)
    data = [_prepared(folder, make_phantom(FIRST_SEED + case, task=2, size="small")) for case in range(cases)]
    for fold in range(folds):
        seen = [one for number, one in enumerate(data) if number % max(folds, 2) != fold]
        _train(network, seen, iterations if fold == 0 else iterations // 5, seed=fold)
        _save(network, folder / f"fold_{fold}")
    shutil.rmtree(demo.path)
    return open_model_folder(folder)


def write_version(folder: Path) -> None:
    """Write the file that makes a model folder one of MRSegmentator."""
    (folder / VERSION).write_text(json.dumps({VERSION_KEY: 1.2}))


def structures(phantom: Phantom) -> NDArray[np.uint8]:
    """Return the label map (z, y, x) of a phantom with 40 structures."""
    image, organs = phantom.image.array.astype(np.float32), phantom.organs.array
    body = ndimage.binary_closing(image > 0.1 * np.percentile(image, 99), iterations=2)
    smooth = ndimage.gaussian_filter(image, 1.0)
    edges = np.quantile(smooth[body], np.linspace(0, 1, BASE_CLASSES - FIRST_LAYER + 1)[1:-1])
    layers = FIRST_LAYER + np.digitize(smooth, edges)
    return np.where(organs > 0, organs, np.where(body, layers, 0)).astype(np.uint8)


def _start(folder: Path, demo: ModelFolder) -> nn.Module:
    """Return the network with the weights of the demo localizer, whose last layer knows the first structures only."""
    network = read_configuration(folder, CONFIGURATION).network()
    content: dict[str, Any] = torch.load(demo.checkpoint_path("0"), weights_only=True)["network_weights"]
    own = network.state_dict()
    torch.manual_seed(0)
    for key, value in own.items():
        value[: len(content[key])] = content[key]
    network.load_state_dict(own)
    return network


def _prepared(folder: Path, phantom: Phantom) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a phantom's image (1, 1, z, y, x) and structures (1, z, y, x) on the network's grid."""
    configuration = read_configuration(folder, CONFIGURATION)
    image = phantom.image.array.astype(np.float32)
    data = configuration.preprocessing.run(image, phantom.image.grid.spacing).data
    labels = structures(phantom)
    zoom = [new / old for new, old in zip(data.shape[1:], labels.shape, strict=True)]
    small = ndimage.zoom(labels, zoom, order=0, grid_mode=True, mode="nearest").astype(np.int64)
    pads = [(0, max(0, side - size)) for side, size in zip(PATCH, small.shape, strict=True)]
    return torch.from_numpy(np.pad(data[0], pads))[None, None], torch.from_numpy(np.pad(small, pads))[None]


def _train(
    network: nn.Module, data: Sequence[tuple[torch.Tensor, torch.Tensor]], iterations: int, *, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=iterations)
    network.train()
    for _ in range(iterations):
        image, labels = data[int(rng.integers(len(data)))]
        axes = [axis for axis in MIRRORED if rng.random() < 0.5]
        start = [int(rng.integers(size - side + 1)) for size, side in zip(labels.shape[1:], PATCH, strict=True)]
        z, y, x = (slice(a, a + side) for a, side in zip(start, PATCH, strict=True))
        image = image[:, :, z, y, x].flip([2 + axis for axis in axes])
        labels = labels[:, z, y, x].flip([1 + axis for axis in axes])
        logits = network(image)
        probability = logits.softmax(1)[:, PANCREAS]
        pancreas = (labels == PANCREAS).float()
        dice = 2 * (probability * pancreas).sum() / (probability.sum() + pancreas.sum() + 1e-5)
        loss = nn.functional.cross_entropy(logits, labels) + 1 - dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _save(network: nn.Module, fold: Path) -> None:
    fold.mkdir()
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": CONFIGURATION},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": MIRRORED,
    }
    torch.save(content, fold / CHECKPOINT)
