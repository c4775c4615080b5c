"""pydicom, which reads all headers: imported when it is needed, and kept from speaking about what it reads.

Its warnings and log lines quote values, such as names, and must not reach a log.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pantherseg.errors import InputError


@contextmanager
def quiet_pydicom(source: Path) -> Iterator[None]:
    """Import pydicom, and silence it within the block. Raises InputError about `source` where it is not installed."""
    try:
        import pydicom
    except ImportError as error:
        expected, hint = "the package pydicom, which reads DICOM", "pip install 'pantherseg[dicom]'"
        raise InputError(source, expected=expected, found="not installed", hint=hint) from error
    library, settings = logging.getLogger("pydicom"), pydicom.config.settings
    level, mode = library.level, settings.reading_validation_mode
    library.setLevel(logging.CRITICAL + 1)
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(level)
        settings.reading_validation_mode = mode
