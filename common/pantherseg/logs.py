"""Log lines for people: one a stage, on stderr, which may be closed, full, broken or know no letters but ASCII's."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pantherseg.errors import PantherSegError, printable
from pantherseg.machine.memory import shortage

logger = logging.getLogger(__name__)


STDIN, STDOUT, STDERR = 0, 1, 2


class OneLineFormatter(logging.Formatter):
    """Makes one printable line of each message; a traceback has its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        return "\n".join(printable(line) for line in super().format(record).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Return a record's message."""
        return printable(super().formatMessage(record))


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr as long as that can be written to: what nobody can read ends no case."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Leave the stream for good where it fails, report anything else as logging does."""
        if isinstance(sys.exc_info()[1], OSError):
            _leave_stderr()
        else:
            super().handleError(record)


def show_log() -> None:
    """Send this package's log lines to stderr as they are; of other libraries only warnings."""
    prepare_streams()
    handler = StderrHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pantherseg").setLevel(logging.INFO)


def prepare_streams() -> None:
    """Make the standard streams such that no write to them fails for its letters, and no file takes their place.

    A closed one becomes /dev/null: the next file that is opened would have its number, and get what libraries in C
    print to it. In an encoding other than UTF-8 only ASCII is written, which is UTF-8, as platforms want it.
    """
    for number, name in ((STDIN, "stdin"), (STDOUT, "stdout"), (STDERR, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
                if getattr(sys, name) is None:
                    setattr(sys, name, open(number, "r" if number == STDIN else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(encoding="utf-8" if utf8 else "ascii", errors="backslashreplace")


def say_error(error: Exception) -> None:
    """Write an error as stderr's last line, after the traceback of one that nobody expected.

    stderr may be in any state: nothing is raised.
    """
    try:
        if not isinstance(error, PantherSegError):
            lines = "".join(traceback.format_exception(error)).splitlines()
            print(*map(printable, lines), sep="\n", file=sys.stderr)
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    except OSError:
        _leave_stderr()


def _leave_stderr() -> None:
    """Send stderr, with what is still to be written to it, to /dev/null; else the interpreter ends with code 120."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDERR)
        os.close(null)


def one_line(error: Exception, where: object = "") -> str:
    """Return an error as one line: the project's own as it is, any other with its kind and the place."""
    if isinstance(error, MemoryError):
        error = shortage(error, str(where) or "this case") or error
    if isinstance(error, PantherSegError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        found = error.strerror or type(error).__name__
        return str(PantherSegError(str(error.filename), expected="a file or folder that can be used", found=found))
    place = f"{where}: " if where else ""
    return printable(f"{place}unexpected {type(error).__name__}: {' '.join(str(error).split())}")


def shown(path: Path) -> str:
    """Return a path as short as it can be written from the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def stage(name: str, seconds: dict[str, float] | None = None) -> Iterator[list[str]]:
    """Time a stage; what the block appends to the yielded list is logged behind its time.

    seconds: gets the time under the stage's name.
    """
    remarks: list[str] = []
    began = time.monotonic()
    yield remarks
    elapsed = time.monotonic() - began
    if seconds is not None:
        seconds[name] = elapsed
    logger.info("%-10s %6.1f s  %s", name, elapsed, ", ".join(remarks))
