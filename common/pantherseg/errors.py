"""Errors and events.

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

from dataclasses import asdict, dataclass
from pathlib import Path


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal: names and answers of others may hold anything."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in " ".join(text.split())
    )


class PantherSegError(Exception):
    """One line: where, what was expected, what was found, and what to do about it."""

    def __init__(self, where: str | Path, *, expected: str, found: str, hint: str = "") -> None:
        self.expected, self.found, self.hint = expected, found, hint
        message = f"{where}: expected {expected}, found {found}"
        super().__init__(printable(f"{message}; {hint}" if hint else message))


class InputError(PantherSegError):
    """A volume or mask that cannot be processed."""

    def at(self, where: str | Path) -> InputError:
        """Return the same error with another place, such as the file that an array was read from."""
        return InputError(where, expected=self.expected, found=self.found, hint=self.hint)


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


@dataclass(frozen=True)
class Event:
    """Something unusual on the way of a case that did not stop it: a short code and a sentence."""

    code: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """Return the event for results.json."""
        return asdict(self)
