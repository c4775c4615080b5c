"""Published weights, in the layouts in which they are published, come to where every command takes models from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from mrsegmentator.config import MODEL_REGISTRY

from conftest import SmallDisk, one_line_about
from matrix import ended, quoted, saw
from pantherseg.cli import main as pantherseg
from pantherseg.errors import DownloadError, ModelError, OutputError, PantherSegError, RecipeError
from pantherseg.models.bundle import open_bundle
from pantherseg.models.find import ModelFolder, find_models, open_model_folder
from pantherseg.packing import graph as graph_module
from pantherseg.packing.pack import pack_models
from pantherseg.packing.sources.nnunet import CHECKPOINT, DATASET, PLANS, read_configuration
from pantherseg.paths import DEMO_WEIGHTS, ROOT, ZOO, task_recipe
from pantherseg.pipeline import load_system
from pantherseg.recipe import load_recipe
from pantherseg.weights import Client, Weights, fetch, load_zoo, named, states, verify
from pantherseg.weights.installed import read_record, record_path
from pantherseg.weights.zoo import publish
from served import Page, Served

BEST = "checkpoint_best.pth"
TASK1 = "Dataset901_PANTHER/nnUNetTrainer1e3__nnUNetResEncUNetLPlansPancCTMultiTalentV2__3d_fullres_iso1x1x1"
TASK2 = "Dataset902_PANTHER_HR/nnUNetTrainer1e3__nnUNetResEncUNetLPlansTask1PancCTMultiTalentV2__3d_fullres_iso1x1x1"
MULTITALENT = "Dataset617_nativect/MultiTalent_trainer_4000ep__nnUNetResEncUNetL1x1x1_Plans_znorm_bs24__3d_fullres"
RECORD = 17212158
ZOO_ENTRIES = load_zoo(ZOO)

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def one_graph(monkeypatch: pytest.MonkeyPatch, demo_graph: Any) -> None:
    """Use one graph for every model: making it takes longer than all the rest, and is not what is tested."""
    monkeypatch.setattr(graph_module, "make_graph", lambda *_: demo_graph)


@pytest.fixture(scope="module")
def demo_graph(demo_folder: ModelFolder) -> Any:
    configuration = read_configuration(demo_folder.path, "3d_fullres")
    return graph_module.make_graph(configuration.network(), (1, 1, *configuration.patch))


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(retries=1, pause=0.01)
    yield made
    made.close()


def model_files(
    model: ModelFolder, prefix: str, folds: dict[str, str], checkpoints: tuple[str, ...] = (BEST,)
) -> Files:
    """A published model folder: fold names to the demo's folds of the same network."""
    files = {f"{prefix}{name}": (model.path / name).read_bytes() for name in (PLANS, DATASET)}
    for fold, source in folds.items():
        content = model.checkpoint_path(source).read_bytes()
        files |= {f"{prefix}fold_{fold}/{checkpoint}": content for checkpoint in checkpoints}
        files[f"{prefix}fold_{fold}/progress.png"] = b"no need of it"
    return files


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Files, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FIVE = {str(fold): str(fold) for fold in range(5)}


@pytest.fixture(scope="module")
def winner(demo_folder: ModelFolder) -> bytes:
    return zipped(model_files(demo_folder, f"{TASK1}/", FIVE))


@pytest.fixture
def zenodo(server: Served, winner: bytes, demo_folder: ModelFolder) -> str:
    """The winner's record, as far as is known."""
    second = tarred(model_files(demo_folder, f"{TASK2}/", {"0": "0", "1": "1"}, (BEST, CHECKPOINT)))
    start = zipped(model_files(demo_folder, "Dataset900_PancCT/T__PancCTMultiTalentV2__3d/", {"all": "0"}))
    files = {"Dataset901_PANTHER.zip": Page(winner), "Dataset902_PANTHER_HR.tar.gz": Page(second)}
    return server.record(RECORD, files | {"PancCTMultiTalentV2.zip": Page(start)})


def get(client: Client, name: str, root: Path, **options: Any) -> list[str]:
    lines = list(fetch(named(ZOO_ENTRIES, name), root, zoo=ZOO_ENTRIES, client=client, **options))
    saw(quoted(lines[-1]))
    return lines


def refused(where: object, kind: type[PantherSegError], client: Client, name: str, root: Path, **options: Any) -> str:
    before = snapshot(root)
    with pytest.raises(kind) as caught:
        get(client, name, root, **options)
    assert snapshot(root) == before, "nothing half-placed"
    return one_line_about(where, caught.value)


def snapshot(root: Path) -> dict[str, bytes]:
    """What lies in a folder of models, but for the downloads."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".fetch" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_every_entry_of_the_zoo_can_be_used() -> None:
    for entry in ZOO_ENTRIES:
        assert entry.packed == (entry.role is not None)
        assert not entry.recipe or (ROOT / entry.recipe).is_file()
        if entry.role:
            recipe = load_recipe(ROOT / entry.recipe)
            assert entry.role in {
                *(member.model for member in recipe.members),
                recipe.localizer and recipe.localizer.model,
            }


def test_the_winners_task_1(client: Client, zenodo: str, server: Served, winner: bytes, tmp_path: Path) -> None:
    root = tmp_path / "own"
    lines = get(client, "winner-task1", root, zenodo=zenodo)
    assert "licence: cc-by-4.0" in lines[0]
    digest = hashlib.sha256(winner).hexdigest()
    assert lines[1] == f"Dataset901_PANTHER.zip: {len(winner)} bytes, SHA-256 {digest}"
    assert lines[2] == f"{root / 'task1'}: folds 0 1 2 3 4 of {BEST}, labels 1 tumour, 2 pancreas"
    assert sorted(path.name for path in root.iterdir()) == [".fetch", "task1", "task1.fetched.json"]
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    for fold in demo.folds:
        assert (root / "task1" / f"fold_{fold}.safetensors").read_bytes() == demo.weights_path(fold).read_bytes()
    record = read_record(root / "task1")
    assert record is not None
    (source,) = record.sources
    url = server.url(f"/api/records/{RECORD}/files/Dataset901_PANTHER.zip/content")
    assert (source.name, source.url, source.size, source.sha256) == ("Dataset901_PANTHER.zip", url, len(winner), digest)
    assert (record.name, record.licence) == ("winner-task1", "cc-by-4.0")


def test_every_command_takes_what_was_fetched(client: Client, zenodo: str, tmp_path: Path) -> None:
    root = tmp_path / "own"
    get(client, "winner-task1", root, zenodo=zenodo)
    get(client, "winner-task2", root, zenodo=zenodo)
    shutil.copytree(DEMO_WEIGHTS / "localizer", root / "localizer")
    for task, folds in ((1, FIVE), (2, {"0", "1"})):
        recipe = load_recipe(task_recipe(task))
        system = load_system(recipe, root, device="cpu")
        assert set(system.members[0].bundle.folds) == set(folds)
        result = run("pack", root, tmp_path / f"packed{task}", "--task", task)
        assert result.exit_code == 0, result.stderr
        assert find_models(tmp_path / f"packed{task}", recipe).members[0].folds == system.members[0].bundle.folds


def test_the_winners_task_2_is_best_though_final_is_there(
    client: Client, zenodo: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get(client, "winner-task2", tmp_path, zenodo=zenodo)
    assert open_bundle(tmp_path / "task2").manifest.checkpoint == BEST
    assert "is taken" not in caplog.text
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    assert f"winner-task1: not every fold has {CHECKPOINT}: {BEST} is taken" in caplog.text


def test_a_start_for_training_stays_an_nnunet_folder(
    client: Client, server: Served, zenodo: str, demo_folder: ModelFolder, tmp_path: Path
) -> None:
    files = model_files(demo_folder, f"{MULTITALENT}/", {"all": "0"}, (CHECKPOINT,))
    other = model_files(demo_folder, "Dataset617_nativect/Other__P__3d/", {"all": "0"}, (CHECKPOINT,))
    archive = {"Dataset617_nativect.zip": Page(zipped(files | other)), "nnssl.zip": Page(b"")}
    server.record(13753413, archive, licence=None)
    get(client, "multitalent-v2", tmp_path, zenodo=zenodo)
    model = open_model_folder(tmp_path / "multitalent-v2")
    assert model.folds == ("all",)
    assert model.checkpoint_path("all").read_bytes() == demo_folder.checkpoint_path("0").read_bytes()
    assert not list(model.path.rglob("*.png"))
    assert "CC BY 4.0" in run("weights", "list", "--to", tmp_path).stdout
    get(client, "panc-ct-multitalent-v2", tmp_path, zenodo=zenodo)
    with pytest.raises(ModelError, match=r"for 'task1', found none"):
        find_models(tmp_path, load_recipe(task_recipe(1)))
    assert run("weights", "verify", "--to", tmp_path).exit_code == 0
    model.checkpoint_path("all").write_bytes(b"damaged")
    result = run("weights", "verify", "--to", tmp_path)
    assert result.exit_code == 1
    assert [line[:7] for line in result.stdout.splitlines()] == ["ok     ", "DAMAGED"]


def baseline(demo_folder: ModelFolder, tmp_path: Path, **changes: Any) -> dict[str, Page]:
    """Loose checkpoints, with the plans in init_args as nnU-Net's trainer puts them there."""
    origin = {key: json.loads((demo_folder.path / name).read_text()) for key, name in INSIDE.items()}
    pages = {}
    for fold in range(3):
        content = torch.load(demo_folder.checkpoint_path(str(fold)), weights_only=True)
        content["init_args"] |= origin | {"fold": fold, "device": torch.device("cuda")} | (changes if fold == 2 else {})
        torch.save(content, tmp_path / "c.pth")
        pages[f"checkpoint_best_PantherTask1_fold_{fold}.pth"] = Page((tmp_path / "c.pth").read_bytes())
    (tmp_path / "c.pth").unlink()
    return pages


INSIDE = {"plans": PLANS, "dataset_json": DATASET}


def test_the_baselines_loose_checkpoints(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path
) -> None:
    zenodo = server.record(15211865, {"readme.txt": Page(b"-")} | baseline(demo_folder, tmp_path))
    lines = get(client, "baseline-task1", tmp_path / "own", zenodo=zenodo)
    assert lines[-1] == f"{tmp_path / 'own' / 'task1'}: folds 0 1 2 of {BEST}, labels 1 tumour, 2 pancreas"
    for name in (PLANS, DATASET):
        assert json.loads((tmp_path / "own" / "task1" / name).read_text()) == json.loads(
            (demo_folder.path / name).read_text()
        )
    system = load_system(load_recipe(task_recipe(1)), tmp_path / "own", device="cpu")
    assert system.members[0].bundle.folds == ("0", "1", "2")


@pytest.mark.parametrize("changes", [{"plans": {"other": 1}}, {"plans": None}])
def test_loose_checkpoints_that_do_not_belong_together(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    zenodo = server.record(15211865, baseline(demo_folder, tmp_path, **changes))
    last = tmp_path / ".fetch" / "baseline-task1" / "checkpoint_best_PantherTask1_fold_2.pth"
    text = refused(last, ModelError, client, "baseline-task1", tmp_path, zenodo=zenodo)
    assert "plans and dataset_json" in text
    assert last.is_file(), "a sound download is kept"


def with_eight_classes(demo_folder: ModelFolder, tmp_path: Path) -> ModelFolder:
    """The demo's network with as many labels as the demo's localizer has."""
    target = tmp_path / ".eight"
    shutil.copytree(demo_folder.path, target, ignore=shutil.ignore_patterns("fold_[1234]"))
    dataset = json.loads((target / DATASET).read_text())
    dataset["labels"] = open_bundle(DEMO_WEIGHTS / "localizer").manifest.labels
    (target / DATASET).write_text(json.dumps(dataset))
    path = target / "fold_0" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    for name, value in content["network_weights"].items():
        if "seg_layers" in name:
            content["network_weights"][name] = torch.cat([value, value, value])[:8]
    torch.save(content, path)
    return open_model_folder(target)


@pytest.mark.fault("downloads", "a localizer that knows no pancreas", "an error; the download is kept, no model placed")
def test_a_model_without_the_label_that_its_role_needs_is_not_placed(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zipped(model_files(demo_folder, "", {"0": "0"}, (CHECKPOINT,)))
    server.pages["/weights.zip"] = Page(content)
    monkeypatch.setitem(MODEL_REGISTRY["base"], "url", server.url("/weights.zip"))
    monkeypatch.setitem(MODEL_REGISTRY["base"], "sha256", hashlib.sha256(content).hexdigest())
    where = tmp_path / ".fetch" / "mrsegmentator" / "weights.zip"
    text = refused(where, RecipeError, client, "mrsegmentator", tmp_path)
    assert text.endswith("expected label between 1 and 2, found 7")
    assert where.is_file(), "a sound download is kept"


def test_the_localizer_is_the_mrsegmentator_packages(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zipped(model_files(with_eight_classes(demo_folder, tmp_path), "", {"0": "0"}, (CHECKPOINT,)))
    server.pages["/weights.zip"] = Page(content)
    monkeypatch.setitem(MODEL_REGISTRY["base"], "url", server.url("/weights.zip"))
    where = server.url("/weights.zip")
    assert "sha256:dd26" in refused(where, DownloadError, client, "mrsegmentator", tmp_path)
    monkeypatch.setitem(MODEL_REGISTRY["base"], "sha256", hashlib.sha256(content).hexdigest())
    lines = get(client, "mrsegmentator", tmp_path)
    assert lines[-1].startswith(f"{tmp_path / 'localizer'}: folds 0 of {CHECKPOINT}, labels 1 ")
    assert lines[-1].endswith(", 7 pancreas")
    with pytest.raises(ModelError, match=r"for 'task1', found none"):
        find_models(tmp_path, load_recipe(task_recipe(1)))
    text = refused("--file", RecipeError, client, "mrsegmentator", tmp_path / "b", files=["x"])
    assert "a Zenodo record" in text
    monkeypatch.delitem(MODEL_REGISTRY, "base")
    assert "no 'base'" in refused("mrsegmentator", DownloadError, client, "mrsegmentator", tmp_path / "b")


def test_what_is_there_already_is_left_as_it_is(client: Client, server: Served, zenodo: str, tmp_path: Path) -> None:
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    asked = len(server.pages[f"/api/records/{RECORD}"].asked)
    (line,) = get(client, "winner-task1", tmp_path, zenodo=zenodo)
    assert line.startswith(f"{tmp_path / 'task1'}: there already, fetched 2")
    assert len(server.pages[f"/api/records/{RECORD}"].asked) == asked
    text = refused(tmp_path / "task1", OutputError, client, "baseline-task1", tmp_path, zenodo=zenodo)
    assert "found winner-task1 (Dataset901_PANTHER.zip); move it away" in text
    refused(tmp_path / "task1", OutputError, client, "winner-task1", tmp_path, zenodo=zenodo, files=["another.zip"])
    (tmp_path / "task2").mkdir()
    (tmp_path / "task2" / "mine").touch()
    refused(tmp_path / "task2", OutputError, client, "winner-task2", tmp_path, zenodo=zenodo)
    (tmp_path / "task2" / "mine").unlink()
    get(client, "winner-task2", tmp_path, zenodo=zenodo)
    path = tmp_path / "task1" / "fold_3.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "expected SHA-256" in refused(path, ModelError, client, "winner-task1", tmp_path, zenodo=zenodo)


@pytest.mark.parametrize("to", ["gone", "empty"])
def test_a_link_in_its_place_is_left_alone_before_anything_is_downloaded(
    client: Client, server: Served, zenodo: str, tmp_path: Path, to: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "task1").symlink_to(tmp_path / to)
    text = refused(tmp_path / "task1", OutputError, client, "winner-task1", tmp_path, zenodo=zenodo)
    assert text.endswith("expected room for winner-task1, found a link; move it away")
    assert server.pages[f"/api/records/{RECORD}"].asked == []
    assert (tmp_path / "task1").is_symlink()


@pytest.mark.fault(
    "downloads",
    "other weights come than the first time; then the record of these is removed",
    "an error that says so, and no model placed; then the model",
)
def test_other_bytes_than_once_are_refused(
    client: Client, server: Served, zenodo: str, demo_folder: ModelFolder, tmp_path: Path
) -> None:
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    shutil.rmtree(tmp_path / "task1")
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    shutil.rmtree(tmp_path / "task1")
    other = zipped(model_files(demo_folder, f"{TASK1}/", {"0": "1"}))
    server.record(RECORD, {"Dataset901_PANTHER.zip": Page(other)})
    where = server.url(f"/api/records/{RECORD}/files/Dataset901_PANTHER.zip/content")
    text = refused(where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo)
    assert f"remove {record_path(tmp_path / 'task1')} to take it nevertheless" in text
    record_path(tmp_path / "task1").unlink()
    get(client, "winner-task1", tmp_path, zenodo=zenodo)


def test_files_that_the_patterns_do_not_tell_apart(
    client: Client, server: Served, winner: bytes, tmp_path: Path
) -> None:
    pages = {"a_901.zip": Page(winner), "b_901.zip": Page(b"-"), "c.zip": Page(winner)}
    zenodo = server.record(RECORD, pages)
    where = f"{zenodo}/{RECORD}"
    text = refused(where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo)
    assert "found 2 among a_901.zip, b_901.zip, c.zip; name one with --file NAME" in text
    assert "found none among" in refused(where, DownloadError, client, "winner-task2", tmp_path, zenodo=zenodo)
    assert "found none among" in refused(
        where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo, files=["d"]
    )
    get(client, "winner-task1", tmp_path, zenodo=zenodo, files=["c.zip"])
    assert (tmp_path / "task1" / "manifest.json").is_file()


def test_files_that_make_no_model_are_refused_before_they_are_downloaded(
    client: Client, server: Served, winner: bytes, tmp_path: Path
) -> None:
    zenodo = server.record(RECORD, pages := {"a_901.zip": Page(winner), "b.zip": Page(winner)})
    loose = {name: Page(b"-") for name in ("a_fold_0.pth", "b_fold_0.pth", "c_fold_1.pth", "d.pth")}
    server.record(15211865, loose)
    for name, files, where, found in (
        ("winner-task1", ["b.zip", "b.zip"], f"{zenodo}/{RECORD}", "files that differ, found b.zip twice"),
        ("winner-task1", ["a_901.zip", "b.zip"], "winner-task1", "one archive, found 2 files: a_901.zip, b.zip"),
        ("baseline-task1", ["c_fold_1.pth"] * 2, f"{zenodo}/15211865", "found c_fold_1.pth twice"),
        (
            "baseline-task1",
            ["a_fold_0.pth", "b_fold_0.pth"],
            "baseline-task1",
            "one file of fold_0, found a_fold_0.pth and b_fold_0.pth",
        ),
        ("baseline-task1", ["a_fold_0.pth", "d.pth"], "d.pth", "a fold's number"),
    ):
        assert found in refused(where, DownloadError, client, name, tmp_path, zenodo=zenodo, files=files)
    assert not any(page.asked for page in (*pages.values(), *loose.values()))


@pytest.mark.parametrize("name", ["made", "source"])
def test_a_file_may_have_any_plain_name(
    client: Client, server: Served, winner: bytes, tmp_path: Path, name: str
) -> None:
    zenodo = server.record(RECORD, {name: Page(winner)})
    get(client, "winner-task1", tmp_path, zenodo=zenodo, files=[name])
    assert (tmp_path / "task1" / "manifest.json").is_file()


@pytest.mark.fault("downloads", "the archive of another model", "an error that names both; no model placed")
def test_the_model_of_another_entry_is_refused(client: Client, zenodo: str, tmp_path: Path) -> None:
    archive = tmp_path / ".fetch" / "winner-task2" / "Dataset901_PANTHER.zip"
    text = refused(
        archive, ModelError, client, "winner-task2", tmp_path, zenodo=zenodo, files=["Dataset901_PANTHER.zip"]
    )
    assert "expected the model folder of winner-task2, found that of winner-task1" in text


def serve_archive(server: Served, content: bytes) -> str:
    return server.record(RECORD, {"Dataset901_PANTHER.zip": Page(content)})


ARCHIVE = Path(".fetch", "winner-task1", "Dataset901_PANTHER.zip")


def with_link(content: Files) -> bytes:
    buffer = io.BytesIO(zipped(content))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(f"{TASK1}/fold_1")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    return buffer.getvalue()


def tar_with(content: Files, name: str, kind: bytes, target: str = "") -> bytes:
    buffer = io.BytesIO(tarred(content, "w"))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return buffer.getvalue()


def bomb(content: Files) -> Files:
    return {**content, "bomb": bytes(300_000_000)}


def deflated(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """In the middle, where a checkpoint is."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 9]) + content[middle + 9 :]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        pytest.param(
            lambda files: zipped({**files, "../evil": b"-"}),
            "'../evil'",
            marks=pytest.mark.fault(
                "downloads", "an archive with a file that lands outside", "an error that names it; no model placed"
            ),
            id="outside",
        ),
        (lambda files: zipped({**files, "/tmp/evil": b"-"}), "'/tmp/evil'"),
        (lambda files: tarred({**files, "a/../../evil": b"-"}), "'a/../../evil'"),
        (lambda files: tarred({**files, "/evil": b"-"}), "'/evil'"),
        pytest.param(
            with_link,
            "a link or device",
            marks=pytest.mark.fault("downloads", "an archive with a link", "an error that names it; no model placed"),
            id="link",
        ),
        (lambda files: tar_with(files, "l", tarfile.SYMTYPE, "/etc"), "a link or device ('l')"),
        (lambda files: tar_with(files, "l", tarfile.LNKTYPE, "plans.json"), "a link or device ('l')"),
        (lambda files: tar_with(files, "l", tarfile.CHRTYPE), "a link or device ('l')"),
        pytest.param(
            lambda files: deflated(bomb(files)),
            "found more",
            marks=pytest.mark.fault(
                "downloads",
                "an archive of few bytes that expands without end",
                "an error that names it; no model placed",
            ),
            id="end",
        ),
        (lambda files: tarred(bomb(files)), "found more"),
        (lambda files: zipped({**files, "./a": b"-", "a": b"-"}), "twice"),
        (lambda files: b"<!doctype html><title>Log in</title>", "beginning with b'<!doctype html>"),
        (lambda files: b"", "0 bytes beginning with"),
        pytest.param(
            lambda files: tarred(files)[:-3000],
            "EOFError",
            marks=pytest.mark.fault("downloads", "an archive cut short", "an error that names it; no model placed"),
            id="short",
        ),
        (lambda files: zipped(files).replace(b"weights", b"wEIGHTS"), "BadZipFile"),
        (lambda files: damaged(tarred(files, "w:bz2")), "a sound archive"),
        (lambda files: damaged(tarred(files, "w:gz")), "a sound archive"),
        (lambda files: damaged(tarred(files, "w:xz")), "a sound archive"),
        (lambda files: damaged(deflated(files)), "a sound archive"),
        (lambda files: b"?star".join(tarred(files, "w").rsplit(b"ustar", 1)), "a sound archive"),
    ],
)
def test_archives_that_are_no_good(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, make: Any, found: str
) -> None:
    content = make(model_files(demo_folder, f"{TASK1}/", {"0": "0"}))
    root = tmp_path / "root"
    text = refused(root / ARCHIVE, DownloadError, client, "winner-task1", root, zenodo=serve_archive(server, content))
    assert found in text
    assert not (root / ARCHIVE).exists(), "it will not become better"
    assert sorted(tmp_path.iterdir()) == [root]
    assert [path.name for path in root.iterdir()] == [".fetch"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"readme.txt": b"-"}, "one model folder like"),
        ({"A/plans.json": b"{}", "A/fold_0/a.pth": b"", "B/plans.json": b"{}", "B/fold_0/a.pth": b""}, "found A, B"),
        ({"A/plans.json": b"{}", "A/fold_0/a.pth": b"", "A/fold_1/b.pth": b""}, "fold_0: a.pth; fold_1: b.pth"),
    ],
)
def test_archives_without_the_model(client: Client, server: Served, tmp_path: Path, files: Files, found: str) -> None:
    zenodo = serve_archive(server, zipped(files))
    where = tmp_path / ARCHIVE
    assert found in refused(where, ModelError, client, "winner-task1", tmp_path, zenodo=zenodo)


def test_a_model_folder_of_another_name_is_taken_and_named(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zenodo = serve_archive(server, zipped(model_files(demo_folder, "T__P__3d/", {"0": "0"})))
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    assert "found T__P__3d, which is taken" in caplog.text


class Bomb:
    """Asks for a command to be run when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.fault(
    "downloads", "a checkpoint of {name} has code in it", "an error; the code is not run, no model placed"
)
@pytest.mark.parametrize("name", ["winner-task1", "panc-ct-multitalent-v2", "baseline-task1"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    client: Client, server: Served, demo_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    ran, root = tmp_path / "ran", tmp_path / "own"
    content = torch.load(demo_folder.checkpoint_path("0"), weights_only=True)
    torch.save(content | {"trainer_name": Bomb(ran)}, tmp_path / "c.pth")
    evil = (tmp_path / "c.pth").read_bytes()
    files = model_files(demo_folder, f"{TASK1}/", {"0": "0"})
    archive = zipped(files | {f"{TASK1}/fold_0/{BEST}": evil})
    pages = {f"checkpoint_best_PantherTask1_fold_{fold}.pth": Page(evil) for fold in range(3)}
    server.record(15211865, pages)
    zenodo = server.record(RECORD, {"Dataset901.zip": Page(archive), "PancCT.zip": Page(archive)})
    with pytest.raises(ModelError, match="it would run code on loading and was refused") as caught:
        get(client, name, root, zenodo=zenodo)
    saw(caught.value)
    assert not ran.exists()
    assert snapshot(root) == {}


def test_a_record_that_is_none_is_named(client: Client, server: Served, tmp_path: Path) -> None:
    zenodo = server.url("/api/records")
    where = f"{zenodo}/{RECORD}"
    assert "HTTP 404" in refused(where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo)
    for content in (b"<html>", b"{}", b'{"files": [{"key": 3}]}', b"\xff"):
        server.pages[f"/api/records/{RECORD}"] = Page(content)
        assert "a Zenodo record" in refused(where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo)
    server.pages[f"/api/records/{RECORD}"] = Page(json.dumps({"files": []}).encode())
    assert "no files at all" in refused(where, DownloadError, client, "winner-task1", tmp_path, zenodo=zenodo)


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ({"links": {"self": "http://[::1"}}, "an address to go on to, found http://[::1"),
        ({"key": "901\0.zip"}, r"a file's plain name, found '901\x00.zip'"),
        ({"key": "901\x1b[2J\n.zip"}, r"a file's plain name, found '901\x1b[2J\n.zip'"),
    ],
)
def test_odd_records_are_refused(
    client: Client, server: Served, tmp_path: Path, file: dict[str, Any], found: str
) -> None:
    entry = {"key": "901.zip", "links": {"self": server.url("/901.zip")}} | file
    server.pages[f"/api/records/{RECORD}"] = Page(json.dumps({"files": [entry]}).encode())
    result = run("weights", "fetch", "winner-task1", "--to", tmp_path, "--zenodo", server.url("/api/records"))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.isprintable()
    assert line.endswith(found)
    result = run("weights", "fetch", "winner-task2", "--to", tmp_path, "--zenodo", server.url("/api/records"))
    (line,) = result.stderr.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        (None, "see the record"),
        ([], "see the record"),
        ({"license": None}, "see the record"),
        ({"license": {"id": None}}, "see the record"),
        ({"license": 3}, "see the record"),
        ({"license": {"id": "\x1b[2J"}}, "see the record"),
        ({"license": "cc-by"}, "cc-by"),
        ({"license": {"id": "cc-by-4.0"}}, "cc-by-4.0"),
    ],
)
def test_an_odd_licence_does_not_stop_a_download(metadata: Any, licence: str) -> None:
    class Told(Client):
        def read(self, url: str) -> bytes:
            files = [{"key": "901.zip", "links": {"self": "https://a/901.zip"}}]
            return json.dumps({"files": files, "metadata": metadata}).encode()

    assert publish(named(ZOO_ENTRIES, "winner-task1"), Told()).licence == licence


def test_a_record_read_safely_does_not_lead_to_files_that_are_not() -> None:
    class Told(Client):
        def read(self, url: str) -> bytes:
            return json.dumps({"files": [{"key": "901.zip", "links": {"self": "http://a/901.zip"}}]}).encode()

    with pytest.raises(DownloadError) as caught:
        publish(named(ZOO_ENTRIES, "winner-task1"), Told())
    where = f"https://zenodo.org/api/records/{RECORD}"
    assert one_line_about(where, caught.value).endswith("found http://a/901.zip")


def test_without_torch_nothing_is_downloaded(
    client: Client, server: Served, zenodo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("pantherseg.packing.pack")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    text = refused("winner-task1", ModelError, client, "winner-task1", tmp_path, zenodo=zenodo)
    assert text.endswith("found no torch; pip install pantherseg[cuda]")
    assert server.pages[f"/api/records/{RECORD}"].asked == []


@pytest.mark.parametrize(
    ("package", "named_in_hint"), [("requests", "pantherseg[fetch]"), ("mrsegmentator.config", "pantherseg[cuda]")]
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, named_in_hint: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("weights", "fetch", "mrsegmentator", "--to", tmp_path)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install {named_in_hint}")
    assert {path.name for path in tmp_path.rglob("*")} <= {".fetch", "localizer.lock"}
    assert run("weights", "list", "--to", tmp_path).exit_code == 0


@pytest.mark.fault("downloads", "two fetches of a model at a time", "an error from the second; the first goes on")
def test_two_fetches_do_not_meet(client: Client, zenodo: str, tmp_path: Path) -> None:
    first = fetch(named(ZOO_ENTRIES, "winner-task1"), tmp_path, zoo=ZOO_ENTRIES, client=client, zenodo=zenodo)
    next(first)
    lock = tmp_path / ".fetch" / "task1.lock"
    for name in ("winner-task1", "baseline-task1"):
        assert "one that is running" in refused(lock, OutputError, client, name, tmp_path, zenodo=zenodo)
    saw(quoted(last := list(first)[-1]))
    assert last.endswith(f"of {BEST}, labels 1 tumour, 2 pancreas")


HOLD = """
import sys, os
from pathlib import Path
from pantherseg.errors import OutputError
from pantherseg.weights.fetch import _alone
root, held = Path(sys.argv[1]), 0
while held < 200:
    try:
        with _alone(root / ".fetch", "task1"):
            os.close(os.open(root / "held", os.O_CREAT | os.O_EXCL))
            held += 1
            (root / "held").unlink()
    except OutputError as error:
        assert "one that is running" in str(error), error
"""


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0


@pytest.mark.fault(
    "downloads",
    "the disk fails when the model is placed; then it does not",
    "an error, and nothing placed; then the model, with nothing downloaded again",
)
def test_an_interrupted_placement_is_made_up_for_without_a_download(
    client: Client, server: Served, zenodo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if target == tmp_path / "task1":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(OutputError, match=r"task1: expected to place a model, found Input/output error") as caught:
            get(client, "winner-task1", tmp_path, zenodo=zenodo)
        saw(caught.value)
    assert snapshot(tmp_path) == {}, "no record of what is not there"
    assert run("weights", "verify", "--to", tmp_path).exit_code == 0
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    assert (tmp_path / "task1" / "manifest.json").is_file()
    assert len(server.pages[f"/api/records/{RECORD}/files/Dataset901_PANTHER.zip/content"].asked) == 1


@pytest.mark.fault(
    "downloads",
    "no room to unpack an archive; then there is",
    "an error that says how much is wanted; then the model, with nothing downloaded again",
)
def test_a_disk_without_room_to_unpack_is_named_and_the_download_kept(
    client: Client, server: Served, zenodo: str, winner: bytes, small_disk: SmallDisk
) -> None:
    root = small_disk(len(winner) * 3 // 2)
    source = root / ".fetch" / "winner-task1" / ".place" / "source"
    text = refused(source, OutputError, client, "winner-task1", root, zenodo=zenodo)
    assert "expected room for " in text
    small_disk(len(winner) * 4)
    assert get(client, "winner-task1", root, zenodo=zenodo)[-1].endswith(f"of {BEST}, labels 1 tumour, 2 pancreas")
    assert len(server.pages[f"/api/records/{RECORD}/files/Dataset901_PANTHER.zip/content"].asked) == 1


def run(*arguments: object) -> Result:
    return CliRunner().invoke(pantherseg, [*map(str, arguments)])


def test_the_table_says_what_is_known_and_what_is_here(client: Client, zenodo: str, tmp_path: Path) -> None:
    before = run("weights", "list", "--to", tmp_path)
    assert before.exit_code == 0
    rows = {line.split()[0]: line for line in before.stdout.splitlines()[1:]}
    assert list(rows) == [entry.name for entry in ZOO_ENTRIES]
    assert all(row.endswith(" -") for row in rows.values())
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    rows = {line.split()[0]: line for line in run("weights", "list", "--to", tmp_path).stdout.splitlines()}
    assert rows["winner-task1"].endswith(str(tmp_path / "task1"))
    assert " 8 " in rows["winner-task1"] or " 9 " in rows["winner-task1"]
    assert "cc-by-4.0" in rows["winner-task1"]
    assert rows["baseline-task1"].endswith("no: task1 is winner-task1")
    record_path(tmp_path / "task1").write_text("{")
    result = run("weights", "list", "--to", tmp_path)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1 + len(ZOO_ENTRIES)
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("winner-task1")]
    assert f"damaged: {record_path(tmp_path / 'task1')}: expected a record of what was fetched" in row
    result = run("weights", "verify", "--to", tmp_path)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"DAMAGED  {record_path(tmp_path / 'task1')}: ")
    refused(record_path(tmp_path / "task1"), ModelError, client, "winner-task1", tmp_path, zenodo=zenodo)


def test_what_is_no_folder_of_models_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command in ("list", "verify", "fetch winner-task1"):
        result = run("weights", *command.split(), "--to", file)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {file}")
        assert "expected a folder" in line
    for folder in (tmp_path / "none", tmp_path):
        result = run("weights", "verify", "--to", folder)
        assert result.exit_code == 0
        assert f"{folder}: no weights there" in result.stdout


def test_what_was_put_there_by_hand_is_looked_at(demo_folder: ModelFolder, tmp_path: Path) -> None:
    place = tmp_path / "task1"

    def said() -> str:
        result = run("weights", "verify", "--to", tmp_path)
        assert result.exit_code == ("DAMAGED" in result.stdout)
        (line,) = result.stdout.splitlines()
        return line

    place.touch()
    assert said() == f"DAMAGED  {place}: expected a model's folder, found a file"
    place.unlink()
    place.symlink_to(tmp_path / "gone")
    assert said() == f"DAMAGED  {place}: expected a model's folder, found a link that leads nowhere"
    place.unlink()
    shutil.copytree(demo_folder.path, place / "Dataset901" / "T__P__3d")
    assert said() == (
        f"ok       {place} (not fetched): folds 0 1 2 3 4 of {CHECKPOINT}; nothing to compare with: it was not fetched"
    )
    (checkpoint := place / "Dataset901" / "T__P__3d" / "fold_3" / CHECKPOINT).unlink()
    assert said().startswith(f"DAMAGED  {checkpoint}: expected a checkpoint")
    (place / "Dataset901" / "T__P__3d" / PLANS).unlink()
    assert said().startswith(f"DAMAGED  {place}: expected one bundle or nnU-Net model folder")


def test_verify_has_a_line_each_and_names_what_is_damaged(client: Client, zenodo: str, tmp_path: Path) -> None:
    get(client, "winner-task1", tmp_path, zenodo=zenodo)
    shutil.copytree(DEMO_WEIGHTS / "localizer", tmp_path / "localizer")
    result = run("weights", "verify", "--to", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"ok       {tmp_path / 'task1'} (winner-task1): folds 0 1 2 3 4 of {BEST}, labels 1 tumour, 2 pancreas",
        f"ok       {tmp_path / 'localizer'} (not fetched): folds 0 of {CHECKPOINT}, labels 1 spleen, "
        "2 right_kidney, 3 left_kidney, 4 gallbladder, 5 liver, 6 stomach, 7 pancreas",
    ]
    for name in ("winner-task2", "baseline-task1", "mrsegmentator"):
        result = run("weights", "verify", name, "--to", tmp_path)
        assert result.exit_code == 1
        assert f"expected {name}, found" in result.stderr
    (entry,) = states([named(ZOO_ENTRIES, "winner-task1")], tmp_path)
    for name in ("fold_4.safetensors", "manifest.json", PLANS):
        path = tmp_path / "task1" / name
        good = path.read_bytes()
        path.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:])
        with pytest.raises(ModelError) as caught:
            verify(entry)
        one_line_about(path, caught.value)
        result = run("weights", "verify", "winner-task1", "--to", tmp_path)
        assert result.exit_code == 1
        assert result.stdout.startswith(f"DAMAGED  {path}: expected SHA-256")
        path.write_bytes(good)
    assert run("weights", "verify", "winner-task1", "--to", tmp_path).exit_code == 0


def test_the_command_fetches(zenodo: str, tmp_path: Path) -> None:
    result = run("weights", "fetch", "winner-task2", "--to", tmp_path, "--zenodo", zenodo)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    result = run("weights", "fetch", "winner", "--to", tmp_path)
    assert result.exit_code == 1
    assert "expected one of winner-task1, winner-task2," in result.stderr


def test_a_zoo_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    text = ZOO.read_text()
    (tmp_path / "zoo.toml").write_text(text.replace('"winner-task2"', '"winner-task1"'))
    with pytest.raises(RecipeError, match="winner-task1 twice"):
        load_zoo(tmp_path / "zoo.toml")
    (tmp_path / "zoo.toml").write_text(text.replace('layout = "loose checkpoints"', 'layout = "loose"'))
    with pytest.raises(RecipeError, match=r"weights\[4\]\.layout"):
        load_zoo(tmp_path / "zoo.toml")


def test_weights_at_an_address(client: Client, server: Served, winner: bytes, tmp_path: Path) -> None:
    url = server.url("/a/Dataset901.zip?download=1")
    source = {"kind": "url", "url": url, "size": len(winner), "sha256": hashlib.sha256(winner).hexdigest()}
    given = msgspec.to_builtins(named(ZOO_ENTRIES, "winner-task1")) | {"source": source}
    entry = msgspec.convert(given, Weights)
    server.pages["/a/Dataset901.zip?download=1"] = Page(winner)
    lines = list(fetch(entry, tmp_path, zoo=ZOO_ENTRIES, client=client))
    assert lines[1].startswith("Dataset901.zip: ")
    (state,) = states([entry], tmp_path)
    assert (state.present, state.size) == (True, len(winner))


@pytest.mark.fault(
    "downloads",
    "SIGKILL twice while weights come, and once while they are packed",
    "nothing placed; then the model, from where it ended",
)
@pytest.mark.slow
def test_a_fetch_that_is_killed_at_any_time_goes_on_later(
    server: Served, zenodo: str, winner: bytes, tmp_path: Path
) -> None:
    page = server.pages[f"/api/records/{RECORD}/files/Dataset901_PANTHER.zip/content"]
    page.pause = 0.02
    root = tmp_path / "own"
    command = [sys.executable, "-m", "pantherseg", "weights", "fetch", "winner-task1"]
    command += ["--to", str(root), "--zenodo", zenodo]
    part = root / ".fetch" / "winner-task1" / "Dataset901_PANTHER.zip.part"
    for share in (0.2, 0.6):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (part.is_file() and part.stat().st_size > share * len(winner)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert snapshot(root) == {}
    page.pause = 0
    # Killed while it packs: unpacked and half-packed folders are there.
    place = root / ".fetch" / "winner-task1" / ".place"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not any(place.glob(".made.*.part")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert snapshot(root) == {}
    asked = len(page.asked)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    saw(f"after three kills: {ended(done.returncode, done.stderr)}, {quoted(done.stdout.splitlines()[-1])}")
    assert done.returncode == 0, done.stderr
    assert len(page.asked) == asked == 3, "each went on where the one before ended, the last without a download"
    offsets = [int((span or "bytes=0-").removeprefix("bytes=").removesuffix("-")) for span in page.asked]
    assert offsets[0] == 0 < 0.2 * len(winner) < offsets[1] < 0.6 * len(winner) < offsets[2]
    assert sorted(path.name for path in root.iterdir()) == [".fetch", "task1", "task1.fetched.json"]
    pack_models(root, tmp_path / "packed", load_recipe(task_recipe(1)))
