"""Result files are complete or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pantherseg.errors import OutputError
from pantherseg.files import folder_written_beside, remove_file, temporary_folder, write_text, written_beside


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "still" / "a.json"
    with written_beside(path) as beside:
        assert beside.parent == path.parent
        assert beside.suffix == path.suffix
        beside.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


def test_writes_text_in_utf8_and_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old and longer")
    write_text(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_looks_for_leftovers_only_where_there_can_be_any(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with folder_written_beside(path) as beside:
        left = beside / ".9999999.a.txt"
        left.write_text("as if another process had left it")
        write_text(beside / "a.txt", "text")
        assert left.exists(), "a folder was listed for each of its files"
        left.unlink()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["a.txt"]
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path: Path, error: Exception) -> None:
    with written_beside(path) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("itk says\nno space\n"), "no space"),
        (OSError(28, "no space"), "no space"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_a_failed_write_is_one_line_and_leaves_no_file(tmp_path: Path, error: Exception, reason: str) -> None:
    path = tmp_path / "a.mha"
    with pytest.raises(OutputError) as caught:
        fail_halfway(path, error)
    text = str(caught.value)
    assert text.startswith(f"{path}: failed to write this file: ")
    assert reason in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_and_the_older_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        fail_halfway(path, KeyError("a bug"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_a_block_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError), written_beside(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt", tmp_path / "folder"):
        reason = "expected a file" if path.is_dir() else "failed to write this file"
        with pytest.raises(OutputError, match=rf"{path}: {reason}"):
            write_text(path, "text")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_removes_a_file_but_not_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    remove_file(path)
    path.write_text("old")
    remove_file(path)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(OutputError, match=rf"{path}: failed to remove this file: "):
        remove_file(path)


def test_leaves_a_pipe_with_the_name_of_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.mkfifo(tmp_path / ".pantherseg-pipe")
    assert temporary_folder().is_dir()
    assert (tmp_path / ".pantherseg-pipe").is_fifo()


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from pantherseg.files import temporary_folder, written_beside
(temporary_folder() / "bundle").write_text("half")
with written_beside(Path(sys.argv[1])) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault("ends", "SIGKILL while a file is written", "only hidden files, which the next process removes")
def test_the_next_process_removes_the_files_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, temporary = tmp_path / "out" / "a.txt", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    left = [*path.parent.iterdir(), *temporary.iterdir()]
    hidden = [file for file in left if file.name.startswith(".")]
    assert len(hidden) == len(left) == 2
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    unfinished = path.with_name(f".{os.getppid()}.{path.name}")
    unfinished.write_text("of a process that is running")
    write_text(path, "complete")
    assert sorted(path.parent.iterdir()) == sorted([path, unfinished])
    folders = [temporary_folder(), temporary_folder()]
    assert sorted(temporary.iterdir()) == sorted(folders), "folders in use are kept"


@pytest.mark.parametrize("name", ["a\nb[*]?.txt", "体" * 80])
def test_writes_names_with_any_characters(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]
