"""Folders of volumes: progress, cases that are finished, cases that fail, runs that are interrupted, and the page."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conftest import run_python, valid_report
from pantherseg import fingerprint
from pantherseg.batch import Wanted, run_batch
from pantherseg.cli import main as pantherseg
from pantherseg.errors import InputError
from pantherseg.fingerprint import finished_report
from pantherseg.io import read_labels, write_volume
from pantherseg.io.digest import sha256_of, source_sha256
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.postprocess import Rescue
from pantherseg.progress import cases_with_progress, in_words
from pantherseg.recipe import Recipe
from pantherseg.session import Session
from pantherseg.volume import Grid, Volume

GRID = Grid((12, 24, 24), (4.0, 3.0, 3.0))
NAMES = ("a", "b", "c")


def volume(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).normal(100, 20, GRID.shape).astype(np.float32), GRID)


def write_all(folder: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_volume(volume(seed), folder / f"{name}.mha")
    return folder


@pytest.fixture(scope="module")
def session(one_fold: Recipe) -> Session:
    return Session(one_fold, DEMO_WEIGHTS, device="cpu", many_cases=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Path:
    """A folder with the volumes in `in`, and what a run made of them in `out`."""
    folder = tmp_path_factory.mktemp("done")
    assert run_batch(write_all(folder / "in"), folder / "out", session) == []
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """A copy of `done` that a test may change."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_finished(folder: Path, session: Session, name: str = "a") -> bool:
    out = folder / "out"
    source, mask, report = folder / "in" / f"{name}.mha", out / f"{name}.mha", out / f"{name}.json"
    return finished_report(source, session, results=[mask], report=report) is not None


def test_a_report_says_what_the_case_was_made_from(done: Path) -> None:
    reports = [valid_report(done / "out" / f"{name}.json") for name in NAMES]
    for name, report in zip(NAMES, reports, strict=True):
        assert report["fingerprint"]["input_sha256"] == sha256_of(done / "in" / f"{name}.mha")
        assert report["mask_sha256"] == sha256_of(done / "out" / f"{name}.mha")
    assert len({json.dumps({**report["fingerprint"], "input_sha256": ""}) for report in reports}) == 1


@pytest.mark.slow
def test_skips_finished_cases_and_does_the_others(
    folder: Path, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pantherseg")
    before = contents(folder)
    assert run_batch(folder / "in", folder / "out", session) == []
    assert contents(folder) == before
    assert any(message.startswith("3 of 3 volumes are finished and skipped: ") for message in caplog.messages)
    write_volume(volume(9), folder / "in" / "d.mha")
    (folder / "out" / "b.mha").unlink()
    caplog.clear()
    assert run_batch(folder / "in", folder / "out", session) == []
    assert any(message.startswith("2 of 4 volumes are finished") for message in caplog.messages)
    assert [line for line in caplog.messages if " volumes done" in line][-1] == "2 of 2 volumes done"
    after = contents(folder / "out")
    assert set(after) == {f"{name}.{suffix}" for name in (*NAMES, "d") for suffix in ("mha", "json")}
    assert {name: after[name] for name in ("a.json", "c.json", "b.mha")} == {
        name: before[f"out/{name}"] for name in ("a.json", "c.json", "b.mha")
    }


@pytest.mark.slow
def test_redo_segments_finished_cases_again(folder: Path, session: Session) -> None:
    before = sorted((folder / "out").iterdir())
    for path in before:
        os.utime(path, (0, 0))
    run_batch(folder / "in", folder / "out", session, redo=True)
    assert sorted((folder / "out").iterdir()) == before
    assert all(path.stat().st_mtime > 0 for path in before)


def test_a_single_volume_that_is_finished_is_skipped(folder: Path, session: Session) -> None:
    before = contents(folder)
    run_batch(folder / "in" / "a.mha", folder / "out", session)
    assert contents(folder) == before


def other_voxels(folder: Path) -> None:
    write_volume(volume(7), folder / "in" / "a.mha")


def no_mask(folder: Path) -> None:
    (folder / "out" / "a.mha").unlink()


def no_report(folder: Path) -> None:
    (folder / "out" / "a.json").unlink()


def another_mask(folder: Path) -> None:
    shutil.copy(folder / "in" / "b.mha", folder / "out" / "a.mha")


def half_a_report(folder: Path) -> None:
    path = folder / "out" / "a.json"
    path.write_text(path.read_text()[:300])


def report_of_another_case(folder: Path) -> None:
    shutil.copy(folder / "out" / "b.json", folder / "out" / "a.json")


def changed_report(folder: Path, **keys: object) -> None:
    path = folder / "out" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def another_version(folder: Path) -> None:
    changed_report(folder, pantherseg="0.0.1")


def a_damaged_fold(folder: Path) -> None:
    changed_report(folder, events=[{"code": "fold_left_out", "message": "damaged"}])


def no_fingerprint(folder: Path) -> None:
    path = folder / "out" / "a.json"
    content = json.loads(path.read_text())
    del content["fingerprint"]
    path.write_text(json.dumps(content))


CHANGES: list[Callable[[Path], None]] = [
    *(other_voxels, no_mask, no_report, another_mask, half_a_report, report_of_another_case, another_version),
    *(a_damaged_fold, no_fingerprint),
]


@pytest.mark.fault("ends", "a folder is segmented again after a change: {change}", "that case is segmented again")
@pytest.mark.parametrize("change", CHANGES)
def test_a_case_of_another_content_is_not_finished(
    folder: Path, session: Session, change: Callable[[Path], None]
) -> None:
    assert is_finished(folder, session)
    change(folder)
    assert not is_finished(folder, session)
    assert is_finished(folder, session, "c")


def test_a_case_of_another_recipe_or_other_models_is_not_finished(
    folder: Path, one_fold: Recipe, session: Session
) -> None:
    same = Session(msgspec.structs.replace(one_fold), DEMO_WEIGHTS, device="cpu")
    assert is_finished(folder, same)
    (member,) = one_fold.members
    for changes in (
        {"postprocess": ()},
        {"postprocess": (Rescue(max_mm3=100.0),)},
        {"time_budget_s": 5.0},
        {"members": [msgspec.structs.replace(member, folds=[1])]},
        {"members": [msgspec.structs.replace(member, mirroring=True)]},
    ):
        recipe = msgspec.structs.replace(one_fold, **changes)
        assert not is_finished(folder, Session(recipe, DEMO_WEIGHTS, device="cpu")), changes
    assert not is_finished(folder, Session(one_fold, DEMO_WEIGHTS, device="cpu", mode="fast"))


def test_other_weights_under_the_same_names_are_other_models(folder: Path, one_fold: Recipe, tmp_path: Path) -> None:
    models = tmp_path / "models" / "task1"
    shutil.copytree(DEMO_WEIGHTS / "task1", models)
    assert is_finished(folder, Session(one_fold, models.parent, device="cpu")), "the path of the models does not count"
    manifest = models / "manifest.json"
    content = json.loads(manifest.read_text())
    content["sha256"]["fold_0.safetensors"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert not is_finished(folder, Session(one_fold, models.parent, device="cpu"))


@pytest.mark.slow
def test_probabilities_that_are_wanted_and_missing_are_made(folder: Path, session: Session) -> None:
    run_batch(folder / "in", folder / "out", session, wanted=Wanted(probabilities=True))
    assert {path.name for path in (folder / "out").glob("*.npz")} == {"a.npz", "b.npz", "c.npz"}
    before = contents(folder)
    for wanted in (True, False):
        run_batch(folder / "in", folder / "out", session, wanted=Wanted(probabilities=wanted))
        assert contents(folder) == before
    (folder / "out" / "b.npz").unlink()
    (folder / "out" / "c.npz").write_bytes(before["out/c.npz"][:-1])
    run_batch(folder / "in", folder / "out", session, wanted=Wanted(probabilities=True))
    assert {name: contents(folder)[name] for name in ("out/b.npz", "out/c.npz")} == {
        name: before[name] for name in ("out/b.npz", "out/c.npz")
    }
    run_batch(folder / "in", folder / "out", session, redo=True)
    assert not list((folder / "out").glob("*.npz")), "those of an earlier run say nothing about the masks of this one"


@pytest.mark.slow
@pytest.mark.fault(
    "inputs",
    "a volume of a folder is damaged after a first run",
    "the masks of the others, an error, and no longer a mask of this one",
)
def test_a_case_that_fails_keeps_no_result_of_an_earlier_run(folder: Path, session: Session) -> None:
    (folder / "in" / "b.mha").write_text("no volume")
    (folder / "out" / "c.mha").unlink()
    assert run_batch(folder / "in", folder / "out", session) == [folder / "in" / "b.mha"]
    assert set(contents(folder / "out")) == {"a.mha", "a.json", "c.mha", "c.json"}


@pytest.mark.fault("inputs", "two volumes that would get the same mask", "an error for both, and masks of the others")
def test_two_files_of_a_case_do_not_stop_the_others(
    folder: Path, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(folder / "in" / "a.mha", folder / "in" / "d.nii.gz")
    shutil.copy(folder / "in" / "a.mha", folder / "in" / "d.mha")
    twice = [folder / "in" / "d.mha", folder / "in" / "d.nii.gz"]
    assert run_batch(folder / "in", folder / "out", session) == twice
    found = f"error: {twice[0]}: expected one file for this case, found also d.nii.gz; rename or remove one of them"
    assert found in caplog.messages
    assert caplog.messages[-1] == "error: 2 of 2 volumes failed: d.mha, d.nii.gz"


@pytest.mark.fault("inputs", "links of a folder that lead to each other", "an error for each, and masks of the others")
def test_links_in_a_circle_do_not_stop_the_others(folder: Path, session: Session) -> None:
    links = [folder / "in" / "x.mha", folder / "in" / "y.mha"]
    for link, other in zip(links, reversed(links), strict=True):
        link.symlink_to(other)
    assert run_batch(folder / "in", folder / "out", session) == links


@pytest.mark.slow
def test_a_volume_in_another_format_takes_the_place_of_the_earlier_mask(folder: Path, session: Session) -> None:
    (folder / "in" / "a.mha").unlink()
    write_volume(volume(0), folder / "in" / "a.nii.gz")
    assert run_batch(folder / "in", folder / "out", session) == []
    assert {path.name for path in (folder / "out").glob("a.*")} == {"a.nii.gz", "a.json"}


def test_a_single_case_that_fails_keeps_no_result_of_an_earlier_run(folder: Path, session: Session) -> None:
    (folder / "in" / "b.mha").write_text("no volume")
    with pytest.raises(InputError):
        run_batch(folder / "in" / "b.mha", folder / "out", session)
    assert not list((folder / "out").glob("b.*"))


def test_a_case_that_fails_leaves_files_of_other_programs(folder: Path, session: Session) -> None:
    (folder / "in" / "b.mha").write_text("no volume")
    (folder / "out" / "b.json").write_text('{"of": "another program"}')
    before = contents(folder / "out")
    assert run_batch(folder / "in", folder / "out", session) == [folder / "in" / "b.mha"]
    assert contents(folder / "out") == before


def test_the_content_of_folders_and_of_headers_with_a_data_file_counts(tmp_path: Path) -> None:
    header = tmp_path / "scan.mhd"
    write_volume(volume(0), header)
    (raw,) = (path for path in tmp_path.iterdir() if path != header)
    digests = [source_sha256(header), source_sha256(tmp_path), source_sha256(raw)]
    raw.write_bytes(raw.read_bytes()[:-1] + b"?")
    digests += [source_sha256(header), source_sha256(tmp_path), source_sha256(raw)]
    header.write_text(header.read_text().replace("ElementSpacing = 3", "ElementSpacing = 4"))
    digests += [source_sha256(header), source_sha256(tmp_path)]
    assert len(set(digests)) == len(digests)
    with pytest.raises(InputError) as caught:
        source_sha256(tmp_path / "missing.mha")
    assert caught.value.where == tmp_path / "missing.mha"


@given(st.floats(0, 1e6))
def test_durations_in_words_are_short(seconds: float) -> None:
    words = in_words(seconds)
    assert len(words) <= 12
    assert words.split()[1] in ("s", "min", "h")


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (61, "1 min"), (7500, "2 h 05 min"), (3599, "60 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_progress_is_a_line_for_each_case_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pantherseg")
    failed: list[str] = []
    with cases_with_progress(["x", "y"], unit="volume", total=2, failed=failed) as cases:
        assert next(cases) == "x"
        failed.append("y")
        assert list(cases) == ["y"]
    assert caplog.messages == ["1 of 2 volumes done, 1 failed, about 0 s left", "2 of 2 volumes done, 1 failed"]


TERMINAL = """
import logging
from pantherseg.logs import show_log
from pantherseg.progress import cases_with_progress
show_log()
with cases_with_progress(["x", "y"], unit="volume", total=2) as cases:
    for case in cases:
        logging.getLogger("pantherseg").info("case %s", case)
"""


def test_progress_is_a_bar_on_a_terminal_with_the_log_above_it() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    subprocess.run([sys.executable, "-c", TERMINAL], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    # The cursor goes back to the start of the line in which the bar was.
    lines = [line.rpartition("\r")[2] for line in shown.split("\r\n")]
    assert lines[:2] == ["case x", "case y"]
    assert "2/2" in lines[2]


def interruptible() -> None:
    """Let Ctrl-C end a command, even where a shell started these tests in the background and made them ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.fault(
    "ends",
    "{number} while a folder is segmented, after its first volume; then the same command",
    "no unfinished file in the folder; then the masks of an undisturbed run, the first one as it was",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_is_resumed(tmp_path: Path, number: signal.Signals) -> None:
    source, output = write_all(tmp_path / "in"), tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(task_recipe(1).read_text().replace('folds = "all"', "folds = [0]"))
    options = ["--recipe", str(recipe), "--device", "cpu"]
    command = [sys.executable, "-m", "pantherseg", "predict", str(source), str(output), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible) as started:
        assert started.stderr is not None
        while "1 of 3 volumes done" not in started.stderr.readline():
            assert started.poll() is None
        started.send_signal(number)
    finished = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    assert finished in (["a.json", "a.mha"], ["a.json", "a.mha", "b.json", "b.mha"])
    before = contents(output)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished) // 2} of 3 volumes are finished" in again.stderr
    after = contents(output)
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    undisturbed = tmp_path / "undisturbed"
    assert run_python("-m", "pantherseg", "predict", source, undisturbed, *options).returncode == 0
    assert set(after) == set(contents(undisturbed))
    for name in NAMES:
        assert after[f"{name}.mha"] == (undisturbed / f"{name}.mha").read_bytes()


@pytest.mark.slow
def test_predict_writes_a_page_of_all_cases(tmp_path: Path) -> None:
    source, output = write_all(tmp_path / "in"), tmp_path / "out"
    (source / "c.mha").write_text("no volume")
    arguments = ["predict", source, output, "--task", 1, "--device", "cpu", "--report"]
    result = CliRunner().invoke(pantherseg, [*map(str, arguments)])
    assert result.exit_code == 1
    page = (output / "report.html").read_text()
    assert all(f">{name}<" in page for name in NAMES)
    assert read_labels(output / "a.mha").grid.difference(GRID) == ""
    shutil.rmtree(output)
    result = CliRunner().invoke(pantherseg, ["predict", str(source / "b.mha"), str(output), *map(str, arguments[3:])])
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in output.iterdir()} == {"b.mha", "b.json", "report.html"}


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    source = write_all(tmp_path / "in")
    arguments = ["predict", source, tmp_path / "out", "--task", 1, "--report"]
    result = CliRunner().invoke(pantherseg, [*map(str, arguments)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: report: expected the package jinja2")
    assert not (tmp_path / "out").exists()


def test_the_version_is_part_of_what_is_compared(
    folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "__version__", "99.0")
    assert not is_finished(folder, session)
