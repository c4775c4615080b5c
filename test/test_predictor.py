"""Our way of running nnU-Net's predictor against nnU-Net's own way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pantherseg.bundle import open_model
from pantherseg.errors import DeviceError, InputError, ModelError
from pantherseg.house import DEMO_WEIGHTS
from pantherseg.inference import Predictor, choose_device
from pantherseg.phantom import make_phantom
from pantherseg.volume import Box, Grid, Volume

DEMO = DEMO_WEIGHTS / "task1"


@pytest.fixture(scope="module")
def volume() -> Volume:
    """A phantom's pancreas and what lies around it, in a few tiles."""
    phantom = make_phantom(5001, task=1, size="small")
    box = Box.around(phantom.labels.array > 0)
    assert box is not None
    whole = Volume(phantom.image.array.astype(np.float32), phantom.image.grid)
    return whole.crop(box.expanded(30.0, whole.grid))


def copy_model(target: Path, *, folds: int, checkpoint: str, **changes: object) -> Path:
    """Copy the demo model with other folds, another name and other entries in its checkpoints."""
    target.mkdir()
    for name in ("plans.json", "dataset.json"):
        shutil.copy(DEMO / name, target / name)
    for fold in range(folds):
        content = torch.load(DEMO / f"fold_{fold % 5}" / "checkpoint_final.pth", weights_only=True)
        (target / f"fold_{fold}").mkdir()
        torch.save({**content, **changes}, target / f"fold_{fold}" / checkpoint)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("mirroring", [False, True])
def test_the_mask_is_nnunets_own(tmp_path: Path, volume: Volume, mirroring: bool) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = DEMO
    if mirroring:
        axes = {"inference_allowed_mirroring_axes": (2,)}
        folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth", **axes)
    reference = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=mirroring, allow_tqdm=False)
    reference.initialize_from_trained_model_folder(str(folder), None)
    expected = reference.predict_single_npy_array(volume.array[None], {"spacing": list(volume.grid.spacing)})
    logits = Predictor.load(open_model(folder), device="cpu", mirroring=mirroring).logits(volume)
    assert expected.any()
    np.testing.assert_array_equal(logits.argmax(axis=0), expected)


@pytest.mark.slow
def test_mirroring_runs_only_where_it_is_wanted(tmp_path: Path, volume: Volume) -> None:
    axes = {"inference_allowed_mirroring_axes": (2,)}
    model = open_model(copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth", **axes))
    plain = Predictor.load(model, device="cpu").logits(volume)
    mirrored = Predictor.load(model, device="cpu", mirroring=True).logits(volume)
    assert np.abs(plain - mirrored).max() > 0.1


@pytest.mark.slow
def test_six_folds_of_an_unknown_trainer_and_another_checkpoint(tmp_path: Path, volume: Volume) -> None:
    folder = copy_model(
        tmp_path / "m", folds=6, checkpoint="checkpoint_best.pth", trainer_name="nnUNetTrainer1e3_not_in_nnunet"
    )
    model = open_model(folder, checkpoint="checkpoint_best.pth")
    assert model.folds == tuple("012345")
    predictor = Predictor.load(model, device="cpu")
    assert len(predictor.network.list_of_parameters) == 6
    assert predictor.logits(volume).shape == (3, *volume.grid.shape)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth")
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][0] = 4
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(
        ModelError, match=r"fold_0/checkpoint_final.pth: expected the weights of the network in plans.json"
    ):
        Predictor.load(open_model(folder), device="cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [("network_class_name", "os.system"), ("conv_op", "subprocess.Popen"), ("nonlin", "builtins.exec")],
)
def test_plans_that_name_foreign_code_are_refused(tmp_path: Path, key: str, value: str) -> None:
    folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth")
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    (architecture if key == "network_class_name" else architecture["arch_kwargs"])[key] = value
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ModelError, match=value):
        Predictor.load(open_model(folder), device="cpu")


@pytest.mark.parametrize("broken", ["configurations", "image_reader_writer", "transpose_forward"])
def test_incomplete_plans_are_named(tmp_path: Path, broken: str, volume: Volume) -> None:
    folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth")
    plans = json.loads((folder / "plans.json").read_text())
    del plans[broken]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ModelError, match=broken):
        Predictor.load(open_model(folder), device="cpu")


def test_cuda_that_does_not_answer_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device answers here")
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="expected a CUDA device"):
        choose_device("cuda")


@pytest.mark.slow
def test_weights_that_give_nan_are_an_error(tmp_path: Path, volume: Volume) -> None:
    content = torch.load(DEMO / "fold_0" / "checkpoint_final.pth", weights_only=True)
    weights = {key: value * float("nan") for key, value in content["network_weights"].items()}
    folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth", network_weights=weights)
    predictor = Predictor.load(open_model(folder), device="cpu")
    with pytest.raises(ModelError, match="expected finite logits"):
        predictor.logits(volume)


def test_a_volume_of_which_nothing_is_left_at_the_models_spacing(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m", folds=1, checkpoint="checkpoint_final.pth")
    tiny = Volume(np.random.default_rng(0).normal(size=(8, 20, 20)).astype(np.float32), Grid((8, 20, 20), (0.01,) * 3))
    with pytest.raises(InputError, match="expected at least half a voxel a side"):
        Predictor.load(open_model(folder), device="cpu").logits(tiny)
