"""Log lines on stderr, one for each stage of a case.

stderr may be closed, full, a broken pipe or limited to ASCII: none of these must end a case.
"""

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

from pantherseg.errors import PantherSegError, os_reason, printable
from pantherseg.machine.memory import shortage

logger = logging.getLogger(__name__)

STDIN, STDOUT, STDERR = 0, 1, 2


class OneLineFormatter(logging.Formatter):
    """Formats each message as one printable line; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record: its message, then its traceback."""
        return "\n".join(printable(line) for line in super().format(record).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Return the message of a record in one line."""
        return printable(super().formatMessage(record))


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr, and stops without an error where stderr cannot be written to."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Discard stderr from now on where writing failed; handle any other error as logging does."""
        if isinstance(sys.exc_info()[1], OSError):
            _discard_stderr()
        else:
            super().handleError(record)


def show_log() -> None:
    """Send the log lines of this package, and the warnings of other libraries, to stderr."""
    prepare_streams()
    handler = StderrHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pantherseg").setLevel(logging.INFO)


def prepare_streams() -> None:
    """Prepare the standard streams so that any text can be written to them.

    A closed stream is opened on /dev/null. Otherwise the next file to be opened would get its number, and with it the
    output of C libraries. Where the encoding is not UTF-8, other characters than ASCII are escaped: the output is then
    valid UTF-8, as platforms expect.
    """
    for number, name in ((STDIN, "stdin"), (STDOUT, "stdout"), (STDERR, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
                if getattr(sys, name) is None:
                    setattr(sys, name, open(number, "r" if number == STDIN else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(encoding="utf-8" if utf8 else "ascii", errors="backslashreplace")


def say_error(error: Exception) -> None:
    """Print an error as the last line of stderr; an unexpected error is preceded by its traceback.

    Nothing is raised, whatever the state of stderr.
    """
    try:
        if not isinstance(error, PantherSegError):
            lines = "".join(traceback.format_exception(error)).splitlines()
            print(*map(printable, lines), sep="\n", file=sys.stderr)
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    except OSError:
        _discard_stderr()


def _discard_stderr() -> None:
    """Redirect stderr to /dev/null.

    Python flushes stderr when it ends, and would exit with code 120 where that fails.
    """
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDERR)
        os.close(null)


def one_line(error: Exception, where: object = "") -> str:
    """Return an error in one line; one that is not a PantherSegError with its type and, if given, the place."""
    if isinstance(error, MemoryError):
        error = shortage(error, str(where) or "this case") or error
    if isinstance(error, PantherSegError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        reason = os_reason(error)
        return str(PantherSegError(str(error.filename), f"this file or folder cannot be used: {reason}"))
    place = f"{where}: " if where else ""
    return printable(f"{place}unexpected {type(error).__name__}: {' '.join(str(error).split())}")


def shown(path: Path) -> str:
    """Return a path, relative to the working directory if it lies below it."""
    with suppress(OSError, ValueError):  # the working directory may have been removed
        return str(path.relative_to(Path.cwd()))
    return str(path)


@contextmanager
def silenced(library: str, *, below: int = logging.CRITICAL + 1) -> Iterator[None]:
    """Keep the log of a library from what is below a level within the block, by default from everything."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(below)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def stage(name: str, seconds: dict[str, float] | None = None) -> Iterator[list[str]]:
    """Time a stage and log it in one line, with the remarks that the block appends to the yielded list.

    seconds: the time is stored here, under the name of the stage.
    """
    remarks: list[str] = []
    start = time.monotonic()
    yield remarks
    elapsed = time.monotonic() - start
    if seconds is not None:
        seconds[name] = elapsed
    logger.info("%-10s %6.1f s  %s", name, elapsed, ", ".join(remarks))
