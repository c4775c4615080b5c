"""pydicom, which reads all headers: imported when it is needed, and kept from speaking about what it reads.

Its warnings and log lines quote values, such as names, and must not reach a log.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pantherseg.errors import InputError
from pantherseg.logs import silenced


@contextmanager
def quiet_pydicom(source: Path) -> Iterator[None]:
    """Import pydicom, and silence it within the block. Raises InputError about `source` where it is not installed."""
    try:
        import pydicom
    except ImportError as error:
        expected, hint = "the package pydicom, which reads DICOM", "pip install 'pantherseg[dicom]'"
        raise InputError(source, expected=expected, found="not installed", hint=hint) from error
    settings = pydicom.config.settings
    mode = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with silenced("pydicom"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode = mode
