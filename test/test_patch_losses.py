"""The loss, the patches and the prepared cases of the trainer `lightning`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pantherseg.errors import InputError
from pantherseg.io import read_labels, read_volume
from pantherseg.training.lightning_recipe import LossSettings
from patch_training import LABELS, settings, write_raw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def patches() -> SimpleNamespace:
    """The modules under test: importing MONAI takes seconds, which runs without these tests are spared."""
    from pantherseg.training.patches import augmentation, batches, folders, losses, module, preparing

    return SimpleNamespace(
        **{m.__name__.rpartition(".")[2]: m for m in (augmentation, batches, folders, losses, module, preparing)}
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, patches: SimpleNamespace) -> Any:
    root = tmp_path_factory.mktemp("prepared")
    folders = patches.folders.PatchFolders(write_raw(root), root)
    patches.preparing.prepare_cases(folders, settings())
    return folders


# One slice with a tumour (class 1) in one of its two voxels, and one slice without; two classes.
LOGITS = torch.tensor([[[0.5, -1.0], [1.0, 0.0]], [[1.5, 0.0], [-1.0, 2.0]]]).reshape(1, 2, 2, 1, 2)
TARGET = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 1, 2)
PROBABILITY = torch.sigmoid(torch.tensor([1.0, 1.0, -2.0, 2.0])).tolist()
WEIGHT = [1.0, 1.0, 0.1, 0.1]


def loss_of(patches: SimpleNamespace, target: torch.Tensor = TARGET, **parts: float) -> float:
    wanted = LossSettings(**({"dice": 0.0, "empty_slices": 0.1} | parts))
    return float(patches.losses.PatchLoss(wanted, classes=2)(LOGITS, target))


def weighted(values: list[float]) -> float:
    return sum(w * value for w, value in zip(WEIGHT, values, strict=True)) / sum(WEIGHT)


def test_each_part_of_the_loss_follows_its_formula(patches: SimpleNamespace) -> None:
    p, g = PROBABILITY, [1, 0, 0, 0]
    dice = 1 - 2 * p[0] / (weighted(p) * sum(WEIGHT) + 1)
    assert loss_of(patches, dice=1.0) == pytest.approx(dice, abs=1e-4)
    right = [a if b else 1 - a for a, b in zip(p, g, strict=True)]
    assert loss_of(patches, cross_entropy=1.0) == pytest.approx(weighted([-math.log(r) for r in right]), rel=1e-5)
    alpha = [0.25 if b else 0.75 for b in g]
    focal = [-a * (1 - r) ** 2 * math.log(r) for a, r in zip(alpha, right, strict=True)]
    assert loss_of(patches, focal=1.0) == pytest.approx(weighted(focal), rel=1e-5)
    distance = [-0.5, 0.5, 0.75, 1.0]
    target = torch.cat((TARGET, torch.tensor(distance).reshape(1, 1, 2, 1, 2)), 1)
    boundary = weighted([a * b for a, b in zip(p, distance, strict=True)])
    assert loss_of(patches, target, boundary=1.0) == pytest.approx(boundary, rel=1e-5)
    together = loss_of(patches, target, dice=0.6, focal=0.3, boundary=0.1)
    assert together == pytest.approx(0.6 * dice + 0.3 * weighted(focal) + 0.1 * boundary, abs=1e-4)


def test_without_weights_all_slices_count_the_same(patches: SimpleNamespace) -> None:
    p = PROBABILITY
    assert loss_of(patches, dice=1.0, empty_slices=1.0) == pytest.approx(1 - 2 * p[0] / (sum(p) + 1), abs=1e-4)


def test_slices_without_a_label_have_another_weight(patches: SimpleNamespace) -> None:
    labels = torch.zeros((2, 1, 3, 2, 2))
    labels[0, 0, 1, 0, 1], labels[1, 0, 2, 1, 1] = 2, 1
    weights = patches.losses.slice_weights(labels, 0.1)
    assert weights.shape == labels.shape
    assert weights[:, 0, :, 0, 0].tolist() == [
        [pytest.approx(0.1), 1, pytest.approx(0.1)],
        [pytest.approx(0.1)] * 2 + [1],
    ]


def test_distances_are_in_mm_and_negative_inside(patches: SimpleNamespace) -> None:
    labels = np.zeros((1, 1, 6), np.uint8)
    labels[0, 0, 1:4] = 1
    distances = patches.losses.signed_distances(labels, 3, (3.0, 1.0, 2.0))
    # The nearest voxel of the other side is this far away, in mm; the largest magnitude becomes 1.
    assert distances[0, 0, 0].tolist() == pytest.approx([mm / 4 for mm in (2, -2, -4, -2, 2, 4)])
    assert not distances[1].any(), "a label that is not there"
    assert not patches.losses.signed_distances(np.ones((2, 2, 2), np.uint8), 2, (1.0, 1.0, 1.0)).any()


def test_auxiliary_heads_have_half_the_weight(patches: SimpleNamespace) -> None:
    class Heads(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [image, image[..., ::2]]

    schedule = settings(loss={"dice": 0.0, "cross_entropy": 1.0}).schedule
    module = patches.module.PatchModule(Heads(), schedule, classes=2)
    module.log = lambda *arguments, **options: None
    found = module.training_step({"image": LOGITS, "target": TARGET}, 0)
    loss = patches.losses.PatchLoss(schedule.loss, classes=2)
    # MONAI takes the nearest voxel to the centre of both, which is the second.
    whole, half = loss(LOGITS, TARGET), loss(LOGITS[..., ::2], TARGET[..., 1:])
    assert float(found) == pytest.approx(float(whole) + 0.5 * float(half))


def draw(patches: SimpleNamespace, prepared: Any, *, augment: bool = False, **schedule: Any) -> Any:
    wanted = settings(**schedule)
    plans = patches.preparing.plans_of(prepared, wanted)
    cases = json.loads((prepared.dataset / "splits_final.json").read_text())[0]["train"]
    return patches.batches.Patches(prepared, cases, plans, wanted.schedule, seed=(7, 0, 0), augment=augment)


@pytest.mark.parametrize("ratios", [{"background": 0.2, "pancreas": 0.3, "tumour": 0.5}, {"tumour": 1.0}, {}])
def test_patches_are_centred_on_labels_by_the_ratios(
    patches: SimpleNamespace, prepared: Any, ratios: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, drawn = draw(patches, prepared, sampling=ratios), 400
    # Patches near the border of a volume are moved into it; with a patch of one voxel, none is.
    source._plans = SimpleNamespace(patch_size_zyx=(1, 1, 1), labels=LABELS)
    monkeypatch.setattr(patches.batches, "cut", lambda array, centre, size: array[tuple(centre)])
    found = [int(source._draw(np.random.RandomState(number))[1]) for number in range(drawn)]
    wanted = ratios or dict.fromkeys(LABELS, 1.0)
    for name, label in LABELS.items():
        share = wanted.get(name, 0.0) / sum(wanted.values())
        spread = 3 * math.sqrt(share * (1 - share) / drawn)
        assert found.count(label) / drawn == pytest.approx(share, abs=spread + 1e-9), name


@pytest.mark.parametrize("augmentation", ["none", "intensity", "nnunet"])
def test_a_patch_follows_from_its_number(patches: SimpleNamespace, prepared: Any, augmentation: str) -> None:
    loss = {"boundary": 0.1}
    first, again = (draw(patches, prepared, augment=True, augmentation=augmentation, loss=loss) for _ in range(2))
    one = first[3]
    assert one["image"].shape == (1, 8, 16, 16)
    assert one["image"].dtype == torch.float32
    assert one["target"].shape == (3, 8, 16, 16), "the labels, and the distance to the border of each of two labels"
    first[4]
    for part in ("image", "target"):
        assert torch.equal(one[part], again[3][part]), "whatever was drawn before"
        assert not torch.equal(one[part], first[5][part])


def test_nnunets_augmentation_moves_labels_with_the_image(patches: SimpleNamespace) -> None:
    transforms = patches.augmentation.make_transforms(settings().schedule, (16, 16, 16))
    size = patches.augmentation.size_before(settings().schedule, (16, 16, 16))
    assert size == (26, 26, 26)
    labels = torch.zeros((1, *size))
    labels[:, 8:14, 10:18, 9:15] = 1
    transforms.set_random_state(seed=1)
    moved = 0
    for _ in range(20):
        result = transforms({"image": labels.clone(), "labels": labels.clone()})
        image, mask = result["image"][0], result["labels"][0]
        assert image.shape == mask.shape == (16, 16, 16)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert image[mask == 1].mean() > image[mask == 0].mean() + 0.2
        moved += not torch.equal(mask, labels[0, 5:21, 5:21, 5:21])
    assert moved > 10


def test_flat_patches_are_turned_about_z_alone(patches: SimpleNamespace) -> None:
    transforms = patches.augmentation.make_transforms(settings(mirroring=False).schedule, (8, 32, 32))
    size = patches.augmentation.size_before(settings().schedule, (8, 32, 32))
    assert size == (8, 54, 54)
    labels = torch.zeros((1, *size))
    labels[:, 3, 10:40, 24:30] = 1
    transforms.set_random_state(seed=2)
    for _ in range(10):
        mask = transforms({"image": labels.clone(), "labels": labels.clone()})["labels"][0]
        assert mask.any(2).any(1).nonzero().tolist() == [[3]], "the slice stays"


def test_patches_reach_beyond_a_small_volume(patches: SimpleNamespace) -> None:
    volume = np.arange(1, 28, dtype=np.float32).reshape(3, 3, 3)
    found = patches.batches.cut(volume, (0, 1, 2), (4, 3, 2))
    assert found.shape == (4, 3, 2)
    assert not found[:2].any()
    assert found[2:].tolist() == volume[:2, :, 1:].tolist()


def test_cases_are_prepared_as_at_inference(patches: SimpleNamespace, prepared: Any) -> None:
    plans = patches.preparing.plans_of(prepared, settings())
    for path in sorted((prepared.dataset / "imagesTr").iterdir()):
        case = path.name.removesuffix("_0000.mha")
        image, label = read_volume(path), read_labels(prepared.dataset / "labelsTr" / f"{case}.mha")
        expected = plans.preprocessing.run(image.array, image.grid.spacing).data[0]
        assert np.array_equal(np.load(prepared.case(case, "image.npy")), expected)
        labels = np.load(prepared.case(case, "labels.npy"))
        assert labels.shape == expected.shape
        for number in (1, 2):
            mm3 = [
                (each == number).sum() * voxel for each, voxel in ((labels, 150.0), (label.array, image.grid.voxel_mm3))
            ]
            assert mm3[0] == pytest.approx(mm3[1], rel=0.25)
        with np.load(prepared.case(case, "voxels.npz")) as voxels:
            assert all((labels.ravel()[voxels[f"label_{number}"]] == number).all() for number in LABELS.values())


def test_a_case_in_another_orientation_is_prepared_alike(patches: SimpleNamespace, prepared: Any) -> None:
    plans = patches.preparing.plans_of(prepared, settings())
    path = next((prepared.dataset / "imagesTr").iterdir())
    image = read_volume(path)
    label = read_labels(prepared.dataset / "labelsTr" / path.name.replace("_0000", ""))
    turned = patches.preparing.prepare(image.turned_to("RAS"), label.turned_to("RAS"), plans)
    for found, expected in zip(turned, patches.preparing.prepare(image, label, plans), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.fault("training", "a prepared case was removed", "an error that names the case")
def test_names_a_case_that_is_missing(patches: SimpleNamespace, prepared: Any, tmp_path: Path) -> None:
    shutil.copytree(prepared.preprocessed, tmp_path / "preprocessed" / prepared.name)
    folders = patches.folders.PatchFolders(prepared.dataset, tmp_path)
    plans = patches.preparing.plans_of(folders, settings())
    cases = [path.name.removesuffix("_0000.mha") for path in sorted((prepared.dataset / "imagesTr").iterdir())]
    patches.preparing.check_prepared(folders, plans, cases)
    with pytest.raises(InputError, match="expected cases prepared by the same plans"):
        patches.preparing.check_prepared(
            folders, patches.preparing.plans_of(folders, settings({"spacing": [6.0, 5.0, 4.0]})), cases
        )
    missing = folders.case(cases[1], "voxels.npz")
    missing.unlink()
    with pytest.raises(
        InputError, match=f"{cases[1]}.voxels.npz: expected a file of a preprocessed case, found No such file"
    ):
        patches.preparing.check_prepared(folders, plans, cases)
