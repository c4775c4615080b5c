"""Errors.

PantherSegError          any error that a user can act on, in one line
├── InputError           a volume or mask that cannot be processed
│   └── OptionError      one that can, but not as the options or the recipe ask for
├── JobError             a job folder that does not hold what the task needs
├── UploadError          an image or a model archive that cannot be checked
├── RecipeError          a recipe with a missing, unknown or impossible key
├── ModelError           a model folder or checkpoint that cannot be used
├── DownloadError        published weights that cannot be fetched
├── DeviceError          a device that was asked for and cannot be used
│   └── LostDeviceError  a device that fails in the middle of a case
│       ├── DeviceMemoryError  too little memory, or disk space in its place
│       └── Float16Error       values that float16 cannot hold
└── OutputError          a result that cannot be written
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

# Limits of an error line and of its parts. At four bytes a character a line stays below 8 KiB, however long the headers
# and file names are that it quotes.
MAX_CHARACTERS = 2000
WHERE_CHARACTERS, PART_CHARACTERS, HINT_CHARACTERS = 900, 400, 250


def printable(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a text in one line, with characters that cannot be printed escaped as in Python.

    The middle of a text that is longer than `limit` characters is left out.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= limit:
        return shown
    half = (limit - 5) // 2
    return f"{shown[:half]} ... {shown[-half:]}"


def os_reason(error: OSError) -> str:
    """Return what the operating system says, without the number and the path that Python adds."""
    return error.strerror or str(error) or type(error).__name__


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """Return the first of some names for an error or a log line, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def last_line(error: Exception) -> str:
    """Return the last line of a library's error, which gives the reason, or the type of an error without a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _part(text: str, limit: int) -> str:
    return printable(" ".join(text.split()), limit)


class PantherSegError(Exception):
    """An error in one line: the place, then expected and found or a plain sentence, then a hint.

    where: the file, folder or option that the error is about. problem: a sentence without its full stop, for a
    condition that is not a comparison of two values; it takes the place of expected and found. hint: what to do.
    """

    def __init__(
        self, where: str | Path, problem: str = "", *, expected: str = "", found: str = "", hint: str = ""
    ) -> None:
        self.where, self.problem, self.expected, self.found, self.hint = where, problem, expected, found, hint
        text = _part(problem, PART_CHARACTERS)
        if not problem:
            text = f"expected {_part(expected, PART_CHARACTERS)}, found {_part(found, PART_CHARACTERS)}"
        message = f"{_part(str(where), WHERE_CHARACTERS)}: {text}"
        super().__init__(f"{message}; {_part(hint, HINT_CHARACTERS)}" if hint else message)

    def at(self, where: str | Path) -> Self:
        """Return the same error for another place, without the traceback, which would keep arrays in memory."""
        return type(self)(where, self.problem, expected=self.expected, found=self.found, hint=self.hint)

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make it again in another process: Python would take the whole text for `where`."""
        make = partial(type(self), expected=self.expected, found=self.found, hint=self.hint)
        return make, (self.where, self.problem)


class InputError(PantherSegError):
    """A volume or mask that cannot be processed."""


class OptionError(InputError):
    """A volume that does not allow what the options or the recipe ask for; what an earlier run made of it is valid."""


class JobError(PantherSegError):
    """A job folder that does not hold what the task needs."""


class UploadError(PantherSegError):
    """An image or a model archive that cannot be checked."""


class RecipeError(PantherSegError):
    """A recipe with a missing, unknown or impossible key."""


class ModelError(PantherSegError):
    """A model folder or checkpoint that cannot be used."""


class DownloadError(PantherSegError):
    """Published weights that cannot be fetched."""


class DeviceError(PantherSegError):
    """A device that was asked for and cannot be used."""


class LostDeviceError(DeviceError):
    """A device that fails in the middle of a case."""


class DeviceMemoryError(LostDeviceError):
    """Too little memory, or disk space in its place."""


class Float16Error(LostDeviceError):
    """Values that float16, in which a GPU computes, cannot hold."""


class OutputError(PantherSegError):
    """A result that cannot be written."""
