"""The fault matrix: tests marked `fault`, and what came out of each, as a page.

    @pytest.mark.fault("inputs", "a spacing is negative", "an error that names the file and the spacing")

is a row: its subject, what is done, what must come out. `{name}` in it is the test's parameter of that name, `{id}`
what stands in brackets behind the test's name.
What came out is what the test gives to `saw`, often through a helper that it uses anyway; a marked test that gives
nothing fails. `pytest --matrix` runs the marked tests, every one of them and no other, and writes docs/reliability.md.

PYTEST_DONT_REWRITE: conftest imports this before pytest does, and it asserts nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pantherseg.errors import PantherSegError, printable
from pantherseg.events import Event
from pantherseg.paths import ROOT
from pantherseg.pipeline import Segmentation

PAGE = ROOT / "docs" / "reliability.md"
# The subjects of marks, in the page's order.
SUBJECTS = {
    "inputs": "Volumes",
    "jobs": "Jobs",
    "models": "Models and folds",
    "localizer": "The localizer",
    "memory": "Devices and memory",
    "time": "Time",
    "ends": "Ends",
    "platform": "The platform's own runner, and the images in Docker",
    "outputs": "What the platform would refuse",
    "downloads": "Published weights",
}
HEAD = """\
# No case is ever lost

Whatever is wrong with a volume, a model, a machine or the time, a case ends in one of two ways: with a valid mask, and
an event with a name in `results.json` and in the log for everything that was left out; or with an error whose last line
says where, what was expected and what was found, and with no result in the output folder.

Each row below is a test that does it. What came out is what the test has seen: exit codes, last lines, events, masks.
This page is written by

    .venv/bin/python -m pytest --matrix

as root where Docker answers, the images are built and `gcc`, `faketime` and Python 3.12 are there. A row whose test
failed or was not run says so, and `test/test_matrix.py` takes no page with such a row, nor one whose rows are not the
marked tests. Folders of this machine and of the test are left out of paths; ports, dates, checksums and durations are
`…`. The masks are those of the demo models, and voxels at their borders may differ between kinds of CPUs.

Beside single faults: `python -m bench.soak` sends 200 volumes of any geometry through one process
([what it saw last](../bench/results/soak.json)), and `python -m bench.fuzz` damages files in whatever way reaches new
lines of the readers; files that were faults are tests now. `bench/reliability.sh` makes the images and runs all of it.
"""
COLUMNS = ("what is done", "what must come out", "what came out", "test")
# Of one thing seen, and of things in a row.
SHOWN_CHARACTERS, SHOWN_THINGS = 240, 5
FAILED, NOT_RUN = "**failed**", "**not run**"
# What differs from run to run or from machine to machine, and what stands for it.
DIFFERENT = (
    (r"http://127\.0\.0\.1:\d+", "http://server"),
    (r"port=\d+", "port=…"),
    (r"\bpantherseg-check-\w+", "pantherseg-check-…"),
    (r"\.pantherseg-\w+", ".pantherseg-…"),
    (r"\b\d+ MB free", "… MB free"),
    (r"\b[0-9a-f]{32,}\b", "…"),
    (r"\b0x[0-9a-f]{6,}", "0x…"),
    # Sizes and first bytes of pickles and zip files are those of torch's release, and paths may be in them.
    (r"\b\d+ bytes, unreadable, beginning with b'(\\x80|PK)[^']*'", "… bytes, unreadable"),
    (r"\b\d+\.\d+ s\b", "… s"),
    (r"\b20\d\d-\d\d-\d\d\b", "…"),
)

_seen: list[str] = []
_folders: list[str] = []


def saw(*things: object) -> None:
    """Note what came out: an error, a segmentation, a case's events, or a phrase."""
    _seen.extend(_as_everywhere(_described(thing)) for thing in things)


def refused(done: str) -> pytest.MarkDecorator:
    """Return the mark of a file that must not be read."""
    return pytest.mark.fault("inputs", done, "an error that names the file and what is wrong")


def ended(code: int, stderr: str) -> str:
    """Return how a process ended as a phrase: its exit code and, where it failed, the last line of stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"exit code {code}" + (f", last line {quoted(lines[-1])}" if code and lines else "")


def quoted(text: str) -> str:
    """Return a text as code, in one line that is not too long."""
    return f"`{printable(_as_everywhere(text).replace('`', chr(39)), SHOWN_CHARACTERS)}`"


def _described(thing: object) -> str:
    if isinstance(thing, PantherSegError):
        return quoted(str(thing))
    if isinstance(thing, Segmentation):
        return f"a mask of {int(thing.mask.array.sum())} voxels, {_described(thing.events)}"
    if isinstance(thing, tuple | list):
        codes = dict.fromkeys(event.code if isinstance(event, Event) else str(event) for event in thing)
        return " ".join(["events", *map(quoted, codes)]) if len(codes) > 1 else _one_event(*codes)
    return str(thing)


def _name_of(value: object) -> str:
    """Return a test's parameter in words: a function or signal by its name."""
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    return str(value) if name is None else str(name).replace("_", " ")


def _one_event(code: str = "") -> str:
    return f"event {quoted(code)}" if code else "no event"


def _as_everywhere(text: str) -> str:
    """Return a text without what belongs to this run or this machine."""
    for folder in _folders:
        # A test's own folder, and others below pytest's.
        text = re.sub(rf"{re.escape(folder)}/[^/\s:;,'`]+/", "", text)
        text = re.sub(rf"{re.escape(folder)}(/[^/\s:;,'`]+)?", "the folder", text)
    text = text.replace(f"{ROOT}/", "").replace(f"{tempfile.gettempdir()}/", "")
    for pattern, stand_in in DIFFERENT:
        text = re.sub(pattern, stand_in, text)
    return text


@dataclass
class Row:
    """A marked test, and what became of it."""

    subject: str
    done: str
    must: str
    test: str
    came_out: str = NOT_RUN

    @classmethod
    def of(cls, item: pytest.Item) -> Row | None:
        """Return a test's row, None where it is not marked. Raises pytest.UsageError."""
        marks = list(item.iter_markers("fault"))
        if not marks:
            return None
        words = marks[0].args
        if len(marks) > 1 or marks[0].kwargs or len(words) != 3 or words[0] not in SUBJECTS:
            subjects = ", ".join(SUBJECTS)
            raise pytest.UsageError(f"{item.nodeid}: expected one fault(subject, done, must), subjects: {subjects}")
        named = {}
        if (callspec := getattr(item, "callspec", None)) is not None:
            named = {"id": callspec.id} | {name: _name_of(value) for name, value in callspec.params.items()}
        done, must = (text.format_map(named) for text in words[1:])
        return cls(words[0], done, must, item.nodeid.removeprefix("test/"))

    def as_line(self) -> str:
        """Return the row of a Markdown table."""
        cells = (self.done, self.must, self.came_out, f"`{self.test}`")
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page(rows: Iterable[Row]) -> str:
    """Return the page: what is in it, then a table for each subject, rows in the order of the tests."""
    contents, tables, rows = [], [], list(rows)
    for subject, title in SUBJECTS.items():
        lines = [row.as_line() for row in rows if row.subject == subject]
        if lines:
            contents.append(f"- {title}: {len(lines)} rows")
            head = [f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            tables.append("\n".join([*head, *lines]) + "\n")
    return "\n".join([HEAD, *contents, "", *tables])


@dataclass
class Matrix:
    """Collects rows and their outcomes, and writes the page at the end."""

    path: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Make a row of each marked test."""
        for item in items:
            if (row := Row.of(item)) is not None:
                self.rows[item.nodeid] = row

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of a test: its end or, where it had none, what was in the way."""
        row = self.rows[report.nodeid]
        if report.failed:
            lines = str(getattr(report.longrepr, "reprcrash", None) or report.longrepr).splitlines()
            row.came_out = f"{FAILED}: {quoted(lines[-1])}"
        elif report.skipped:
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            row.came_out = f"{NOT_RUN}: {quoted(reason.removeprefix('Skipped: '))}"
        elif report.when == "call":
            row.came_out = str(dict(report.user_properties)["came out"])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the page and say how many rows it has; the project's page only of rows that were all tried."""
        if self.path == PAGE and (left_out := [row for row in self.rows.values() if row.came_out == NOT_RUN]):
            terminalreporter.write_line(f"{PAGE} is left as it was: {len(left_out)} of {len(self.rows)} rows not tried")
            return
        self.path.write_text(page(self.rows.values()), encoding="utf-8")
        outcomes = [row.came_out.partition(":")[0] for row in self.rows.values()]
        counts = f"{len(outcomes)} rows, {outcomes.count(FAILED)} failed, {outcomes.count(NOT_RUN)} not run"
        terminalreporter.write_line(f"{self.path}: {counts}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the page."""
    parser.addoption("--matrix", action="store_true", help="run the tests marked `fault` and write their table")
    parser.addoption(
        "--matrix-page", type=Path, default=PAGE, metavar="PAGE", help="where, if not to the project's page"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Select the marked tests where the page is wanted, those marked `full` with them. Raises pytest.UsageError."""
    if not config.option.matrix:
        return
    path = config.option.matrix_page
    if path == PAGE and config.option.file_or_dir:
        raise pytest.UsageError(f"--matrix: {PAGE.name} is of every marked test; name another page for some of them")
    if path.suffix != ".md" or not path.absolute().parent.is_dir():
        raise pytest.UsageError(f"--matrix-page: expected an .md file in a folder that is there, found {path}")
    config.option.markexpr = "fault"
    config.pluginmanager.register(Matrix(path))


@pytest.fixture(scope="session", autouse=True)
def _folder_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    _folders.append(str(tmp_path_factory.getbasetemp()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Hand on what a test has seen."""
    _seen.clear()
    yield
    if Row.of(item) is None:
        return
    if not _seen:
        pytest.fail("expected saw(...) in a test marked `fault`, found none")
    seen = list(dict.fromkeys(_seen))
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        seen.sort()  # the examples come in any order
    more = [f"and {len(seen) - SHOWN_THINGS} more"] if len(seen) > SHOWN_THINGS else []
    item.user_properties.append(("came out", "; ".join(seen[:SHOWN_THINGS] + more)))
