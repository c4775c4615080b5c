"""Published weights, in the layouts in which they are published, are installed where every command finds them."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from conftest import SmallDisk
from pantherseg.errors import DownloadError, ModelError, OutputError
from pantherseg.models.bundle import open_bundle
from pantherseg.models.find import ModelFolder, find_models
from pantherseg.packing.pack import pack_models
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.weights import Weights, fetch, find_weights, installations
from pantherseg.weights.installed import read_record, record_path
from published import (
    ARCHIVE,
    BEST,
    FIVE_FOLDS,
    RECORD,
    TASK1,
    ZOO_ENTRIES,
    Fetches,
    fault,
    model_files,
    run,
    zipped,
)
from served import Page

pytestmark = pytest.mark.usefixtures("one_graph")

INSTALLED = f"folds 0 1 2 3 4 of {BEST}, labels 1 tumour, 2 pancreas"


@pytest.mark.usefixtures("winner_record")
def test_installs_a_bundle_with_a_record_of_its_source(fetches: Fetches, winner: bytes) -> None:
    lines = fetches.succeeds("winner-task1")
    digest = hashlib.sha256(winner).hexdigest()
    assert "licence: cc-by-4.0" in lines[0]
    assert lines[1:] == [
        f"{ARCHIVE}: {len(winner)} bytes, SHA-256 {digest}",
        f"{fetches.root / 'task1'}: {INSTALLED}",
    ]
    assert sorted(path.name for path in fetches.root.iterdir()) == [".fetch", "task1", "task1.fetched.json"]
    demo = open_bundle(DEMO_WEIGHTS / "task1")
    for fold in demo.folds:
        weights = fetches.root / "task1" / f"fold_{fold}.safetensors"
        assert weights.read_bytes() == demo.weights_path(fold).read_bytes()
    record = read_record(fetches.root / "task1")
    assert record is not None
    assert (record.name, record.licence) == ("winner-task1", "cc-by-4.0")
    (source,) = record.sources
    assert (source.name, source.size, source.sha256) == (ARCHIVE, len(winner), digest)
    assert source.url == f"{fetches.zenodo}/{RECORD}/files/{ARCHIVE}/content"


@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_installs_models_that_every_command_takes(fetches: Fetches, tmp_path: Path) -> None:
    fetches.succeeds("winner-task1")
    fetches.succeeds("winner-task2")
    shutil.copytree(DEMO_WEIGHTS / "localizer", fetches.root / "localizer")
    for task, folds in ((1, tuple(FIVE_FOLDS)), (2, ("0", "1"))):
        recipe = load_recipe(task_recipe(task))
        assert Session(recipe, fetches.root, device="cpu").load().members[0].bundle.folds == folds
        result = run("pack", fetches.root, tmp_path / f"packed{task}", "--task", task)
        assert result.exit_code == 0, result.stderr
        assert find_models(tmp_path / f"packed{task}", recipe).members[0].folds == folds


@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_leaves_installed_weights_as_they_are(fetches: Fetches) -> None:
    fetches.succeeds()
    (line,) = fetches.succeeds()
    task1, task2 = fetches.root / "task1", fetches.root / "task2"
    assert line.startswith(f"{task1}: already installed, fetched 2")
    assert len(fetches.page().requests) == 1
    assert fetches.fails(OutputError, task1, "baseline-task1").endswith(
        f"expected nothing where baseline-task1 goes, found winner-task1 ({ARCHIVE}); move it away"
    )
    fetches.fails(OutputError, task1, files=["another.zip"])
    task2.mkdir()
    (task2 / "own").touch()
    assert "found something else" in fetches.fails(OutputError, task2, "winner-task2")
    (task2 / "own").unlink()
    fetches.succeeds("winner-task2")
    weights = task1 / "fold_3.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert "expected SHA-256" in fetches.fails(ModelError, weights)


@pytest.mark.parametrize("target", ["missing", "empty"])
@pytest.mark.usefixtures("winner_record")
def test_leaves_a_link_alone(fetches: Fetches, target: str) -> None:
    (fetches.root / "empty").mkdir(parents=True)
    task1 = fetches.root / "task1"
    task1.symlink_to(fetches.root / target)
    assert fetches.fails(OutputError, task1).endswith("found a link; move it away")
    assert fetches.server.pages[f"/api/records/{RECORD}"].requests == []
    assert task1.is_symlink()


@fault(
    "the source publishes other weights than the first time; then their record is removed",
    "an error that says so, and no model is installed; then the model",
)
@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_refuses_weights_that_have_changed(fetches: Fetches, demo_folder: ModelFolder) -> None:
    task1 = fetches.root / "task1"
    for _ in range(2):
        fetches.succeeds()
        shutil.rmtree(task1)
    fetches.serve(zipped(model_files(demo_folder, f"{TASK1}/", {"0": "1"})))
    text = fetches.fails(DownloadError, f"{fetches.zenodo}/{RECORD}/files/{ARCHIVE}/content")
    assert f"remove {record_path(task1)} to accept the new file" in text
    record_path(task1).unlink()
    fetches.succeeds()


@pytest.mark.usefixtures("winner_record")
def test_downloads_nothing_without_torch(fetches: Fetches, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("pantherseg.packing.pack")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    text = fetches.fails(ModelError, "winner-task1")
    assert text.endswith("found no torch; pip install 'pantherseg[cuda]'")
    assert fetches.server.pages[f"/api/records/{RECORD}"].requests == []


@pytest.mark.parametrize(("package", "extra"), [("requests", "fetch"), ("mrsegmentator.config", "cuda")])
def test_names_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "pantherseg.weights.downloads")
    result = run("weights", "fetch", "mrsegmentator", "--to", tmp_path)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install 'pantherseg[{extra}]'")
    assert run("weights", "list", "--to", tmp_path).exit_code == 0


@fault("two fetches of a model at the same time", "an error from the second; the first continues")
@pytest.mark.usefixtures("winner_record")
def test_refuses_a_second_fetch_at_the_same_time(fetches: Fetches) -> None:
    entry = find_weights(ZOO_ENTRIES, "winner-task1")
    first = fetch(entry, fetches.root, zoo=ZOO_ENTRIES, client=fetches.client, zenodo=fetches.zenodo)
    next(first)
    for name in ("winner-task1", "baseline-task1"):
        assert "one that is running" in fetches.fails(OutputError, Path(".fetch", "task1.lock"), name)
    *_, last = first
    assert last.endswith(INSTALLED)


@fault(
    "the disk fails when the model is installed; then it works",
    "an error, and nothing installed; then the model, without another download",
)
@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_installs_after_an_error_without_another_download(fetches: Fetches, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if target == fetches.root / "task1":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        text = fetches.fails(OutputError, Path("task1"))
        assert text.endswith("expected to install a model, found Input/output error")
    assert fetches.installed() == {}
    assert run("weights", "verify", "--to", fetches.root).exit_code == 0
    fetches.succeeds()
    assert len(fetches.page().requests) == 1


@fault(
    "no room to unpack an archive; then there is room",
    "an error that says how much is needed; then the model, without another download",
)
@pytest.mark.usefixtures("winner_record")
def test_unpacks_once_the_disk_has_room(fetches: Fetches, winner: bytes, small_disk: SmallDisk) -> None:
    fetches.root = small_disk(len(winner) * 3 // 2)
    assert " MB free" in fetches.fails(OutputError, Path(".fetch", "winner-task1", ".build", "source"))
    small_disk(len(winner) * 4)
    assert fetches.succeeds()[-1].endswith(INSTALLED)
    assert len(fetches.page().requests) == 1


@pytest.mark.usefixtures("winner_record")
def test_fetches_by_command(fetches: Fetches) -> None:
    result = run("weights", "fetch", "winner-task2", "--to", fetches.root, "--zenodo", fetches.zenodo)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    result = run("weights", "fetch", "winner", "--to", fetches.root)
    assert result.exit_code == 1
    assert "expected one of winner-task1, winner-task2," in result.stderr


@pytest.mark.slow
def test_fetches_from_a_url(fetches: Fetches, winner: bytes) -> None:
    url = fetches.server.url("/a/Dataset901.zip?download=1")
    source = {"kind": "url", "url": url, "size": len(winner), "sha256": hashlib.sha256(winner).hexdigest()}
    known = msgspec.to_builtins(find_weights(ZOO_ENTRIES, "winner-task1"))
    entry = msgspec.convert(known | {"source": source}, Weights)
    fetches.server.pages["/a/Dataset901.zip?download=1"] = Page(winner)
    lines = list(fetch(entry, fetches.root, zoo=ZOO_ENTRIES, client=fetches.client))
    assert lines[1].startswith("Dataset901.zip: ")
    (found,) = installations([entry], fetches.root)
    assert (found.installed, found.download_size) == (True, len(winner))


def kill_when(command: list[str], condition: Callable[[], bool]) -> None:
    """Start a process and kill it once the condition holds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not condition():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


@fault(
    "SIGKILL twice during the download, and once during packing",
    "nothing installed; then the model, continued from there",
)
@pytest.mark.slow
@pytest.mark.usefixtures("winner_record")
def test_continues_after_being_killed(fetches: Fetches, winner: bytes) -> None:
    page = fetches.page()
    page.pause = 0.02
    command = [sys.executable, "-m", "pantherseg", "weights", "fetch", "winner-task1"]
    command += ["--to", str(fetches.root), "--zenodo", fetches.zenodo]
    part = fetches.root / fetches.download(file=f"{ARCHIVE}.part")
    for share in (0.2, 0.6):
        received = int(share * len(winner))
        kill_when(command, lambda received=received: part.is_file() and part.stat().st_size > received)
        assert fetches.installed() == {}
    page.pause = 0
    build = fetches.root / fetches.download(file=".build")
    kill_when(command, lambda: any(build.glob(".model.*.part")))
    assert fetches.installed() == {}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The last run had everything, and each one before continued where the previous one ended.
    offsets = [int((span or "bytes=0-").removeprefix("bytes=").removesuffix("-")) for span in page.requests]
    assert len(offsets) == 3
    assert offsets[0] == 0 < 0.2 * len(winner) < offsets[1] < 0.6 * len(winner) < offsets[2]
    pack_models(fetches.root, fetches.root.with_name("packed"), load_recipe(task_recipe(1)))
