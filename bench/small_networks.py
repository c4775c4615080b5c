"""Small networks of systems B and D, trained on phantoms in half a minute, in the layout of our own trainer.

They make the paths of packing and inference testable with trained weights, so they learn something easy in place of
tumours: the brightest tissue is label 1, the next brightest label 2. The loop is plain, and not that of the systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from pantherseg import __version__
from pantherseg.model_sources.lightning import FINAL, write_checkpoint
from pantherseg.model_sources.lightning_plans import LightningPlans, write_plans
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.networks import build_network
from pantherseg.networks.attention_unet import AttentionUnet
from pantherseg.networks.segformer3d import SegFormer3D
from pantherseg.phantom import make_phantom
from pantherseg.preprocessing.intensity import NonZeroZScore

BINARY = {"background": 0, "tumour": 1}
THREE = BINARY | {"pancreas": 2}
VERSIONS = {"pantherseg": __version__, "torch": version("torch")}
# Coarse, so that a patch shows a good part of the body.
SPACING = (8.0, 6.0, 6.0)
SMALL_B = LightningPlans(
    task="t1",
    architecture=AttentionUnet(base_features=6, depth=2, squeeze=2),
    labels=BINARY,
    spacing_zyx=SPACING,
    patch_size_zyx=(16, 40, 40),
    normalization=NonZeroZScore(percentiles=(1.0, 99.0)),
    orientation="LPS",
    trained_with=VERSIONS,
)
SMALL_D = LightningPlans(
    task="t1",
    architecture=SegFormer3D(embeddings=(16, 24, 40, 48), heads=(1, 2, 5, 6), depths=(1, 1, 1, 1), decoder_features=16),
    labels=THREE,
    spacing_zyx=SPACING,
    patch_size_zyx=(16, 48, 48),
    normalization=NonZeroZScore(),
    orientation="LPS",
    trained_with=VERSIONS,
)
# Not among the seeds of weights/demo/make.sh, of the tests and of other benchmarks.
FIRST_SEED = 3100
LEARNING_RATE = 3e-3
# Percentiles of a smoothed image above which voxels have label 1, and label 2.
BRIGHT = (90, 70)
AUXILIARY_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class Example:
    """A prepared phantom: image (1, z, y, x) in float32 and labels (z, y, x)."""

    image: torch.Tensor
    labels: torch.Tensor


def make_weights(
    folder: Path, plans: LightningPlans, *, folds: int = 2, cases: int = 2, iterations: int = 50, name: str = FINAL
) -> ModelFolder:
    """Train the folds and write a results folder. iterations: of the first fold; others go on with a fifth as many."""
    write_plans(folder, plans)
    classes = len(plans.labels)
    torch.manual_seed(0)
    network = build_network(folder, plans.network, classes=classes, trainable=True).train()
    examples = [example(FIRST_SEED + case, plans) for case in range(cases)]
    for fold in range(folds):
        train(network, examples, plans, iterations if fold == 0 else iterations // 5, seed=fold)
        write_checkpoint(folder / f"fold_{fold}" / name, network.state_dict(), plans, str(fold))
    return open_model_folder(folder, checkpoint=name)


def example(seed: int, plans: LightningPlans) -> Example:
    """Return a small phantom of Task 1, prepared as the engine prepares volumes, and what is bright in it."""
    image = make_phantom(seed, task=1, size="small").image
    prepared = plans.preprocessing.run(image.array.astype(np.float32), image.grid.spacing).data
    smooth = ndimage.gaussian_filter(prepared[0], 1.0)
    brightest, bright = np.percentile(smooth, BRIGHT)
    second = np.where(smooth > bright, 2, 0) if len(plans.labels) > 2 else 0
    labels = np.where(smooth > brightest, 1, second).astype(np.int64)
    return Example(torch.from_numpy(prepared), torch.from_numpy(labels))


def train(network: nn.Module, examples: list[Example], plans: LightningPlans, iterations: int, *, seed: int) -> None:
    """Train a network in training mode on patches."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=iterations)
    for _ in range(iterations):
        chosen = examples[int(generator.integers(len(examples)))]
        image, labels = patch_of(chosen, plans, generator)
        outputs = network(image)
        losses = [loss(output, labels) for output in outputs]
        total = losses[0] + AUXILIARY_WEIGHT * sum(losses[1:], torch.zeros(()))
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def patch_of(
    chosen: Example, plans: LightningPlans, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random patch (1, 1, *patch) and its labels (1, *patch)."""
    sides = zip(plans.patch_size_zyx, chosen.labels.shape, strict=True)
    starts = [(int(generator.integers(length - side + 1)), side) for side, length in sides]
    place = [slice(start, start + side) for start, side in starts]
    return chosen.image[:, *place][None], chosen.labels[*place][None]


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 - soft Dice of the labels other than background, plus the cross-entropy.

    logits: (1, classes, *size); labels: (1, *patch), resampled to that size.
    """
    known = functional.interpolate(labels[None].float(), size=logits.shape[2:], mode="nearest-exact")[0].long()
    probabilities = torch.softmax(logits, 1)
    truth = functional.one_hot(known, logits.shape[1]).movedim(-1, 1).float()
    common, total = ((x).sum((0, 2, 3, 4))[1:] for x in (probabilities * truth, probabilities + truth))
    overlap: torch.Tensor = 1 - (2 * common / (total + 1)).mean()
    return overlap + functional.cross_entropy(logits, known)
