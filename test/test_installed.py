"""`weights list` and `weights verify` say what is installed, and whether it is intact."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pantherseg.errors import ModelError
from pantherseg.model_sources.nnunet import CHECKPOINT, PLANS
from pantherseg.models.find import ModelFolder
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.weights.installed import record_path
from published import ARCHIVE, BEST, RECORD, TASK1, ZOO_ENTRIES, Fetches, model_files, run, zipped
from served import Page

pytestmark = pytest.mark.usefixtures("one_graph")


def verify(root: Path, *names: str) -> list[str]:
    """Return the lines that `weights verify` prints."""
    result = run("weights", "verify", *names, "--to", root)
    assert result.exit_code == ("DAMAGED" in result.stdout)
    return result.stdout.splitlines()


def rows(root: Path) -> dict[str, str]:
    """Return the lines of the table by their name."""
    result = run("weights", "list", "--to", root)
    assert result.exit_code == 0
    return {line.split()[0]: line for line in result.stdout.splitlines()[1:]}


@pytest.mark.usefixtures("winner_record")
def test_lists_what_is_installed(fetches: Fetches) -> None:
    before = rows(fetches.root)
    assert list(before) == [entry.name for entry in ZOO_ENTRIES]
    assert all(row.endswith(" -") for row in before.values())
    fetches.succeeds()
    after = rows(fetches.root)
    assert after["winner-task1"].endswith(str(fetches.root / "task1"))
    assert after["winner-task1"].split()[2:4] == [f"{len(fetches.page().content) / 1e6:.0f}", "cc-by-4.0"]
    assert after["baseline-task1"].endswith("no; the folder holds winner-task1")


@pytest.mark.usefixtures("winner_record")
def test_names_a_damaged_record(fetches: Fetches) -> None:
    record = record_path(fetches.root / "task1")
    record.parent.mkdir()
    record.write_text("{")
    assert f"damaged: {record}: expected a record of what was fetched" in rows(fetches.root)["winner-task1"]
    assert [line.partition(": ")[0] for line in verify(fetches.root)] == [f"DAMAGED  {record}"]
    fetches.fails(ModelError, record)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("list", "expected a folder"),
        ("verify", "expected a folder"),
        ("fetch winner-task1", "failed to write to this folder: Not a directory"),
    ],
)
def test_refuses_a_file_as_folder_of_models(tmp_path: Path, command: str, message: str) -> None:
    file = tmp_path / "file"
    file.touch()
    result = run("weights", *command.split(), "--to", file)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {file}")
    assert message in line


def test_says_that_nothing_is_installed(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        assert verify(folder)[0].startswith(f"ok       {folder}: no weights are installed")


def test_verifies_models_that_were_not_fetched(demo_folder: ModelFolder, tmp_path: Path) -> None:
    task1 = tmp_path / "task1"
    task1.touch()
    assert verify(tmp_path) == [f"DAMAGED  {task1}: expected a model folder, found a file"]
    task1.unlink()
    task1.symlink_to(tmp_path / "missing")
    assert verify(tmp_path) == [f"DAMAGED  {task1}: expected a model folder, found a dangling link"]
    task1.unlink()
    model = task1 / "Dataset901" / "T__P__3d"
    shutil.copytree(demo_folder.path, model)
    (line,) = verify(tmp_path)
    assert line.startswith(f"ok       {task1} (not fetched): folds 0 1 2 3 4 of {CHECKPOINT}; not fetched, so ")
    (model / "fold_3" / CHECKPOINT).unlink()
    (line,) = verify(tmp_path)
    assert line.startswith(f"DAMAGED  {model / 'fold_3' / CHECKPOINT}: ")
    (model / PLANS).unlink()
    (line,) = verify(tmp_path)
    assert line.startswith(f"DAMAGED  {task1}: expected one bundle or nnU-Net model folder")


@pytest.mark.usefixtures("winner_record")
@pytest.mark.slow
def test_verifies_every_file_of_a_bundle(fetches: Fetches) -> None:
    fetches.succeeds()
    task1, localizer = fetches.root / "task1", fetches.root / "localizer"
    shutil.copytree(DEMO_WEIGHTS / "localizer", localizer)
    first, second = verify(fetches.root)
    assert first == f"ok       {task1} (winner-task1): folds 0 1 2 3 4 of {BEST}, labels 1 tumour, 2 pancreas"
    assert second.startswith(f"ok       {localizer} (not fetched): folds 0 of {CHECKPOINT}, labels 1 spleen, ")
    for name in ("fold_4.safetensors", "manifest.json", PLANS):
        path = task1 / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-2] + bytes([intact[-2] ^ 1]) + intact[-1:])
        (line,) = verify(fetches.root, "winner-task1")
        assert line.startswith(f"DAMAGED  {path}: expected SHA-256")
        path.write_bytes(intact)
    assert verify(fetches.root, "winner-task1") == [first]
    for name in ("winner-task2", "baseline-task1", "mrsegmentator"):
        result = run("weights", "verify", name, "--to", fetches.root)
        assert result.exit_code == 1
        assert f"expected {name}, found" in result.stderr


def test_verifies_an_nnunet_folder(fetches: Fetches, demo_folder: ModelFolder) -> None:
    archive = zipped(model_files(demo_folder, f"{TASK1}/", {"all": "0"}))
    fetches.server.add_record(RECORD, {f"PancCT_{ARCHIVE}": Page(archive)})
    name = "panc-ct-multitalent-v2"
    fetches.succeeds(name)
    assert verify(fetches.root) == [f"ok       {fetches.root / name} ({name}): 3 files"]
    checkpoint = fetches.root / name / "fold_all" / BEST
    checkpoint.write_bytes(b"damaged")
    (line,) = verify(fetches.root)
    assert line.startswith(f"DAMAGED  {checkpoint}: expected SHA-256")
