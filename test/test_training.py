"""The training command on a handful of tiny phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pantherseg.errors import InputError, RecipeError
from pantherseg.inference.backends import choose_backend
from pantherseg.inference.predictor import Predictor
from pantherseg.io.itk import read_image, read_labels
from pantherseg.models.find import open_model_folder
from pantherseg.packing.pack import as_bundle
from pantherseg.packing.sources.nnunet import PLANS, read_json
from pantherseg.phantom import write_dataset
from pantherseg.training.dataset import list_cases, write_nnunet_dataset
from pantherseg.training.recipe import TrainingRecipe, load_training_recipe

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
"""


def recipe(folder: Path, **settings: str) -> TrainingRecipe:
    defaults = {
        "labels": "tumour+pancreas",
        "network": 'network = "ResidualEncoderUNet"',
        "crop": "",
        "optimizer": "sgd",
    }
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(**{**defaults, "augmentation": "none", **settings}))
    return load_training_recipe(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, task=1, cases=4, seed=70, size="small", organs=True)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_train_then_fine_tune_then_predict(tmp_path: Path, data: Path) -> None:
    """nnU-Net's own warnings are not ours to mend, hence the filters."""
    from pantherseg.training.run import train

    record = train(recipe(tmp_path, optimizer="adamw"), data, tmp_path / "first", work=tmp_path / "w1")
    assert set(record["dice"]["mean"]) == {"tumour", "pancreas"}
    assert len(record["dice"]["cases"]) == 2, "one of two folds was trained, so half of the cases are scored"
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


def test_a_network_is_named_or_fine_tuned_not_both(tmp_path: Path, data: Path) -> None:
    from pantherseg.training.run import train

    with pytest.raises(RecipeError, match="network in the plan or a model to start from, found neither"):
        train(recipe(tmp_path, network=""), data, tmp_path / "model", work=tmp_path / "work")
    assert not (tmp_path / "model").exists()


def test_the_dataset_is_cropped_to_the_pancreas_and_reduced_to_the_tumour(tmp_path: Path, data: Path) -> None:
    folder = write_nnunet_dataset(
        recipe(tmp_path, labels="tumour", crop="crop_margin_mm = 20.0"), data, tmp_path / "raw"
    )
    for case in list_cases(data, "tumour"):
        whole = read_labels(data / "labelsTr" / f"{case}.mha")
        cropped = read_labels(folder / "labelsTr" / f"{case}.mha")
        image, _ = read_image(folder / "imagesTr" / f"{case}_0000.mha")
        assert cropped.grid == image.grid
        assert cropped.array.size < whole.array.size
        assert cropped.array.sum() == (whole.array == 1).sum()
        assert set(np.unique(cropped.array)) == {0, 1}
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "tumour": 1}


def test_a_label_without_its_image_is_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path, task=2, cases=1, seed=3, size="small")
    (tmp_path / "imagesTr" / "10003_0000.mha").unlink()
    with pytest.raises(InputError, match=r"10003_0000.mha: expected the image of label 10003.mha"):
        list_cases(tmp_path, "tumour")
    with pytest.raises(InputError, match="organsTr: expected label volumes"):
        list_cases(tmp_path, "organs")
