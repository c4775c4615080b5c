"""From phantoms to bundles by one command: a teacher, pseudo-labels, and a student that trains on crops."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pantherseg.cli.train import train
from pantherseg.datasets.raw import RawDataset
from pantherseg.evaluation.metrics import METRICS, score_case
from pantherseg.grand_challenge.entry_point import main
from pantherseg.io import read_labels, read_volume
from pantherseg.io.probabilities import read_probability
from pantherseg.labels import PANCREAS, TUMOUR, find_label
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.volume import Volume

TINY = """
schema = 2
name = "tiny"
[data.t1]
layout = "panther"
dataset_id = 1
[data.more]
layout = "panther-unlabelled"
dataset_id = 2
[stage.teacher]
data = ["t1"]
dataset_id = 3
folds = 2
[stage.teacher.plan]
network = "PlainConvUNet"
spacing = [5.0, 6.0, 6.0]
patch_size = [32, 32, 32]
memory_gb = 0.1
base_features = 4
max_features = 8
blocks_encoder = [1, 1, 1, 1, 1, 1, 1]
blocks_decoder = [1, 1, 1, 1, 1, 1]
[stage.teacher.schedule]
epochs = 1
iterations = 1
learning_rate = 1e-6  # as good as untrained: a few steps of training would only find background
validation_iterations = 1
augmentation = "none"
[pseudo.round1]
data = "more"
by = "teacher"
dataset_id = 4
drop_empty = false
[stage.task1]
data = ["t1", "round1"]
dataset_id = 5
labels = "tumour"
crop = { task = 2 }
start = "teacher"
folds = 2
plan = {}
[stage.task1.schedule]
epochs = 1
iterations = 1
validation_iterations = 1
augmentation = "none"
"""
# The filters are for warnings that nnU-Net causes.
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Trained:
    """The folder of a training, with its output in `out`. printed: what the command printed."""

    folder: Path
    printed: str

    @property
    def output(self) -> Path:
        return self.folder / "out"


def command(folder: Path, *more: str) -> str:
    """Run the command on the phantoms of a folder, and return what it prints."""
    data = [f"--data={name}={folder / name}" for name in ("t1", "more")]
    options = [str(folder / "tiny.toml"), "--output", str(folder / "out"), "--devices", "cpu"]
    result = CliRunner().invoke(train, [*options, *data, "--model", str(DEMO_WEIGHTS), *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.toml").write_text(TINY)
    write_dataset(folder / "t1", task=1, cases=2, seed=70, size="small")
    write_dataset(folder / "more", task=1, cases=1, seed=80, size="small")
    for path in (folder / "more" / "labelsTr").iterdir():
        path.unlink()
    return Trained(folder, command(folder))


@QUIET
@pytest.mark.slow
def test_one_command_leads_from_phantoms_to_bundles_that_the_container_segments_with(trained: Trained) -> None:
    bundle = open_bundle(trained.output / "bundles" / "task1")
    bundle.verify_all()
    assert (bundle.folds, bundle.manifest.labels) == (("0", "1"), {"background": 0, "tumour": 1})
    recipe = load_recipe(task_recipe(1))
    image = trained.folder / "more" / "imagesTr" / "10080_0001_0000.mha"
    job = trained.folder / "job"
    (job / "images" / recipe.sockets.input).mkdir(parents=True)
    shutil.copy(image, job / "images" / recipe.sockets.input)
    options = ["--input", str(job), "--output", str(trained.folder / "masks"), "--model"]
    assert main(task_recipe(1), [*options, str(trained.output / "bundles")]) == 0
    (mask,) = (trained.folder / "masks" / "images" / recipe.sockets.output).glob("*.mha")
    assert read_labels(mask).grid.difference(read_volume(image).grid) == ""
    assert "fold.task1.1" in trained.printed
    assert "as just measured" in trained.printed


@QUIET
@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(trained: Trained) -> None:
    printed = command(trained.folder)
    assert "17 of 17 steps are finished" in printed
    assert "to run" not in printed


@QUIET
@pytest.mark.slow
def test_pseudo_labelled_cases_are_trained_on_and_never_validated(trained: Trained) -> None:
    raw = RawDataset.open(trained.output / "raw" / "Dataset005_task1")
    assert {name: case.pseudo for name, case in raw.cases.items()} == {
        "10070_0001": False,
        "10071_0001": False,
        "10080_0001": True,
    }
    splits = json.loads((raw.folder / "splits_final.json").read_text())
    assert all("10080_0001" in split["train"] for split in splits)
    assert sorted(case for split in splits for case in split["val"]) == ["10070_0001", "10071_0001"]
    teacher = json.loads((trained.output / "raw/Dataset003_teacher/splits_final.json").read_text())
    assert [split["val"] for split in teacher] == [split["val"] for split in splits], "the same folds in every stage"


@QUIET
@pytest.mark.slow
def test_keeps_probabilities_on_the_grids_of_whole_volumes_and_scores_them(trained: Trained) -> None:
    record = json.loads((trained.output / "bundles/task1/training.json").read_text())
    whole = RawDataset.open(trained.output / "uncropped" / "Dataset005_task1")
    for case in ("10070_0001", "10071_0001"):
        probability = read_probability(trained.output / "probabilities" / "task1" / f"{case}.npz")
        reference = read_labels(trained.folder / "t1" / "labelsTr" / f"{case}.mha")
        assert probability.grid.difference(reference.grid) == ""
        assert whole.cases[case].crop is None
        crop = RawDataset.open(trained.output / "raw" / "Dataset005_task1").cases[case].crop
        assert crop is not None
        outside = np.ones(reference.grid.shape, bool)
        outside[crop.box.slices] = False
        assert not probability.array[outside].any()
        mask = Volume((probability.array > 0.5).astype(np.uint8), probability.grid)
        scores = score_case(mask, reference).official
        assert record["metrics"]["cases"][case]["official"]["dice"] == pytest.approx(scores.dice, abs=2e-3)
    by_reference = record["cropped_by_reference"]
    assert by_reference.keys() <= record["metrics"]["cases"].keys()
    left = len(record["metrics"]["cases"]) - len(by_reference)
    assert bool(record["metrics"]["totals_without_cropped_by_reference"]) == (left > 0)
    assert "'round1'" in record["optimistic_because"][0]
    for convention in ("official", "corrected"):
        assert record["metrics"]["totals"][convention].keys() == METRICS.keys()


@QUIET
@pytest.mark.slow
def test_a_bundle_says_where_it_comes_from(trained: Trained) -> None:
    bundle = open_bundle(trained.output / "bundles" / "task1")
    assert "training.json" in bundle.manifest.provenance.files_sha256
    record = json.loads((bundle.path / "training.json").read_text())
    assert record["data"]["sources"].keys() == {"t1", "round1"}
    assert (record["data"]["cases"], record["data"]["pseudo_labelled"]) == (3, 1)
    assert record["settings"]["start"] == "teacher"
    assert len(record["splits"]["sha256"]) == len(record["data"]["fingerprint"]) == 64
    assert record["dice"]["cases"].keys() == {"10070_0001", "10071_0001"}
    assert record["outside"].keys() == {"localizer/2"}
    assert record["not_for_clinical_use"] is True
    assert (trained.output / "results/Dataset005_task1/PantherTrainer__pantherseg__3d_fullres/fold_0").is_dir()


@pytest.mark.parametrize(
    ("name", "expected"), [("tumour", TUMOUR), ("Pancreas", PANCREAS), ("tumor", TUMOUR), ("liver", None)]
)
def test_finds_a_label_by_its_name(name: str, expected: int | None) -> None:
    assert find_label({"background": 0, "Tumour": TUMOUR, "pancreas": PANCREAS}, name) == expected
