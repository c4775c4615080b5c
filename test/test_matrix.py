"""The fault matrix: that docs/reliability.md is what its tests make of it, and how it shows what went wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from matrix import COLUMNS, FAILED, NOT_RUN, PAGE, Row, page
from pantherseg.paths import ROOT

LEAST_ROWS = 60
CAME_OUT = COLUMNS.index("what came out")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of a page's rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(f"| {COLUMNS[0]} ")]
    return [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]


def pytest_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_page_is_of_the_marked_tests(tmp_path: Path) -> None:
    made = tmp_path / "page.md"
    done = pytest_in(ROOT, "--collect-only", "--matrix", f"--matrix-page={made}")
    assert done.returncode == 0, done.stdout
    expected, found = rows_of(made.read_text(encoding="utf-8")), rows_of(PAGE.read_text(encoding="utf-8"))
    assert all(len(row) == len(COLUMNS) for row in found)
    assert len(found) >= LEAST_ROWS
    assert [row[CAME_OUT] for row in found if row[CAME_OUT].startswith((FAILED, NOT_RUN))] == []
    for row in (*expected, *found):
        del row[CAME_OUT]
    assert found == expected, "write the page again: pytest --matrix"


TESTS = """
import pytest
from matrix import ended, quoted, saw

def row(done):
    return pytest.mark.fault("inputs", done, "what a user needs")

@row("passes with {word}, [{id}]")
@pytest.mark.parametrize("word", ["a|b"])
def test_a(word, tmp_path):
    saw(f"{tmp_path / 'a.mha'}", quoted("http://127.0.0.1:4711/x"), quoted("`" + 64 * "0" + "`"), ended(0, "12.3 s"))
    saw(*[ended(number, f"error: {number}\\n") for number in (1, 2, 2, 1, 3)], quoted("x" * 1000))

@row("fails")
def test_b():
    saw("something")
    assert 1 == 2

@row("is left out unless asked for")
@pytest.mark.full
def test_c():
    saw([], [str(1)], ["one", "two", "one"])

@row("cannot be made")
def test_d():
    pytest.skip("no engine")

@row("says nothing")
def test_e():
    pass

def test_unmarked():
    raise AssertionError("not asked for")
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with tests of its own and the same plugin."""
    options = 'addopts = "--strict-markers -m \'not full\'"\nmarkers = ["fault(a, b, c): a", "full: b"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\npythonpath = ['{ROOT}/test']\n{options}")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["matrix"]\n')
    return tmp_path


def test_every_end_of_a_test_is_shown(other: Path) -> None:
    (other / "test_it.py").write_text(TESTS)
    done = pytest_in(other, "--matrix", "--matrix-page=page.md")
    assert done.returncode == 1
    assert "page.md: 5 rows, 2 failed, 1 not run\n" in done.stdout
    rows = rows_of((other / "page.md").read_text(encoding="utf-8"))
    assert {row[1] for row in rows} == {"what a user needs"}
    (passed, failed, left_out, skipped, silent) = rows
    assert passed[0] == r"passes with a\|b, [a\|b]"
    assert passed[3] == r"`test_it.py::test_a[a\|b]`"
    seen = "a.mha; `http://server/x`; `'…'`; exit code 0; exit code 1, last line `error: 1`; and 3 more"
    assert passed[CAME_OUT] == seen
    assert failed[CAME_OUT].startswith(f"{FAILED}: ")
    assert "1 == 2" in failed[CAME_OUT]
    assert left_out[CAME_OUT] == "no event; event `1`; events `one` `two`"
    assert skipped[CAME_OUT] == f"{NOT_RUN}: `no engine`"
    assert silent[CAME_OUT].startswith(f"{FAILED}: ")
    assert "found none" in silent[CAME_OUT]


@pytest.mark.parametrize("words", ['"inputs", "done"', '"nothing", "done", "must"', '"inputs", "done", must="must"'])
def test_a_mark_of_another_form_is_refused(other: Path, words: str) -> None:
    (other / "test_it.py").write_text(f"import pytest\n@pytest.mark.fault({words})\ndef test_it(): pass\n")
    done = pytest_in(other, "--matrix", "--matrix-page=page.md")
    assert done.returncode != 0
    assert "test_it.py::test_it: expected one fault(subject, done, must)" in done.stdout + done.stderr
    assert pytest_in(other).returncode != 0


def test_subjects_are_in_their_order() -> None:
    text = page([Row("downloads", "a", "b", "t"), Row("inputs", "c", "d", "u")])
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Volumes", "## Published weights"]


@pytest.mark.parametrize(
    "options", [["test/test_cpus.py"], ["--matrix-page=test/test_cpus.py"], ["--matrix-page=no/a.md"]]
)
def test_what_is_no_page_is_not_written_over(options: list[str]) -> None:
    before = PAGE.read_bytes()
    done = pytest_in(ROOT, "--matrix", "--collect-only", *options)
    assert done.returncode != 0
    assert "--matrix" in done.stderr
    assert PAGE.read_bytes() == before


@pytest.mark.slow
def test_the_projects_page_is_written_of_every_row_or_not_at_all() -> None:
    before = PAGE.read_bytes()
    done = pytest_in(ROOT, "--matrix", "--collect-only")
    assert "reliability.md is left as it was" in done.stdout
    assert PAGE.read_bytes() == before
