"""Training and resuming a fold with Lightning, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import flip_a_bit, one_line_about, run_python
from pantherseg.errors import InputError, ModelError, OutputError, PantherSegError
from pantherseg.model_sources.lightning_plans import PLANS
from pantherseg.training.workers import WORKERS
from patch_training import LABELS, settings, write_raw

pytestmark = pytest.mark.slow

FINAL, BEST, LATEST = "checkpoint_final.safetensors", "checkpoint_best.safetensors", "checkpoint_latest.ckpt"
# Both kinds of learning rates, and early stopping, which ends this training before its last epoch.
POLY = settings(warm_up_steps=2, clip_gradient=1.0, learning_rate=1e-2)
PLATEAU = settings(decay="plateau", plateau_patience=0, early_stopping=2, learning_rate=1e-2, epochs=6)
WIDER = settings({"network": {"family": "attention_unet", "base_features": 4, "depth": 1, "squeeze": 2}})


@pytest.fixture(scope="module")
def patches() -> SimpleNamespace:
    """The modules under test: importing Lightning takes seconds, which runs without these tests are spared."""
    from pantherseg.training.patches import callbacks, fold, folders, preparing

    return SimpleNamespace(**{m.__name__.rpartition(".")[2]: m for m in (callbacks, fold, folders, preparing)})


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, patches: SimpleNamespace) -> Any:
    root = tmp_path_factory.mktemp("planned")
    folders = patches.folders.PatchFolders(write_raw(root), root)
    patches.preparing.prepare_cases(folders, POLY)
    return folders


@dataclass
class Site:
    """A prepared data set in a folder of the test's own."""

    folders: Any
    patches: SimpleNamespace

    def train(self, wanted: Any = POLY, **options: Any) -> Path:
        folder: Path = self.patches.fold.train_fold(self.folders, wanted, **({"seed": 7, "fold": 0} | options))
        return folder

    @property
    def fold(self) -> Path:
        return self.folders.fold(0)  # type: ignore[no-any-return]

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, epoch: int, wanted: Any = POLY) -> None:
        """Train until an epoch, counted from 0, is about to be noted."""
        history = self.patches.callbacks.History
        original = history.on_train_epoch_end

        def interrupted(itself: Any, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == epoch:
                raise SystemError("interrupted")
            original(itself, trainer, module)

        with monkeypatch.context() as patched:
            patched.setattr(history, "on_train_epoch_end", interrupted)
            with pytest.raises(SystemError, match="interrupted"):
                self.train(wanted)


def copy_of(planned: Any, patches: SimpleNamespace, root: Path) -> Site:
    shutil.copytree(planned.preprocessed, root / "preprocessed" / planned.name)
    return Site(patches.folders.PatchFolders(planned.dataset, root), patches)


@pytest.fixture
def site(planned: Any, patches: SimpleNamespace, tmp_path: Path) -> Site:
    return copy_of(planned, patches, tmp_path)


@pytest.fixture(scope="module")
def trained(planned: Any, patches: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folds that were trained without an interruption."""
    found = {}
    for name, wanted in (("poly", POLY), ("plateau", PLATEAU)):
        found[name] = copy_of(planned, patches, tmp_path_factory.mktemp(name)).train(wanted)
    return found


def rows(fold: Path) -> list[dict[str, float]]:
    every = json.loads((fold / "history.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in every]


def assert_same(found: Path, expected: Path) -> None:
    for name in (FINAL, BEST):
        weights, others = load_file(found / name), load_file(expected / name)
        assert weights.keys() == others.keys()
        for key, value in weights.items():
            assert torch.equal(value, others[key]), f"{name}: {key}"
    assert rows(found) == rows(expected)


def test_a_fold_has_what_packing_and_provenance_read(trained: dict[str, Path], patches: SimpleNamespace) -> None:
    fold = trained["poly"]
    assert {path.name for path in fold.iterdir()} == {FINAL, BEST, "history.json", "tensorboard"}
    assert (fold.parent / PLANS).is_file()
    epochs = rows(fold)
    assert len(epochs) == 4
    assert epochs[0].keys() == {"loss", "validation_loss", "validation_dice", "learning_rate"}
    assert np.isfinite([list(row.values()) for row in epochs]).all()
    # After the steps of an epoch, the learning rate is that of the next step.
    assert [row["learning_rate"] for row in epochs] == pytest.approx(
        [POLY.schedule.learning_rate_at(step) for step in (3, 6, 9, 12)]
    )
    assert patches.folders.read_seconds(fold / FINAL) > 0
    first, last = load_file(fold / BEST), load_file(fold / FINAL)
    best = max(range(4), key=lambda epoch: epochs[epoch]["validation_dice"])
    assert all(torch.equal(first[key], last[key]) for key in first) == (best == 3)


def test_the_learning_rate_falls_on_a_plateau_and_the_training_ends_early(trained: dict[str, Path]) -> None:
    epochs = rows(trained["plateau"])
    best, waited, rate = -1.0, 0, 1e-2
    for number, row in enumerate(epochs):
        better = row["validation_dice"] > best * (1 + 1e-4) or number == 0
        best, waited = (row["validation_dice"], 0) if row["validation_dice"] > best else (best, waited + 1)
        rate *= 1 if better else 0.1
        assert row["learning_rate"] == pytest.approx(rate)
    assert len(epochs) == 6 or waited == 2


@pytest.mark.parametrize(("schedule", "epoch"), [("poly", 0), ("poly", 1), ("poly", 3), ("plateau", 0), ("plateau", 1)])
@pytest.mark.fault(
    "training", "training by Lightning is interrupted in an epoch", "the weights and figures of an uninterrupted one"
)
def test_an_interrupted_training_ends_like_another(
    site: Site, trained: dict[str, Path], schedule: str, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"poly": POLY, "plateau": PLATEAU}[schedule]
    site.interrupt(monkeypatch, epoch, wanted)
    assert not (site.fold / FINAL).exists()
    assert_same(site.train(wanted), trained[schedule])
    assert not (site.fold / LATEST).exists()


# Runs in another process, with the folders and the settings as arguments: dies in the third epoch, or with half of the
# second checkpoint on the disk.
KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec
from fsspec.implementations.local import LocalFileOpener
from pantherseg.tables import decode_registered
from pantherseg.training.lightning_recipe import LightningSettings
from pantherseg.training.patches.fold import train_fold
from pantherseg.training.patches.folders import PatchFolders
from pantherseg.training.patches.module import PatchModule

raw, root, settings, moment = sys.argv[1:]
settings = msgspec.convert(msgspec.json.decode(settings), LightningSettings, dec_hook=decode_registered)
steps = files = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def training_step(self, *batch, inner=PatchModule.training_step):
    global steps
    steps += 1
    if moment == "step" and steps == 2 * settings.schedule.iterations + 2:
        die()
    return inner(self, *batch)

def write(self, content, inner=LocalFileOpener.write):
    global files
    files += 1
    if moment == "save" and files == 2:
        inner(self, content[: len(content) // 2])
        self.f.flush()
        die()
    return inner(self, content)

PatchModule.training_step, LocalFileOpener.write = training_step, write
train_fold(PatchFolders(Path(raw), Path(root)), settings, seed=7, fold=0)
"""


@pytest.mark.fault(
    "training",
    "the process of a training by Lightning is killed in an epoch or in writing a checkpoint",
    "the same weights after resuming",
)
@pytest.mark.parametrize(("moment", "epochs"), [("step", 2), ("save", 1)])
def test_a_killed_training_ends_like_another(
    site: Site, trained: dict[str, Path], moment: str, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = msgspec.json.encode(POLY).decode()
    killed = run_python("-c", KILLED, site.folders.dataset, site.folders.root, encoded, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (site.fold / FINAL).exists()
    with caplog.at_level(logging.INFO):
        assert_same(site.train(), trained["poly"])
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if ", loss " in line]) == POLY.schedule.epochs - epochs
    assert {path.name for path in site.fold.iterdir()} == {FINAL, BEST, "history.json", "tensorboard"}


@pytest.mark.fault(
    "training",
    "training by Lightning is interrupted after its last epoch",
    "nothing is trained again, also where it ended early",
)
@pytest.mark.parametrize("schedule", ["poly", "plateau"])
def test_a_training_that_lacks_the_last_file_trains_no_further_epoch(
    site: Site, trained: dict[str, Path], schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"poly": POLY, "plateau": PLATEAU}[schedule]

    def fail(*arguments: Any) -> None:
        raise SystemError("interrupted")

    with monkeypatch.context() as patched:
        patched.setattr(site.patches.fold, "write_text", fail)
        with pytest.raises(SystemError):
            site.train(wanted)
    steps: list[int] = []
    module = site.patches.fold.PatchModule
    monkeypatch.setattr(module, "training_step", lambda *arguments: steps.append(1))
    assert_same(site.train(wanted), trained[schedule])
    assert not steps


def test_a_finished_fold_is_left_as_it_is(site: Site) -> None:
    site.train()
    before = {path: path.stat().st_mtime_ns for path in site.fold.rglob("*")}
    site.train()
    assert {path: path.stat().st_mtime_ns for path in site.fold.rglob("*")} == before


def test_folds_and_seeds_have_weights_of_their_own(site: Site, trained: dict[str, Path]) -> None:
    other = load_file(site.train(fold=1) / FINAL)
    assert not all(torch.equal(value, other[key]) for key, value in load_file(trained["poly"] / FINAL).items())


@pytest.mark.fault(
    "training",
    "a checkpoint of Lightning is of another architecture",
    "an error that names the file and the tensors that do not fit",
)
def test_refuses_to_resume_another_architecture(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.interrupt(monkeypatch, 2)
    with pytest.raises(
        ModelError, match=r"the tensors of the network to train, found \d+ of another shape: network\."
    ) as caught:
        site.train(WIDER)
    assert "architecture" in one_line_about(site.fold / LATEST, caught.value)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"augmentation": "none", "mirroring": False}, "augmentation, mirroring, mirroring_axes"),
        ({"loss": {"dice": 0.5}}, "loss"),
    ],
)
@pytest.mark.fault("training", "a checkpoint of Lightning has other settings", "an error that names the settings")
def test_refuses_to_resume_with_other_settings(
    site: Site, changed: dict[str, Any], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.interrupt(monkeypatch, 2)
    other = settings(**({"warm_up_steps": 2, "clip_gradient": 1.0, "learning_rate": 1e-2} | changed))
    with pytest.raises(OutputError, match=f"found one that differs in {names}; move it away") as caught:
        site.train(other)
    one_line_about(site.fold, caught.value)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("damage", ["cut off", "a changed bit", "code", "another file", "another version"])
@pytest.mark.fault(
    "training", "a checkpoint of Lightning to resume from: {damage}", "an error that names the file, and no code runs"
)
def test_refuses_a_damaged_checkpoint(site: Site, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site.interrupt(monkeypatch, 2)
    latest = site.fold / LATEST
    content = torch.load(latest, weights_only=True)
    if damage == "cut off":
        latest.write_bytes(latest.read_bytes()[:-100])
    elif damage == "a changed bit":
        flip_a_bit(latest)
    elif damage == "code":
        torch.save({**content, "evil": Evil()}, latest)
    elif damage == "another file":
        torch.save({"state_dict": {}}, latest)
    else:
        torch.save({**content, "pantherseg": {**content["pantherseg"], "schema": 99}}, latest)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code ran"))
    with pytest.raises(PantherSegError) as caught:
        site.train()
    where = site.fold if damage == "another version" else latest
    text = one_line_about(where, caught.value)
    expected = "differs in schema" if damage == "another version" else "expected a checkpoint to resume from"
    assert expected in text
    if damage in ("cut off", "a changed bit", "another file"):
        assert text.endswith("; move fold_0 away to train from the beginning")


@pytest.mark.fault(
    "training", "the final checkpoint of Lightning is of another network", "an error that names the tensors"
)
def test_refuses_a_final_checkpoint_of_another_network(site: Site) -> None:
    site.train()
    with pytest.raises(ModelError, match=r"of another shape: ") as caught:
        site.train(WIDER)
    one_line_about(site.fold / FINAL, caught.value)


def test_starts_from_a_model_of_other_labels_without_its_heads(
    site: Site, patches: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = site.train() / FINAL
    labels = {name: LABELS[name] for name in ("background", "tumour")}
    other = Site(patches.folders.PatchFolders(write_raw(tmp_path / "tumour", labels), tmp_path / "tumour"), patches)
    for path in (other.folders.dataset / "labelsTr").iterdir():
        _without_pancreas(path)
    patches.preparing.prepare_cases(other.folders, POLY)
    caplog.set_level(logging.INFO)
    fold = other.train(settings(epochs=1, iterations=1, learning_rate=1e-9), start=start)
    record = json.loads((fold / "start.json").read_text())
    assert record["checkpoint"] == str(start)
    heads = {skipped["name"] for skipped in record["skipped"]}
    assert heads == {"head.weight", "head.bias"}
    weights, before = load_file(fold / FINAL), load_file(start)
    for name in weights.keys() - heads:
        assert torch.allclose(weights[name], before[name], atol=1e-6), name
    shutil.rmtree(fold)
    with pytest.raises(
        ModelError, match=r"expected weights of the network to train .* start from a model with the same"
    ):
        other.train(WIDER, start=start)


def _without_pancreas(path: Path) -> None:
    from pantherseg.io import read_labels, write_volume
    from pantherseg.volume import Volume

    label = read_labels(path)
    write_volume(Volume((label.array == 1).astype(np.uint8), label.grid), path)


@pytest.mark.fault("training", "the loss is not a number", "an error that says in which epoch, and what to change")
def test_says_so_where_the_loss_is_no_number(site: Site) -> None:
    with pytest.raises(PantherSegError, match=r"fold_0: the loss of epoch \d is nan; lower learning_rate"):
        site.train(settings(learning_rate=1e30, epochs=4))


@pytest.mark.fault("training", "the data set was not prepared for Lightning", "an error that names the folder")
def test_needs_a_prepared_data_set(site: Site) -> None:
    (site.folders.preprocessed / "splits_final.json").unlink()
    with pytest.raises(InputError, match="expected a preprocessed data set, found none, or an incomplete one"):
        site.train()


@pytest.mark.parametrize("name", ["image.npy", "labels.npy", "voxels.npz"])
@pytest.mark.parametrize("damage", ["missing", "empty", "halved"])
@pytest.mark.fault(
    "training", "a file of a case prepared for Lightning is {damage}", "an error that names it and how to make it again"
)
def test_needs_every_file_of_a_prepared_case_to_be_complete(site: Site, name: str, damage: str) -> None:
    path = min(site.folders.preprocessed.glob(f"*.{name}"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "halved" else 0])
    with pytest.raises(InputError, match="expected a file of a preprocessed case, found ") as caught:
        site.train()
    text = one_line_about(path, caught.value)
    assert text.endswith(f"; remove the folder {site.folders.name} that it is in, and run the command again")


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"loss": 1.0}]', '{"seconds": 1.0}'])
@pytest.mark.fault(
    "training", "the history of a fold that Lightning trained is damaged", "an error that names the file"
)
def test_refuses_a_damaged_history(patches: SimpleNamespace, tmp_path: Path, content: str) -> None:
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(ModelError, match=r"expected the epochs of a training, found .*; remove this file") as caught:
        patches.folders.read_seconds(tmp_path / FINAL)
    one_line_about(tmp_path / "history.json", caught.value)


def test_ctrl_c_ends_the_training_as_elsewhere(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell lets what it starts in the background ignore Ctrl-C, and so would this process.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(site.patches.callbacks.History, "on_train_epoch_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        site.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    signal.signal(signal.SIGINT, ignored)


def test_worker_processes_change_nothing(site: Site, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "2")
    assert_same(site.train(), trained["poly"])


@pytest.mark.gpu
def test_trains_on_a_gpu_in_float16(site: Site) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    fold = site.train(settings(epochs=2, mixed_precision=True), device="cuda")
    assert np.isfinite([row["loss"] for row in rows(fold)]).all()


def test_mixed_precision_is_for_gpus(site: Site, trained: dict[str, Path]) -> None:
    wanted = settings(warm_up_steps=2, clip_gradient=1.0, learning_rate=1e-2, mixed_precision=True)
    assert_same(site.train(wanted), trained["poly"])
