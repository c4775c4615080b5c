"""What is said about a stage: on which cases its figures are optimistic, and from which revision it comes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pantherseg.datasets.crops import crop_dataset
from pantherseg.datasets.raw import RawCase, RawDataset, new_dataset
from pantherseg.events import Event, EventCode
from pantherseg.localize import Located
from pantherseg.paths import task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.training.graph import load_training_file
from pantherseg.training.out_of_fold import cropped_by_reference, dice_by_label
from pantherseg.training.provenance import optimistic_because, revision
from pantherseg.volume import Box, Grid, Volume
from test_training_graph import NOISY_STUDENT


def test_lists_the_cases_that_are_cropped_around_their_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid((30, 30, 30), (5.0, 5.0, 5.0))
    image, label = Volume(np.indices(grid.shape)[0].astype(np.float32), grid), np.zeros(grid.shape, np.uint8)
    label[10:12, 10:12, 10:12] = 1
    with new_dataset(
        tmp_path, 1, "whole", labels={"background": 0, "tumour": 1}, orientation="LPS", file_ending=".mha"
    ) as new:
        for case in ("found", "missed"):
            new.add(case, RawCase(patient=case), image, Volume(label, grid))
    nothing = Located(None, (Event(EventCode.NO_PANCREAS_FOUND, "no pancreas"),))
    boxes = iter([Located(Box((5, 5, 5), (20, 20, 20)), ()), nothing])
    monkeypatch.setattr("pantherseg.datasets.crops.localize", lambda *_: next(boxes))
    settings = load_recipe(task_recipe(2)).localizer
    assert settings is not None
    source = RawDataset.open(tmp_path / "Dataset001_whole")
    cropped = crop_dataset(source, tmp_path, 2, "cropped", localizer=cast(Any, None), settings=settings)
    assert cropped_by_reference(cropped).keys() == {"missed"}


def test_says_why_figures_are_optimistic(tmp_path: Path) -> None:
    (tmp_path / "training.toml").write_text(NOISY_STUDENT)
    graph = load_training_file(tmp_path / "training.toml")
    assert optimistic_because(graph, "teacher", []) == []
    (reason,) = optimistic_because(graph, "student", [])
    assert reason.startswith("the labels of 'round1' were made by all folds of 'teacher', each of which was trained on")
    assert len(optimistic_because(graph, "student", ["case"])) == 2


def test_keeps_dots_in_the_names_of_cases() -> None:
    case = {"prediction_file": "/validation/1.2.840.nii.gz", "metrics": {"1": {"Dice": 0.5}, "2": {"Dice": np.nan}}}
    found = dice_by_label({"metric_per_case": [case]}, "tumour+pancreas")
    assert found == {"1.2.840": {"tumour": 0.5, "pancreas": None}}


def test_the_revision_is_that_of_its_own_repository(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("1")
    git("add", "-A")
    git("commit", "-qm", "first")
    assert revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "inner" / "file").write_text("2")
    assert revision(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    assert revision(tmp_path / "inner") == "unknown", "it lies in a repository of something else"
