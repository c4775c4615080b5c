"""The table of faults, docs/reliability.md: tests marked `fault`, and whether they passed.

    @pytest.mark.fault("inputs", "a spacing is negative", "an error that names the file and the spacing")

is a row: the subject, what is done, and what must come out. `{name}` in it is the test's parameter of that name, `{id}`
the text in brackets behind the test's name. `pytest --faults` runs the marked tests and writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
# The subjects of marks, in the page's order.
SUBJECTS = {
    "inputs": "Volumes",
    "dicom": "DICOM series and objects",
    "data": "Data sets for training",
    "training": "Training",
    "jobs": "Jobs",
    "models": "Models and folds",
    "localizer": "The localizer",
    "memory": "Devices and memory",
    "time": "Time",
    "ends": "Ends of a process",
    "server": "The server of the `invoke` contract",
    "platform": "The platform's own runner, and the images in Docker",
    "outputs": "What the platform would refuse",
    "downloads": "Published weights",
    "evaluation": "Predictions, references and reports",
    "selection": "Choosing an ensemble",
    "cohorts": "Cohorts",
}
HEAD = """\
# Faults that were tried

Whatever is wrong with a volume, a model, a machine or the time, a case ends in one of two ways. Either there is a valid
mask, and an event in `results.json` and in the log for everything that was left out; or there is an error whose last
line says what is wrong with which file, and no result in the output folder.

Each row is a test. This page is written by

    .venv/bin/python -m pytest --faults

as root on a machine with Docker and the built images. `python -m bench.soak` sends 200 volumes of any geometry through
one process ([last result](../bench/results/soak.json)), and `python -m bench.fuzz` damages files at random; files that
revealed a fault became tests. `bench/reliability.sh` runs all of it.
"""
COLUMNS = ("what is done", "what must come out", "result", "test")
NOT_RUN = "not run"


def refused(done: str) -> pytest.MarkDecorator:
    """Return the mark of a volume file that must be refused."""
    return pytest.mark.fault("inputs", done, "an error that names the file and what is wrong")


@dataclass
class Row:
    """A marked test and its result."""

    subject: str
    done: str
    must: str
    test: str
    result: str = NOT_RUN

    @classmethod
    def of(cls, item: pytest.Item) -> Row | None:
        """Return a test's row, None without the mark. Raises pytest.UsageError for a mark of another form."""
        marks = list(item.iter_markers("fault"))
        if not marks:
            return None
        words = marks[0].args
        if len(marks) > 1 or marks[0].kwargs or len(words) != 3 or words[0] not in SUBJECTS:
            subjects = ", ".join(SUBJECTS)
            raise pytest.UsageError(f"{item.nodeid}: expected one fault(subject, done, must), subjects: {subjects}")
        values = {}
        if (callspec := getattr(item, "callspec", None)) is not None:
            values = {"id": callspec.id} | {name: _text_of(value) for name, value in callspec.params.items()}
        done, must = (text.format_map(values) for text in words[1:])
        return cls(words[0], done, must, item.nodeid.removeprefix("test/"))

    def as_line(self) -> str:
        """Return the row of a Markdown table."""
        cells = (self.done, self.must, self.result, f"`{self.test}`")
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _text_of(value: object) -> str:
    """Return a test's parameter in words: a function or a signal by its name."""
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    return str(value) if name is None else str(name).replace("_", " ")


def page(rows: list[Row]) -> str:
    """Return the page: a table for each subject, its rows in the order of the tests."""
    tables = []
    for subject, title in SUBJECTS.items():
        lines = [row.as_line() for row in rows if row.subject == subject]
        if lines:
            head = [f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            tables.append("\n".join([*head, *lines]) + "\n")
    return "\n".join([HEAD, *tables])


@dataclass
class Table:
    """Collects the rows and their results, and writes the page at the end."""

    path: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Make a row of each marked test."""
        for item in items:
            if (row := Row.of(item)) is not None:
                self.rows[item.nodeid] = row

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the result of a test."""
        if report.failed or report.skipped or report.when == "call":
            self.rows[report.nodeid].result = report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the page and say what is in it."""
        self.path.write_text(page(list(self.rows.values())), encoding="utf-8")
        results = [row.result for row in self.rows.values()]
        counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
        terminalreporter.write_line(f"{self.path}: {len(results)} rows, {counts}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the page."""
    text = "run the tests marked `fault` and write their table to PAGE"
    parser.addoption("--faults", type=Path, nargs="?", const=PAGE, metavar="PAGE", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Select the marked tests, whatever else they are marked with, where the page is wanted."""
    if (path := config.option.faults) is None:
        return
    if config.option.numprocesses:
        raise pytest.UsageError("--faults: expected tests in one process, found -n; leave it out")
    if path.suffix != ".md":  # pytest would take the name of a test module for the option's value
        raise pytest.UsageError(f"--faults: expected an .md file, found {path}")
    config.option.markexpr = "fault"
    config.pluginmanager.register(Table(path))
