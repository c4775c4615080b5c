"""Files are written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix import saw
from pantherseg.errors import OutputError
from pantherseg.files import temporary_folder, write_text, written_beside


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "still" / "a.json"
    with written_beside(path) as beside:
        assert beside.parent == path.parent
        assert beside.suffix == path.suffix
        beside.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old and longer")
    write_text(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path: Path, error: Exception) -> None:
    with written_beside(path) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("itk says\nno space\n"), OSError(28, "no space"), RuntimeError("")])
def test_a_failed_write_leaves_nothing_and_is_told_in_one_line(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "a.mha"
    with pytest.raises(OutputError) as caught:
        fail_halfway(path, error)
    assert str(caught.value).startswith(f"{path}: expected to write this file, found ")
    assert ("no space" in str(caught.value)) or str(caught.value).endswith("RuntimeError")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_older_file_and_other_errors_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        fail_halfway(path, KeyError("a bug"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), written_beside(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt"):
        with pytest.raises(OutputError, match=rf"{path}: expected to write this file"):
            write_text(path, "text")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_of_that_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError):
        write_text(tmp_path / "a.txt", "text")
    assert [(path.name, path.is_dir()) for path in tmp_path.iterdir()] == [("a.txt", True)]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user (root?) may write to read-only folders")
    yield folder
    folder.chmod(0o755)


def test_a_folder_that_may_not_be_written_to(read_only: Path) -> None:
    with pytest.raises(OutputError, match="Permission denied"):
        write_text(read_only / "a.txt", "text")
    assert list(read_only.iterdir()) == []


def test_a_pipe_that_looks_like_a_temporary_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.fault("ends", "SIGKILL in the middle of writing", "only hidden files, which the next process removes")
def test_what_a_killed_process_leaves_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, temporary = tmp_path / "out" / "a.txt", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    left = [*path.parent.iterdir(), *temporary.iterdir()]
    saw(f"{len(left)} hidden remains, {sum(not file.name.startswith('.') for file in left)} others")
    assert len(left) == 2
    assert all(file.name.startswith(".") for file in left)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    mine = path.with_name(f".{os.getppid()}.{path.name}")  # of a process that is alive
    mine.write_text("still written to")
    write_text(path, "whole")
    assert sorted(path.parent.iterdir()) == sorted([path, mine])
    folders = [temporary_folder(), temporary_folder()]
    saw(f"{sum(file.exists() for file in left)} remains after the next process")
    assert sorted(temporary.iterdir()) == sorted(folders), "what is held is kept"


@pytest.mark.parametrize("name", ["a\nb[*]?.txt", "体" * 80])
def test_names_of_any_letters(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]
