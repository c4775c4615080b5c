"""Log lines and errors are one printable line each, whatever they quote."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from pantherseg.errors import InputError, PantherSegError, printable
from pantherseg.logs import OneLineFormatter, one_line, say_error

UNPRINTABLE = "a\nb\x1b[31m\x00\ud800\u202eü体"


def test_escapes_characters_that_cannot_be_printed() -> None:
    assert printable(UNPRINTABLE) == r"a\nb\x1b[31m\x00\ud800\u202eü体"
    assert printable("größe 体積") == "größe 体積"


@pytest.mark.parametrize("length", [0, 1, 1999, 2000, 2001, 10**6])
def test_leaves_out_the_middle_of_a_long_text(length: int) -> None:
    text = "start" + "x" * length + "end"
    shown = printable(text)
    assert len(shown) <= 2000
    assert shown.startswith("start")
    assert shown.endswith("end")
    assert (shown == text) == (len(text) <= 2000)


@pytest.mark.fault("ends", "an error quotes 100,000 characters, zeros or line ends", "one printable line below 8 KiB")
def test_an_error_is_one_short_line() -> None:
    for filler in (UNPRINTABLE, "体" * 10**5, "\x00" * 10**5):
        text = str(InputError(filler, expected=filler, found=filler, hint=filler))
        assert text.isprintable()
        assert len(text.encode()) < 8192
        assert ": expected " in text
        assert ", found " in text
    assert str(PantherSegError("a", expected="b\n  c", found=" d\te ")) == "a: expected b c, found d e"


def test_an_error_is_a_comparison_or_a_sentence() -> None:
    error = InputError("scan.mha", expected="3 dimensions", found="2", hint="stack the slices")
    assert str(error) == "scan.mha: expected 3 dimensions, found 2; stack the slices"
    error = InputError("scan.mha", "the file is empty", hint="copy it again")
    assert str(error) == "scan.mha: the file is empty; copy it again"
    assert str(error.at("other.mha")) == "other.mha: the file is empty; copy it again"


@pytest.mark.fault("ends", "an unexpected error: {id}", "its traceback, then a last line with its type")
@pytest.mark.parametrize(
    "error",
    [ValueError(UNPRINTABLE), OSError(5, "x" * 10**5, UNPRINTABLE), KeyError(UNPRINTABLE)],
    ids=["ValueError", "OSError", "KeyError"],
)
def test_an_unexpected_error_is_one_line_after_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_line(error, UNPRINTABLE).isprintable()
    say_error(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"error: {one_line(error)}"
    assert all(len(line.encode()) < 8192 and line.isprintable() for line in lines)
    assert len(lines) > 1


def test_a_log_record_is_one_line_followed_by_its_traceback() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter("%(message)s"))
    try:
        raise ValueError(UNPRINTABLE)
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "read  %s", (UNPRINTABLE,), (ValueError, error, None))
    handler.emit(record)
    lines = stream.getvalue().split("\n")
    assert lines[0] == f"read  {printable(UNPRINTABLE)}"
    assert all(line.isprintable() for line in lines)
    assert len(lines) > 2


# Writes the number of the next file that is opened to that file.
NEXT_FILE = """
import sys
from pantherseg.logs import prepare_streams
prepare_streams()
print("to stdout"); print("to stderr", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno()))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("next") / "file"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", NEXT_FILE, str(path)]
    assert subprocess.run(command, check=False).returncode == 0
    assert int(path.read_text()) > 2
