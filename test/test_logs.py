"""Log lines and errors: one printable line each, whatever is in them."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from matrix import quoted, saw
from pantherseg.errors import InputError, PantherSegError, printable
from pantherseg.logs import OneLineFormatter, one_line, say_error

NASTY = "a\nb\x1b[31m\x00\ud800\u202eü体"


def test_what_cannot_be_shown_is_escaped() -> None:
    assert printable(NASTY) == r"a\nb\x1b[31m\x00\ud800\u202eü体"
    assert printable("größe 体積") == "größe 体積"


@pytest.mark.parametrize("length", [0, 1, 1999, 2000, 2001, 10**6])
def test_a_long_text_loses_its_middle(length: int) -> None:
    text = "start" + "x" * length + "end"
    shown = printable(text)
    assert len(shown) <= 2000
    assert shown.startswith("start")
    assert shown.endswith("end")
    assert (shown == text) == (len(text) <= 2000)


@pytest.mark.fault("ends", "an error quotes 100,000 letters, zeros or line ends", "one printable line below 8 KiB")
def test_an_error_is_one_short_line_whatever_it_quotes() -> None:
    for filler in (NASTY, "体" * 10**5, "\x00" * 10**5):
        text = str(InputError(filler, expected=filler, found=filler, hint=filler))
        assert text.isprintable()
        saw(f"{len(text.splitlines())} line of {len(text.encode())} bytes")
        assert len(text.encode()) < 8192
        assert ": expected " in text
        assert ", found " in text
    assert str(PantherSegError("a", expected="b\n  c", found=" d\te ")) == "a: expected b c, found d e"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(
            ValueError(NASTY),
            marks=pytest.mark.fault("ends", "an error that nobody expected", "a last line that names it, in one line"),
        ),
        OSError(5, "x" * 10**5, NASTY),
        KeyError(NASTY),
    ],
)
def test_an_unexpected_error_is_one_line_behind_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_line(error, NASTY).isprintable()
    say_error(error)
    lines = capsys.readouterr().err.splitlines()
    saw(f"last line {quoted(lines[-1])}")
    assert lines[-1] == f"error: {one_line(error)}"
    assert all(len(line.encode()) < 8192 and line.isprintable() for line in lines)
    assert len(lines) > 1


def test_a_log_record_is_one_line_and_its_traceback_has_lines_of_its_own() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter("%(message)s"))
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "read  %s", (NASTY,), (ValueError, error, None))
    handler.emit(record)
    lines = stream.getvalue().split("\n")
    assert lines[0] == f"read  {printable(NASTY)}"
    assert all(line.isprintable() for line in lines)
    assert len(lines) > 2


# Prints the number of the next file that is opened, with the streams closed that the test names.
NEXT_FILE = """
import sys
from pantherseg.logs import prepare_streams
prepare_streams()
print("to stdout"); print("to stderr", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno()))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("next") / "file"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", NEXT_FILE, str(path)]
    assert subprocess.run(command, check=False).returncode == 0
    assert int(path.read_text()) > 2
