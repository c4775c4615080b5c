"""A model that calls the recipe's tumour label pancreas is used, but the user is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from conftest import ChangedModel, CopiedBundle
from pantherseg.cli import main
from pantherseg.ensemble import load_ensemble
from pantherseg.events import Event, EventCode
from pantherseg.grand_challenge.check_model import check_model
from pantherseg.labels import tumour_label_warning
from pantherseg.model_sources.nnunet import DATASET
from pantherseg.paths import task_recipe
from pantherseg.pipeline import segment
from pantherseg.recipe import Member, Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

# The order of the Medical Segmentation Decathlon.
DECATHLON = {"background": 0, "pancreas": 1, "cancer": 2}
CALLED_PANCREAS = (
    "label 1, the recipe's tumour_label, is called pancreas, and label 2 cancer: set tumour_label = 2 in the recipe"
)
TASK1 = load_recipe(task_recipe(1))
UNCLEAR = "label 1, the recipe's tumour_label, is called pancreas: set tumour_label in the recipe to the number of the "


@pytest.mark.parametrize(
    ("labels", "tumour_label", "expected"),
    [
        (DECATHLON, 1, CALLED_PANCREAS),
        (DECATHLON, 2, ""),
        ({"background": 0, "Pancreas": 1, "Tumor": 2}, 1, CALLED_PANCREAS.replace("cancer", "Tumor")),
        ({"background": 0, "pancreas": 1, "PDAC lesion": 2}, 1, CALLED_PANCREAS.replace("cancer", "PDAC lesion")),
        ({"background": 0, "pancreas": 1, "PDAC": 2}, 1, f"{UNCLEAR}tumour"),
        ({"background": 0, "pancreas": 1, "primary tumour": 2, "liver lesion": 3}, 1, f"{UNCLEAR}tumour"),
        ({"background": 0, "tumour": 1, "pancreas": 2}, 1, ""),
        (
            {"background": 0, "tumour": 1, "pancreas": 2},
            2,
            "label 2, the recipe's tumour_label, is called pancreas, and label 1 tumour: "
            "set tumour_label = 1 in the recipe",
        ),
        ({"background": 0, "lesion of the pancreas": 1}, 1, ""),
    ],
)
def test_warns_of_a_tumour_label_that_the_model_calls_pancreas(
    labels: dict[str, int], tumour_label: int, expected: str
) -> None:
    assert tumour_label_warning(labels, tumour_label) == expected


@pytest.mark.fault(
    "models",
    "dataset.json calls the number of the tumour pancreas, as in the Medical Segmentation Decathlon",
    "the label of the recipe, and an event that names the model and the label to set",
)
@pytest.mark.slow
def test_an_event_tells_that_the_tumour_label_is_called_pancreas(copied_bundle: CopiedBundle) -> None:
    copied_bundle.change(labels=DECATHLON)
    root = copied_bundle.path.parent
    volume = Volume(np.ones((8, 16, 16), np.float32), Grid((8, 16, 16), (4.0, 3.0, 3.0)))
    twice = msgspec.structs.replace(TASK1, members=[Member(model="task1", folds=[0]), Member(model="task1", folds=[1])])
    event = Event(EventCode.TUMOUR_LABEL_NAMED_PANCREAS, f"{copied_bundle.path}: {CALLED_PANCREAS}")
    assert segment(volume, Session(twice, root, device="cpu")).events[0] == event
    assert load_ensemble(twice, root, device="cpu").events == (event,)
    other = msgspec.structs.replace(twice, tumour_label=2)
    assert load_ensemble(other, root, device="cpu").events == ()


def test_packing_warns_of_a_tumour_label_that_is_called_pancreas(
    copied_bundle: CopiedBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied_bundle.change(labels=DECATHLON)
    target = tmp_path / "bundles"
    with caplog.at_level(logging.WARNING):
        result = CliRunner().invoke(main, ["pack", str(copied_bundle.path.parent), str(target), "--task", "1"])
    assert result.exit_code == 0
    assert f"{target / 'task1'}: {CALLED_PANCREAS}" in result.stderr + caplog.text
    assert (target / "task1" / "manifest.json").is_file()


def remark(root: Path, recipe: Recipe = TASK1) -> str:
    """Return what `check model` finds about the member, which must not be a broken rule."""
    verdict = check_model(root, recipe)[-1]
    assert (verdict.rule, verdict.kept) == ("task1 would run", True)
    return verdict.found


def test_check_model_remarks_on_a_tumour_label_that_is_called_pancreas(
    copied_bundle: CopiedBundle, changed_model: ChangedModel, tmp_path: Path
) -> None:
    root = copied_bundle.path.parent
    assert "pancreas" not in remark(root)
    copied_bundle.change(labels=DECATHLON)
    assert remark(root).endswith(f"match their checksums; but {CALLED_PANCREAS}")
    folder = changed_model(folds=5)
    content = json.loads((folder / DATASET).read_text())
    (folder / DATASET).write_text(json.dumps(content | {"labels": DECATHLON}))
    (tmp_path / "models").mkdir()
    folder.rename(tmp_path / "models" / "task1")
    assert remark(tmp_path / "models").endswith(f"; but {CALLED_PANCREAS}")
