"""Errors.

PantherSegError          every error that a user can act on, one line each
├── InputError           a volume or mask that cannot be processed
├── JobError             a job folder that does not hold what the task needs
├── UploadError          an image or a model archive that cannot be looked at
├── RecipeError          a recipe with a missing, unknown or impossible key
├── ModelError           a model folder or checkpoint that cannot be used
├── DownloadError        published weights that cannot be fetched
├── DeviceError          a device that was asked for and does not answer
│   └── LostDeviceError  one that ends in the middle of a case
│       └── DeviceMemoryError  because its memory is full
└── OutputError          a result that cannot be written
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

# Of a line: with four bytes each they stay below 8 KiB. Headers and file names, which errors quote, know no end.
MAX_CHARACTERS = 2000
WHERE_CHARACTERS, PART_CHARACTERS, HINT_CHARACTERS = 900, 400, 250


def printable(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a text in one line, with what no terminal or no UTF-8 can show escaped as in Python.

    A text of more than `limit` characters loses its middle.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= limit:
        return shown
    half = (limit - 5) // 2
    return f"{shown[:half]} ... {shown[-half:]}"


def last_line(error: Exception) -> str:
    """Return the last line of what a library says, where its reason stands; the error's kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _part(text: str, limit: int) -> str:
    return printable(" ".join(text.split()), limit)


class PantherSegError(Exception):
    """One line: where, what was expected and what was found, or a plain sentence, and what to do about it.

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
        """Return the same error with another place, and without a traceback, which keeps what its functions held."""
        return type(self)(where, self.problem, expected=self.expected, found=self.found, hint=self.hint)


class InputError(PantherSegError):
    """A volume or mask that cannot be processed."""


class JobError(PantherSegError):
    """A job folder that does not hold what the task needs."""


class UploadError(PantherSegError):
    """An image or a model archive that cannot be looked at."""


class RecipeError(PantherSegError):
    """A recipe with a missing, unknown or impossible key."""


class ModelError(PantherSegError):
    """A model folder or checkpoint that cannot be used."""


class DownloadError(PantherSegError):
    """Published weights that cannot be fetched."""


class DeviceError(PantherSegError):
    """A device that was asked for and does not answer."""


class LostDeviceError(DeviceError):
    """A device that ends in the middle of a case."""


class DeviceMemoryError(LostDeviceError):
    """A device whose memory is full, or would be."""


class OutputError(PantherSegError):
    """A result that cannot be written."""
