"""Predictors mirror, average folds, and refuse models and volumes that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import ChangedModel
from pantherseg.errors import InputError, ModelError
from pantherseg.inference.backends import Backend
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.backends.torch_backend import TorchBackend
from pantherseg.inference.predictor import Predictor
from pantherseg.model_sources.nnunet import PLANS
from pantherseg.models.bundle import Bundle
from pantherseg.models.find import ModelFolder, open_model
from pantherseg.packing.pack import as_bundle
from pantherseg.volume import Grid, Volume


@pytest.fixture(params=["openvino"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A backend on the CPU: OpenVINO, or what an indirect parameter names."""
    return OpenVinoBackend() if request.param == "openvino" else TorchBackend("cpu")


@pytest.mark.slow
def test_mirrors_only_if_asked_to(changed_model: ChangedModel, backend: Backend, pancreas: Volume) -> None:
    bundle = as_bundle(open_model(changed_model(inference_allowed_mirroring_axes=(2,))))
    plain, mirrored = (Predictor(bundle, backend, mirroring=mirroring) for mirroring in (False, True))
    prepared = plain.prepare(pancreas)
    assert np.abs(plain.logits(prepared).values - mirrored.logits(prepared).values).max() > 0.1


@pytest.mark.slow
def test_runs_six_folds_of_an_unknown_trainer_and_another_checkpoint(
    changed_model: ChangedModel, backend: Backend, pancreas: Volume
) -> None:
    folder = changed_model(folds=6, checkpoint="checkpoint_best.pth", trainer_name="nnUNetTrainer1e3_not_in_nnunet")
    model = open_model(folder, checkpoint="checkpoint_best.pth")
    assert model.folds == tuple("012345")
    predictor = Predictor(as_bundle(model), backend)
    assert predictor.bundle.folds == tuple("012345")
    logits = predictor.predict(pancreas)
    assert (logits.classes, logits.shape) == (3, pancreas.grid.shape)
    assert logits.slab(0, 2).shape == (3, 2, *pancreas.grid.shape[1:])


@pytest.mark.slow
def test_logits_are_the_mean_over_folds(demo: Bundle, backend: Backend, pancreas: Volume) -> None:
    folds = [Predictor(replace(demo, folds=(fold,)), backend) for fold in demo.folds]
    prepared = folds[0].prepare(pancreas)
    first, second = (predictor.logits(prepared).values for predictor in folds)
    both = Predictor(demo, backend).logits(prepared).values
    np.testing.assert_array_equal(both, (first + second) / np.float16(2))


@pytest.mark.fault("models", "plans name a network {id}", "an error that names it, and no code runs")
@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        pytest.param(
            *(
                ("arch_kwargs", "features_per_stage", 0),
                4,
                "fold_0/checkpoint_final.pth: expected the weights of the desc",
            ),
            id="that is not the one of the checkpoint",
            marks=pytest.mark.slow,
        ),
        pytest.param(("network_class_name",), "os.system", "os.system", id="that is a function of the system"),
        pytest.param(("arch_kwargs", "conv_op"), "subprocess.Popen", "subprocess.Popen", id="with a command as layer"),
        pytest.param(("arch_kwargs", "nonlin"), "builtins.exec", "builtins.exec", id="with `exec` as layer"),
    ],
)
def test_refuses_plans_of_another_network_or_code(
    changed_model: ChangedModel, keys: tuple[str | int, ...], value: object, message: str
) -> None:
    folder = changed_model()
    plans = json.loads((folder / PLANS).read_text())
    entry = plans["configurations"]["3d_fullres"]["architecture"]
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    (folder / PLANS).write_text(json.dumps(plans))
    with pytest.raises(ModelError, match=message):
        as_bundle(open_model(folder))


@pytest.mark.parametrize("missing", ["configurations", "image_reader_writer", "transpose_forward"])
def test_names_the_missing_part_of_plans(changed_model: ChangedModel, missing: str) -> None:
    folder = changed_model()
    plans = json.loads((folder / PLANS).read_text())
    del plans[missing]
    (folder / PLANS).write_text(json.dumps(plans))
    with pytest.raises(ModelError, match=missing):
        as_bundle(open_model(folder))


@pytest.mark.fault("models", "a network computes NaN, with {backend}", "an error that names the fold")
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "torch"], indirect=True)
def test_refuses_weights_that_give_nan(
    demo_folder: ModelFolder, changed_model: ChangedModel, backend: Backend, pancreas: Volume
) -> None:
    content = torch.load(demo_folder.checkpoint_path("0"), weights_only=True)
    weights = {key: value * 1e30 for key, value in content["network_weights"].items()}
    predictor = Predictor(as_bundle(open_model(changed_model(network_weights=weights))), backend)
    with pytest.raises(ModelError, match=r"fold_0\.safetensors: the network computed logits that are NaN"):
        predictor.predict(pancreas)


@pytest.mark.fault("inputs", "a volume of 0.08x0.2x0.2 mm is smaller than one voxel of the model", "labels on its grid")
def test_predicts_a_volume_smaller_than_a_voxel_of_the_model(demo: Bundle, backend: Backend) -> None:
    tiny = Volume(np.random.default_rng(0).normal(size=(8, 20, 20)).astype(np.float32), Grid((8, 20, 20), (0.01,) * 3))
    predictor = Predictor(demo, backend)
    assert predictor.prepare(tiny).data.shape == (1, 1, 1, 1)
    logits = predictor.predict(tiny)
    assert (logits.labels().shape, logits.events) == ((8, 20, 20), ())


@pytest.mark.fault(
    "inputs",
    "a volume of 18 m has too many voxels at the model's spacing",
    "an error that names the largest number",
)
def test_refuses_a_volume_too_large_at_the_models_spacing(demo: Bundle, backend: Backend) -> None:
    vast = Volume(np.ones((8, 20, 20), np.float32), Grid((8, 20, 20), (900.0,) * 3))
    with pytest.raises(InputError, match="at most 268435456 voxels, 10000 along each axis, at the model's spacing"):
        Predictor(demo, backend).prepare(vast)
