"""Reads what a case's report (`<case>.json`, or a container's `results.json`) says about how its mask came about."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pantherseg.errors import InputError, os_reason
from pantherseg.io import case_name

# Where a container writes its report, from the folder of its masks: images/<socket>/<name>.mha.
CONTAINER_REPORT = Path("..", "..", "results.json")
MAX_BYTES = 10_000_000


class EventRecord(msgspec.Struct, frozen=True):
    """An event of the case; see `events.EventCode`."""

    code: str
    message: str = ""

    @property
    def title(self) -> str:
        """The code in words."""
        return self.code.replace("_", " ").capitalize()


class ModelRecord(msgspec.Struct, frozen=True):
    """A model that was used."""

    path: str = ""
    folds: list[str] = []
    checkpoint: str = ""


class ConfidenceRecord(msgspec.Struct, frozen=True):
    """How much the folds agree (mean Dice of pairs of folds), and the Dice that is expected of the mask; None: unknown.

    mean_entropy: in bits, in the mask. fold_volumes_ml: the tumour's volume by each fold.
    """

    pairwise_dice: float | None = None
    mean_entropy: float | None = None
    fold_volumes_ml: list[float] = []
    expected_dice: float | None = None


class RunReport(msgspec.Struct, frozen=True):
    """The keys of a case's report that a page shows; absent ones are unknown."""

    mask: str = ""
    pantherseg: str = ""
    recipe: str = ""
    device: str = ""
    precision: str = ""
    models: list[ModelRecord] = []
    events: list[EventRecord] = []
    seconds: dict[str, float] = {}
    peak_memory_mb: float | None = None
    confidence: ConfidenceRecord | None = None


def read_run_report(mask: Path) -> RunReport | None:
    """Return the report of the case of a mask, None if there is none.

    It is `<case>.json` beside the mask, as `pantherseg predict` writes it, or the `results.json` of a container's
    output. Raises InputError for a file that is not such a report.
    """
    beside = mask.with_name(f"{case_name(mask)}.json")
    if beside.is_file():
        return _read(beside)
    path = mask.parent / CONTAINER_REPORT
    if not path.is_file():
        return None
    report = _read(path)
    # The folder may have had another case since.
    return report if (path.parent / report.mask).resolve() == mask.resolve() else None


def _read(path: Path) -> RunReport:
    expected = "a report of pantherseg (JSON)"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(path, expected=expected, found=f"more than {MAX_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=RunReport)
    except OSError as error:
        raise InputError(path, expected="a file that can be read", found=os_reason(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, expected=expected, found=str(error)) from error
