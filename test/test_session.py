"""Sessions: the models of a recipe, loaded once for any number of cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pantherseg import ensemble
from pantherseg.errors import ModelError
from pantherseg.events import Event, EventCode
from pantherseg.fast import Fast
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.pipeline import segment
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume


def test_loads_the_models_once_for_several_cases(one_fold: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    load_ensemble = ensemble.load_ensemble
    loaded = []

    def counted(*arguments: Any, **options: Any) -> ensemble.Ensemble:
        loaded.append(load_ensemble(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(ensemble, "load_ensemble", counted)
    session = Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)
    assert loaded == [], "models are not loaded before they are needed"
    volume = Volume(np.ones((8, 16, 16), np.float32), Grid((8, 16, 16), (4.0, 3.0, 3.0)))
    first, second = (segment(volume, session).mask.array for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert session.load() is session.load() is loaded[0]
    assert len(loaded) == 1


def test_every_case_reports_the_events_of_loading_the_models_before_its_own(
    one_fold: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_ensemble = ensemble.load_ensemble
    about_models = Event(EventCode.FOLD_LEFT_OUT, "about the models")
    of_case = Event(EventCode.CONSTANT_IMAGE, "about the volume")
    monkeypatch.setattr(
        ensemble,
        "load_ensemble",
        lambda *args, **options: replace(load_ensemble(*args, **options), events=(about_models,)),
    )
    session = Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)
    volume = Volume(np.ones((8, 16, 16), np.float32), Grid((8, 16, 16), (4.0, 3.0, 3.0)))
    for _ in range(2):
        assert segment(volume, session, events=(of_case,)).events[:2] == (about_models, of_case)


@pytest.mark.parametrize("many_cases", [False, True])
def test_keeps_networks_only_for_many_cases(one_fold: Recipe, many_cases: bool) -> None:
    loaded = Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=many_cases).load()
    assert [predictor.keep_networks for predictor in loaded.predictors] == [many_cases]


@pytest.mark.parametrize("allowed", [False, True])
def test_every_predictor_gets_the_recipes_permission_for_bfloat16(allowed: bool) -> None:
    recipe = msgspec.structs.replace(load_recipe(task_recipe(2)), allow_bfloat16=allowed)
    predictors = Session(recipe, DEMO_WEIGHTS, device="cpu").load().predictors
    assert [predictor.allow_bfloat16 for predictor in predictors] == [allowed, allowed]


def test_models_that_cannot_be_loaded_are_an_error_each_time(one_fold: Recipe, tmp_path: Path) -> None:
    session = Session(one_fold, tmp_path / "missing", device="cpu")
    for _ in range(2):
        with pytest.raises(ModelError, match="missing"):
            session.load()


def test_goes_over_to_the_cpu_with_the_same_models() -> None:
    session = Session(load_recipe(task_recipe(2)), DEMO_WEIGHTS, device="cpu")
    before = session.load()
    reason = Event(EventCode.DEVICE_FAILED, "the device failed; the CPU was used")
    session.use_cpu(reason)
    after = session.load()
    assert after.events == (*before.events, reason)
    assert after is session.load()
    assert after.backend is not before.backend
    assert after.backend.device == "cpu"
    assert all(predictor.backend is after.backend for predictor in after.predictors)
    assert [predictor.bundle for predictor in after.predictors] == [predictor.bundle for predictor in before.predictors]


def test_members_leave_out_what_the_recipe_says() -> None:
    fast = Fast(left_out_share=0.1)
    recipe = msgspec.structs.replace(load_recipe(task_recipe(2)), fast=fast)
    ensemble = Session(recipe, DEMO_WEIGHTS, device="cpu").load()
    assert [member.fast for member in ensemble.members] == [fast]
    assert ensemble.localizer is not None
    assert ensemble.localizer.compared_label is None, "so the localizer runs all tiles"
