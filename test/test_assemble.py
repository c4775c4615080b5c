"""Downloads become models: the archives and loose checkpoints that are published, and those that are refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mrsegmentator.config import MODEL_REGISTRY

from pantherseg.errors import DownloadError, ModelError, RecipeError
from pantherseg.model_sources.nnunet import CHECKPOINT, DATASET, PLANS
from pantherseg.models.bundle import open_bundle
from pantherseg.models.find import ModelFolder, find_models, open_model_folder
from pantherseg.paths import task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.weights import find_weights
from published import (
    ARCHIVE,
    BASELINE_RECORD,
    BEST,
    RECORD,
    TASK1,
    ZOO_ENTRIES,
    Fetches,
    Files,
    fault,
    model_files,
    run,
    tarred,
    zipped,
)
from served import Page

pytestmark = pytest.mark.usefixtures("one_graph")


@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_uses_another_checkpoint_with_a_warning(fetches: Fetches, caplog: pytest.LogCaptureFixture) -> None:
    fetches.succeeds("winner-task2")
    assert open_bundle(fetches.root / "task2").manifest.checkpoint == BEST
    assert "using" not in caplog.text
    fetches.succeeds("winner-task1")
    assert f"winner-task1: using {BEST}, because not every fold has {CHECKPOINT}" in caplog.text


def test_keeps_an_nnunet_folder_for_training(fetches: Fetches, demo_folder: ModelFolder) -> None:
    folder = find_weights(ZOO_ENTRIES, "multitalent-v2").folder
    files = model_files(demo_folder, f"Dataset617_nativect/{folder}/", {"all": "0"}, (CHECKPOINT,))
    other = model_files(demo_folder, "Dataset617_nativect/Other__P__3d/", {"all": "0"}, (CHECKPOINT,))
    archives = {"Dataset617_nativect.zip": Page(zipped(files | other)), "nnssl.zip": Page(b"")}
    fetches.server.add_record(13753413, archives, licence=None)
    fetches.succeeds("multitalent-v2")
    model = open_model_folder(fetches.root / "multitalent-v2")
    assert model.folds == ("all",)
    assert model.checkpoint_path("all").read_bytes() == demo_folder.checkpoint_path("0").read_bytes()
    assert not list(model.path.rglob("*.png"))
    assert "CC BY 4.0" in run("weights", "list", "--to", fetches.root).stdout
    with pytest.raises(ModelError, match=r"for 'task1', found none"):
        find_models(fetches.root, load_recipe(task_recipe(1)))


def baseline(demo_folder: ModelFolder, tmp_path: Path, **changes: Any) -> dict[str, Page]:
    """Return loose checkpoints with their plans in init_args, as nnU-Net's trainer stores them.

    changes: to the init_args of fold 2.
    """
    origin = {
        key: json.loads((demo_folder.path / name).read_text())
        for key, name in (("plans", PLANS), ("dataset_json", DATASET))
    }
    del origin["dataset_json"]["orientation"]  # which nnU-Net does not write
    pages = {}
    for fold in range(3):
        content = torch.load(demo_folder.checkpoint_path(str(fold)), weights_only=True)
        content["init_args"] |= origin | {"fold": fold, "device": torch.device("cuda")} | (changes if fold == 2 else {})
        torch.save(content, tmp_path / "checkpoint.pth")
        pages[f"checkpoint_best_PantherTask1_fold_{fold}.pth"] = Page((tmp_path / "checkpoint.pth").read_bytes())
    return pages


def test_builds_a_model_from_loose_checkpoints(fetches: Fetches, demo_folder: ModelFolder, tmp_path: Path) -> None:
    fetches.server.add_record(BASELINE_RECORD, {"readme.txt": Page(b"-")} | baseline(demo_folder, tmp_path))
    task1 = fetches.root / "task1"
    assert fetches.succeeds("baseline-task1")[-1] == f"{task1}: folds 0 1 2 of {BEST}, labels 1 tumour, 2 pancreas"
    assert json.loads((task1 / PLANS).read_text()) == json.loads((demo_folder.path / PLANS).read_text())
    assert open_bundle(task1).manifest.orientation == "LPS", "as the catalogue says"
    ensemble = Session(load_recipe(task_recipe(1)), fetches.root, device="cpu").load()
    assert ensemble.members[0].bundle.folds == ("0", "1", "2")


@pytest.mark.parametrize("changes", [{"plans": {"other": 1}}, {"plans": None}])
def test_refuses_checkpoints_with_different_plans(
    fetches: Fetches, demo_folder: ModelFolder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    fetches.server.add_record(BASELINE_RECORD, baseline(demo_folder, tmp_path, **changes))
    last = fetches.download("baseline-task1", "checkpoint_best_PantherTask1_fold_2.pth")
    assert "plans and dataset_json" in fetches.fails(ModelError, last, "baseline-task1")
    assert (fetches.root / last).is_file()


@fault("a localizer without a label for the pancreas", "an error; the download is kept, no model is installed")
def test_refuses_a_model_without_the_label_of_its_role(
    fetches: Fetches, demo_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zipped(model_files(demo_folder, "", {"0": "0"}, (CHECKPOINT,)))
    fetches.server.pages["/weights.zip"] = Page(content)
    monkeypatch.setitem(MODEL_REGISTRY["base"], "url", fetches.server.url("/weights.zip"))
    monkeypatch.setitem(MODEL_REGISTRY["base"], "sha256", hashlib.sha256(content).hexdigest())
    download = fetches.download("mrsegmentator", "weights.zip")
    assert fetches.fails(RecipeError, download, "mrsegmentator").endswith("expected label between 1 and 2, found 7")
    assert (fetches.root / download).is_file()


@pytest.mark.parametrize(
    ("name", "files", "where", "message"),
    [
        ("winner-task1", ["a_fold_0.pth", "d.pth"], "winner-task1", "expected one archive, found 2 files"),
        (
            "baseline-task1",
            ["a_fold_0.pth", "b_fold_0.pth"],
            "baseline-task1",
            "expected one file for fold_0, found a_",
        ),
        ("baseline-task1", ["a_fold_0.pth", "d.pth"], "d.pth", "expected a fold in the file name"),
    ],
)
def test_refuses_files_that_cannot_make_up_a_model_before_downloading(
    fetches: Fetches, name: str, files: list[str], where: str, message: str
) -> None:
    pages = {file: Page(b"-") for file in files}
    for record in (RECORD, BASELINE_RECORD):
        fetches.server.add_record(record, pages)
    assert message in fetches.fails(DownloadError, where, name, files=files)
    assert not any(page.requests for page in pages.values())


@fault("the archive of another model", "an error that names both; no model is installed")
@pytest.mark.usefixtures("winner_record")
def test_refuses_the_model_of_another_entry(fetches: Fetches) -> None:
    text = fetches.fails(ModelError, fetches.download("winner-task2"), "winner-task2", files=[ARCHIVE])
    assert "expected the model folder of winner-task2, found that of winner-task1" in text


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"readme.txt": b"-"}, "expected one model folder named"),
        ({"A/plans.json": b"{}", "A/fold_0/a.pth": b"", "B/plans.json": b"{}", "B/fold_0/a.pth": b""}, "found A, B"),
        ({"A/plans.json": b"{}", "A/fold_0/a.pth": b"", "A/fold_1/b.pth": b""}, "fold_0: a.pth; fold_1: b.pth"),
    ],
)
def test_refuses_an_archive_without_one_complete_model(fetches: Fetches, files: dict[str, bytes], text: str) -> None:
    fetches.serve(zipped(files))
    assert text in fetches.fails(ModelError, fetches.download())


def test_warns_about_another_folder_name(
    fetches: Fetches, demo_folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    fetches.serve(zipped(model_files(demo_folder, "T__P__3d/", {"0": "0"})))
    fetches.succeeds()
    assert "using T__P__3d, which is not named" in caplog.text


def link_to_a_folder(files: Files) -> bytes:
    buffer = io.BytesIO(zipped(files))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(f"{TASK1}/fold_1")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    return buffer.getvalue()


def file_outside(files: Files) -> bytes:
    return zipped(files | {"../evil": b"-"})


def made_to_expand_enormously(files: Files) -> bytes:
    return zipped(files | {"zeros": bytes(300_000_000)}, zipfile.ZIP_DEFLATED)


def cut_short(files: Files) -> bytes:
    return tarred(files)[:-3000]


@fault("an archive: {make}", "an error that names it; no model is installed")
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (file_outside, "../evil"),
        (link_to_a_folder, "fold_1"),
        (made_to_expand_enormously, "archive"),
        (cut_short, "EOFError"),
    ],
)
def test_removes_an_archive_that_cannot_be_used(
    fetches: Fetches, demo_folder: ModelFolder, make: Callable[[Files], bytes], found: str
) -> None:
    fetches.serve(make(model_files(demo_folder, f"{TASK1}/", {"0": "0"})))
    assert found in fetches.fails(DownloadError, fetches.download())
    assert not (fetches.root / fetches.download()).exists()
    assert list(fetches.root.parent.iterdir()) == [fetches.root]
    assert [path.name for path in fetches.root.iterdir()] == [".fetch"]


class Command:
    """Asks to run a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@fault("a checkpoint of {name} has code in it", "an error; the code is not run, no model is installed")
@pytest.mark.parametrize("name", ["winner-task1", "panc-ct-multitalent-v2", "baseline-task1"])
def test_refuses_a_checkpoint_with_code(fetches: Fetches, demo_folder: ModelFolder, tmp_path: Path, name: str) -> None:
    content = torch.load(demo_folder.checkpoint_path("0"), weights_only=True)
    torch.save(content | {"trainer_name": Command(tmp_path / "run")}, tmp_path / "checkpoint.pth")
    checkpoint = (tmp_path / "checkpoint.pth").read_bytes()
    archive = zipped(model_files(demo_folder, f"{TASK1}/", {"0": "0"}) | {f"{TASK1}/fold_0/{BEST}": checkpoint})
    loose = {f"checkpoint_best_PantherTask1_fold_{fold}.pth": Page(checkpoint) for fold in range(3)}
    fetches.server.add_record(BASELINE_RECORD, loose)
    fetches.server.add_record(RECORD, {ARCHIVE: Page(archive), "PancCT.zip": Page(archive)})
    with pytest.raises(ModelError, match="only tensors and plain values are read, so that no code runs"):
        fetches.succeeds(name)
    assert not (tmp_path / "run").exists()
    assert fetches.installed() == {}
