"""The four systems in their small forms, shortened: from phantoms to bundles by one command, and into the container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bench import systems

from conftest import run_python
from pantherseg.datasets.raw import RawDataset
from pantherseg.evaluation.metrics import METRICS, score_case
from pantherseg.io import read_labels, read_volume
from pantherseg.io.probabilities import read_probability
from pantherseg.labels import LABEL_MAPS, PANCREAS, TUMOUR, find_label
from pantherseg.models.bundle import open_bundle
from pantherseg.paths import DEMO_WEIGHTS, ROOT, task_recipe
from pantherseg.phantom import write_dataset
from pantherseg.recipe import load_recipe
from pantherseg.training.graph import TrainingFile, load_training_file
from pantherseg.volume import Volume
from shim.image import built

CASES = 2
# What is smaller than in the small forms, whose stages, plans and labels are kept. With this learning rate the networks
# are as good as untrained: a few steps of training would only find background, and nothing to make pseudo-labels of.
SHORTER = {
    "folds": "2",
    "epochs": "1",
    "iterations": "1",
    "validation_iterations": "1",
    "warm_up": "0",
    "warm_up_steps": "0",
    "learning_rate": "1e-6",
}


@dataclass(frozen=True)
class Trained:
    """A training that has ended, in the folder with its data. printed: what the command printed."""

    system: str
    folder: Path
    graph: TrainingFile
    printed: str

    @property
    def output(self) -> Path:
        return self.folder / systems.OUTPUT

    @property
    def bundles(self) -> Path:
        return self.output / "bundles"


def run(command: str, folder: Path) -> str:
    """Run a command in a folder, and return what it prints."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny networks are not computed faster by more
    result = subprocess.run(
        command, shell=True, cwd=folder, env=one_thread, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def train(system: str, folder: Path) -> Trained:
    """Run the commands of a small form on fewer phantoms and with a shorter schedule."""
    for task in systems.SYSTEMS[system]:
        text = systems.training_file(system, task).read_text()
        for key, value in SHORTER.items():
            text = re.sub(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        file = folder / systems.training_file(system, task).relative_to(ROOT)
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (folder / "weights").symlink_to(ROOT / "weights")
    for command in systems.commands(system):
        printed = run(re.sub(r"--cases \d+", f"--cases {CASES}", command), folder)
    return Trained(system, folder, load_training_file(file), printed)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """All systems, trained beside each other: most of the time goes into starting processes, one after the other."""
    names = list(systems.SYSTEMS)
    with ThreadPoolExecutor(2) as pool:
        trained = dict(zip(names, pool.map(train, names, map(tmp_path_factory.mktemp, names)), strict=True))
    shutil.copytree(DEMO_WEIGHTS / "localizer", trained["c"].bundles / "localizer")  # its Task 2 looks at crops
    return trained


@pytest.fixture
def trained(request: pytest.FixtureRequest, every: dict[str, Trained]) -> Trained:
    return every[request.param]


@pytest.fixture
def system_c(every: dict[str, Trained]) -> Trained:
    return every["c"]


EACH = pytest.mark.parametrize("trained", list(systems.SYSTEMS), indirect=True)
TASKS = [(system, task) for system, tasks in systems.SYSTEMS.items() for task in tasks]


@EACH
@pytest.mark.slow
def test_every_stage_ends_in_a_bundle_with_figures(trained: Trained) -> None:
    for name, stage in trained.graph.stage.items():
        bundle = open_bundle(trained.bundles / name)
        bundle.verify_all()
        assert bundle.folds == tuple(map(str, stage.used_folds))
        assert bundle.manifest.labels == LABEL_MAPS[stage.labels]
        record = json.loads((bundle.path / "training.json").read_text())
        validated = {case for fold in stage.used_folds for case in record["splits"]["validation"][fold]}
        assert record["dice"]["cases"].keys() == validated
        assert record["dice"]["mean"]
        assert record["dice"]["mean"].keys() <= LABEL_MAPS[stage.labels].keys()
        if "tumour" in bundle.manifest.labels:
            assert {"official", "corrected"} == record["metrics"]["totals"].keys()
            assert all(totals.keys() == METRICS.keys() for totals in record["metrics"]["totals"].values())
    assert f"fold.{name}.1" in trained.printed
    assert "as just measured" in trained.printed


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize(("trained", "task"), TASKS, indirect=["trained"])
def test_the_container_segments_with_the_bundles_as_the_command_does(
    task: int, trained: Trained, tmp_path: Path
) -> None:
    recipe, image = load_recipe(task_recipe(task)), built(f"task{task}-cpu")["Id"]
    (name,) = write_dataset(tmp_path / "unseen", task=task, cases=1, seed=9600, size="small")
    volume = tmp_path / "unseen" / "imagesTr" / f"{name}_0000.mha"
    job, output, masks = tmp_path / "job", tmp_path / "output", tmp_path / "masks"
    (job / "images" / recipe.sockets.input).mkdir(parents=True)
    shutil.copy(volume, job / "images" / recipe.sockets.input)
    output.mkdir()
    output.chmod(0o777)
    mounts = (f"{job}:/input:ro", f"{output}:/output", f"{trained.bundles}:/opt/ml/model:ro")
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    command = ["docker", "run", "--rm", "--network", "none", *volumes, image]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    (path,) = (output / "images" / recipe.sockets.output).glob("*.mha")
    mask = read_labels(path)
    assert mask.grid.difference(read_volume(volume).grid) == ""
    assert mask.array.any()
    options = ("--task", task, "--model", trained.bundles, "--device", "cpu")
    native = run_python("-m", "pantherseg", "predict", volume, masks, *options)
    assert native.returncode == 0, native.stderr
    (expected,) = masks.glob("*.mha")
    np.testing.assert_array_equal(mask.array, read_labels(expected).array)


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(system_c: Trained) -> None:
    printed = run(systems.commands("c")[-1], system_c.folder)
    total = len(re.findall(r"^[a-z]+\.\S+  +finished", printed, flags=re.MULTILINE))
    assert f"{total} of {total} steps are finished" in printed
    assert "to run" not in printed


@pytest.mark.slow
def test_pseudo_labelled_cases_are_trained_on_and_never_validated(system_c: Trained) -> None:
    raw = RawDataset.open(system_c.output / "raw" / "Dataset923_task1")
    assert {name: case.pseudo for name, case in raw.cases.items()} == {
        "10300_0001": False,
        "10301_0001": False,
        "10500_0001": True,
        "10501_0001": True,
    }
    splits = json.loads((raw.folder / "splits_final.json").read_text())
    assert all({"10500_0001", "10501_0001"} <= set(split["train"]) for split in splits)
    assert sorted(case for split in splits for case in split["val"]) == ["10300_0001", "10301_0001"]
    teacher = json.loads((system_c.output / "raw/Dataset921_teacher/splits_final.json").read_text())
    assert [split["val"] for split in teacher] == [split["val"] for split in splits], "the same folds in every stage"


@pytest.mark.slow
def test_keeps_probabilities_on_the_grids_of_whole_volumes_and_scores_them(system_c: Trained) -> None:
    record = json.loads((system_c.bundles / "task2" / "training.json").read_text())
    whole = RawDataset.open(system_c.output / "uncropped" / "Dataset924_task2")
    cropped = RawDataset.open(system_c.output / "raw" / "Dataset924_task2")
    for case in ("10400", "10401"):
        probability = read_probability(system_c.output / "probabilities" / "task2" / f"{case}.npz")
        reference = read_labels(system_c.folder / "t2" / "labelsTr" / f"{case}.mha")
        assert probability.grid.difference(reference.grid) == ""
        assert whole.cases[case].crop is None
        crop = cropped.cases[case].crop
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


@pytest.mark.slow
def test_a_bundle_says_where_it_comes_from(system_c: Trained) -> None:
    bundle = open_bundle(system_c.bundles / "task1")
    assert "training.json" in bundle.manifest.provenance.files_sha256
    record = json.loads((bundle.path / "training.json").read_text())
    assert record["data"]["sources"].keys() == {"t1", "round2"}
    assert (record["data"]["cases"], record["data"]["pseudo_labelled"]) == (4, 2)
    assert record["settings"]["start"] == "student"
    assert len(record["splits"]["sha256"]) == len(record["data"]["fingerprint"]) == 64
    assert [re.findall(r"'(\w+)'", why) for why in record["optimistic_because"]] == [
        ["round2", "student"],
        ["round1", "teacher"],
    ]
    assert record["not_for_clinical_use"] is True
    on_crops = json.loads((system_c.bundles / "task2" / "training.json").read_text())
    assert on_crops["outside"].keys() == {"localizer/2"}
    assert (system_c.output / "results/Dataset923_task1/PantherTrainer__pantherseg__3d_fullres/fold_0").is_dir()


@pytest.mark.parametrize(
    ("name", "expected"), [("tumour", TUMOUR), ("Pancreas", PANCREAS), ("tumor", TUMOUR), ("liver", None)]
)
def test_finds_a_label_by_its_name(name: str, expected: int | None) -> None:
    assert find_label({"background": 0, "Tumour": TUMOUR, "pancreas": PANCREAS}, name) == expected
