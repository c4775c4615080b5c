"""Training on a few tiny phantoms, with nnU-Net and with another trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pantherseg.errors import InputError, OutputError, RecipeError
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io import read_image, read_labels, write_volume
from pantherseg.labels import PANCREAS, TUMOUR, find_label, tumour_of
from pantherseg.model_sources.nnunet import PLANS, read_json
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.phantom import write_dataset
from pantherseg.training.dataset import list_cases, write_nnunet_dataset
from pantherseg.training.run import train
from pantherseg.training.trainer import TrainingJob
from pantherseg.training.trainers import TRAINERS
from pantherseg.training.training_recipe import TrainingRecipe, load_training_recipe

RECIPE = """
schema = 1
name = "tiny"
dataset_id = 990
labels = "{labels}"
folds = 2
trained_folds = 1
{crop}
[plan]
{network}
spacing = [5.0, 6.0, 6.0]
memory_gb = 0.1
base_features = 4
max_features = 8
blocks_encoder = [1, 1, 1, 1, 1, 1, 1]
blocks_decoder = [1, 1, 1, 1, 1, 1]

[schedule]
epochs = 1
iterations = 2
optimizer = "{optimizer}"
augmentation = "{augmentation}"
mirroring = false

[trainer]
kind = "{kind}"
"""


def recipe(folder: Path, **settings: str) -> TrainingRecipe:
    defaults = {
        "labels": "tumour+pancreas",
        "network": 'network = "ResidualEncoderUNet"',
        "crop": "",
        "optimizer": "sgd",
        "augmentation": "none",
        "kind": "nnunet",
    }
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(**defaults | settings))
    return load_training_recipe(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, task=1, cases=4, seed=70, size="small", organs=True)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_trains_then_fine_tunes_then_predicts(tmp_path: Path, data: Path) -> None:
    """The filters are for warnings that nnU-Net causes."""
    record = train(recipe(tmp_path, optimizer="adamw"), data, tmp_path / "first", work=tmp_path / "w1")
    assert set(record["dice"]["mean"]) == {"tumour", "pancreas"}
    assert len(record["dice"]["cases"]) == 2, "one of two folds was trained, so only half of the cases are scored"
    assert json.loads((tmp_path / "first" / "training.json").read_text()) == record
    content = torch.load(tmp_path / "first" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert "optimizer_state" not in content

    tuned = recipe(tmp_path, network="", labels="tumour", crop="crop_margin_mm = 30.0", augmentation="default")
    train(tuned, data, tmp_path / "second", work=tmp_path / "w2", start=tmp_path / "first")
    first, second = (read_json(tmp_path / name / PLANS)["configurations"]["3d_fullres"] for name in ("first", "second"))
    assert first["architecture"] == second["architecture"]
    image, _ = read_image(data / "imagesTr" / "10070_0001_0000.mha")
    predictor = Predictor(as_bundle(open_model_folder(tmp_path / "second")), choose_backend("cpu"))
    logits = predictor.logits(predictor.prepare(image))
    assert (logits.classes, logits.shape) == (2, image.grid.shape)


@pytest.mark.slow
def test_a_recipe_chooses_its_trainer(
    tmp_path: Path, data: Path, demo_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[TrainingJob] = []

    def copy_demo(job: TrainingJob) -> None:
        jobs.append(job)
        shutil.copytree(demo_folder.path, job.output, ignore=shutil.ignore_patterns("fold_[1-4]"))

    monkeypatch.setitem(TRAINERS, "copy", copy_demo)
    output = tmp_path / "model"
    record = train(recipe(tmp_path, kind="copy", crop="crop_margin_mm = 20.0"), data, output, work=tmp_path / "work")
    (job,) = jobs
    assert (job.data, job.output, job.folds) == (data, output, range(1))
    assert set(record["dice"]["cases"]) == set(job.splits[0]["val"])
    assert record["dice"]["mean"]["pancreas"] > 0.5
    assert json.loads((output / "training.json").read_text()) == record


@pytest.mark.parametrize(
    ("settings", "start", "message"),
    [
        ({"network": ""}, None, "either plan.network or a model to fine-tune, found neither"),
        ({}, Path("start"), "either plan.network or a model to fine-tune, found both"),
        ({"kind": "other"}, None, "trainer.kind to be one of nnunet, found 'other'"),
    ],
)
def test_refuses_a_recipe_that_cannot_be_trained(
    tmp_path: Path, data: Path, settings: dict[str, str], start: Path | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        train(recipe(tmp_path, **settings), data, tmp_path / "model", work=tmp_path / "work", start=start)
    assert not (tmp_path / "model").exists()


def test_refuses_an_output_folder_with_a_model_and_too_few_cases(tmp_path: Path, data: Path) -> None:
    (tmp_path / "model" / "fold_0").mkdir(parents=True)
    with pytest.raises(OutputError, match="expected a new folder for the model, found a model; move it away"):
        train(recipe(tmp_path), data, tmp_path / "model", work=tmp_path / "work")
    few = tmp_path / "few"
    write_dataset(few, task=1, cases=1, seed=3, size="small")
    with pytest.raises(InputError, match="at least one case for each of 2 folds, found 1"):
        train(recipe(tmp_path), few, tmp_path / "new", work=tmp_path / "work")


def test_crops_the_cases_to_the_pancreas_and_keeps_only_the_tumour(tmp_path: Path, data: Path) -> None:
    folder = write_nnunet_dataset(
        recipe(tmp_path, labels="tumour", crop="crop_margin_mm = 20.0"), data, tmp_path / "raw"
    )
    for case in list_cases(data, "tumour"):
        whole = read_labels(data / "labelsTr" / f"{case}.mha")
        cropped = read_labels(folder / "labelsTr" / f"{case}.mha")
        image, _ = read_image(folder / "imagesTr" / f"{case}_0000.mha")
        assert cropped.grid == image.grid
        assert cropped.array.size < whole.array.size
        assert cropped.array.sum() == tumour_of(whole.array).sum()
        assert set(np.unique(cropped.array)) == {0, 1}
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "tumour": 1}


@pytest.mark.slow
def test_turns_the_cases_to_one_orientation_which_the_model_knows(tmp_path: Path, data: Path) -> None:
    stored = tmp_path / "stored"
    cases = list_cases(data, "tumour+pancreas")
    for case, image_code, label_code in zip(
        cases, ("LPS", "RAS", "SRA", "PIL"), ("LPS", "RAS", "LPS", "RAS"), strict=True
    ):
        image, _ = read_image(data / "imagesTr" / f"{case}_0000.mha")
        write_volume(image.turned_to(image_code), stored / "imagesTr" / f"{case}_0000.mha")
        label = read_labels(data / "labelsTr" / f"{case}.mha")
        write_volume(label.turned_to(label_code), stored / "labelsTr" / f"{case}.mha")
    expected = write_nnunet_dataset(recipe(tmp_path), data, tmp_path / "expected")
    folder = write_nnunet_dataset(recipe(tmp_path), stored, tmp_path / "raw")
    assert read_json(folder / "dataset.json")["orientation"] == "LPS"
    for path in sorted(path.relative_to(expected) for path in expected.rglob("*.mha")):
        found, wanted = read_labels(folder / path), read_labels(expected / path)
        np.testing.assert_array_equal(found.array, wanted.array)
        assert not found.grid.difference(wanted.grid)
    turned = msgspec.structs.replace(recipe(tmp_path), orientation="RAS")
    folder = write_nnunet_dataset(turned, stored, tmp_path / "ras")
    assert read_json(folder / "dataset.json")["orientation"] == "RAS"
    assert read_labels(folder / "labelsTr" / f"{cases[0]}.mha").grid.orientation == "RAS"


def test_refuses_a_label_without_its_image(tmp_path: Path) -> None:
    write_dataset(tmp_path, task=2, cases=1, seed=3, size="small")
    (tmp_path / "imagesTr" / "10003_0000.mha").unlink()
    with pytest.raises(InputError, match=r"10003_0000.mha: expected the image of label 10003.mha"):
        list_cases(tmp_path, "tumour")
    with pytest.raises(InputError, match="organsTr: expected label volumes"):
        list_cases(tmp_path, "organs")


@pytest.mark.parametrize(
    ("name", "expected"), [("tumour", TUMOUR), ("Pancreas", PANCREAS), ("tumor", TUMOUR), ("liver", None)]
)
def test_finds_a_label_by_its_name(name: str, expected: int | None) -> None:
    assert find_label({"background": 0, "Tumour": TUMOUR, "pancreas": PANCREAS}, name) == expected
