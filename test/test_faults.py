"""The table of faults: docs/reliability.md has a row for each marked test, and no row that failed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from faults import COLUMNS, PAGE

TEST_FOLDER = Path(__file__).parent
MARKED = """
import pytest

@pytest.mark.fault("{subject}", "passes with {{word}}, [{{id}}]", "a mask")
@pytest.mark.parametrize("word", ["a|b"])
def test_a(word):
    pass

@pytest.mark.fault("{subject}", "fails", "a mask")
def test_b():
    assert 1 == 2

@pytest.mark.fault("{subject}", "is skipped", "a mask")
@pytest.mark.slow
def test_c():
    pytest.skip("no engine")

def test_unmarked():
    raise AssertionError("must not run")
"""


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of a page's rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(f"| {COLUMNS[0]} ")]
    return [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]


def pytest_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the plugin and the project's markers."""
    markers = 'addopts = "-m \'not slow\'"\nmarkers = ["fault(a, b, c): a", "slow: b"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\npythonpath = ['{TEST_FOLDER}']\n{markers}")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["faults"]\n')
    return tmp_path


@pytest.mark.slow
def test_the_page_has_a_row_for_each_marked_test(tmp_path: Path) -> None:
    made = tmp_path / "page.md"
    done = pytest_in(TEST_FOLDER.parent, "--collect-only", f"--faults={made}")
    assert done.returncode == 0, done.stdout
    expected, found = rows_of(made.read_text(encoding="utf-8")), rows_of(PAGE.read_text(encoding="utf-8"))
    result = COLUMNS.index("result")
    assert {row[result] for row in found} == {"passed"}
    for row in (*expected, *found):
        del row[result]
    assert found == expected, "write the page again: pytest --faults"


@pytest.mark.slow
def test_shows_the_result_of_each_marked_test(project: Path) -> None:
    (project / "test_it.py").write_text(MARKED.format(subject="inputs"))
    done = pytest_in(project, "--faults=page.md")
    assert done.returncode == 1
    assert "page.md: 3 rows, 1 passed, 1 failed, 1 skipped\n" in done.stdout
    assert rows_of((project / "page.md").read_text(encoding="utf-8")) == [
        [r"passes with a\|b, [a\|b]", "a mask", "passed", r"`test_it.py::test_a[a\|b]`"],
        ["fails", "a mask", "failed", "`test_it.py::test_b`"],
        ["is skipped", "a mask", "skipped", "`test_it.py::test_c`"],
    ]


@pytest.mark.slow
def test_refuses_an_unknown_subject(project: Path) -> None:
    (project / "test_it.py").write_text(MARKED.format(subject="nothing"))
    done = pytest_in(project, "--faults=page.md")
    assert done.returncode != 0
    assert "expected one fault(subject, done, must)" in done.stdout + done.stderr


def test_refuses_to_write_over_a_test_module(project: Path) -> None:
    (project / "test_it.py").write_text("")
    done = pytest_in(project, "--faults", "test_it.py")
    assert done.returncode != 0
    assert "expected an .md file, found test_it.py" in done.stderr
