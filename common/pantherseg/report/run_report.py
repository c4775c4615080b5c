"""Finds what a case's report (`<case>.json`, or a container's `results.json`) says about how its mask came about."""

from __future__ import annotations

from pathlib import Path

from pantherseg.io import case_name
from pantherseg.results import CaseReport, read_report

# Where a container writes its report, from the folder of its masks: images/<socket>/<name>.mha.
CONTAINER_REPORT = Path("..", "..", "results.json")


def read_run_report(mask: Path) -> CaseReport | None:
    """Return the report of the case of a mask, None if there is none.

    It is `<case>.json` beside the mask, as `pantherseg predict` writes it, or the `results.json` of a container's
    output. Raises InputError for a file that is not such a report.
    """
    beside = mask.with_name(f"{case_name(mask)}.json")
    if beside.is_file():
        return read_report(beside)
    path = mask.parent / CONTAINER_REPORT
    if not path.is_file():
        return None
    report = read_report(path)
    # The folder may have had another case since.
    return report if (path.parent / report.mask).resolve() == mask.resolve() else None
