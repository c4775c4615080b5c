"""Scores as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pantherseg.evaluation.metrics import CaseMetrics, Totals
from pantherseg.evaluation.run import Evaluation
from pantherseg.files import write_text

# Headings and number formats of the five metrics.
HEADINGS = {
    "dice": "Dice",
    "surface_dice_5mm": "sDice 5 mm",
    "hd95_mm": "HD95 mm",
    "masd_mm": "MASD mm",
    "volume_rmse_mm3": "volume RMSE mm3",
}
FORMATS = {
    "dice": ".4f",
    "surface_dice_5mm": ".4f",
    "hd95_mm": ".2f",
    "masd_mm": ".2f",
    "volume_rmse_mm3": ".0f",
}
CONVENTIONS = {
    "official": "the challenge's evaluator: spacing (x, y, z) with arrays (z, y, x); comparable with the leaderboards",
    "corrected": "spacing in the order of the array: distances as they are in the patient",
}


def evaluation_table(evaluation: Evaluation) -> str:
    """Return a table of all cases and the totals, with the surface metrics in both conventions."""
    surface = ("surface_dice_5mm", "hd95_mm", "masd_mm")
    heading = ["case", "Dice", "volume error mm3"]
    heading += [f"{HEADINGS[m]}{mark}" for mark in ("*", "") for m in surface]
    rows = [heading]
    for name, case in evaluation.cases.items():
        row = [f"{name} (missing)" if case.missing else name]
        row += [f"{case.official.dice:.4f}", f"{case.official.volume_error_mm3:+.0f}"]
        row += [format(getattr(m, k), FORMATS[k]) for m in (case.official, case.corrected) for k in surface]
        rows.append(row)
    rows += [[f"{name} (failed)", *["-"] * (len(heading) - 1)] for name in evaluation.failed]
    scored, failed = len(evaluation.cases), len(evaluation.failed)
    total = [f"{scored} of {scored + failed} cases" if failed else f"{scored} cases", f"{evaluation.official.dice:.4f}"]
    total += [f"RMSE {evaluation.official.volume_rmse_mm3:.0f}"]
    total += [format(getattr(t, k), FORMATS[k]) for t in (evaluation.official, evaluation.corrected) for k in surface]
    rows.append(total)
    notes = [f"*   official: {CONVENTIONS['official']}", f"    corrected: {CONVENTIONS['corrected']}"]
    if evaluation.missing:
        notes.append(f"    missing: no prediction, scored as an empty mask ({len(evaluation.missing)} cases)")
    if failed:
        notes.append("    failed: could not be scored, and is not in the totals")
        notes += [f"    {name}: {reason}" for name, reason in evaluation.failed.items()]
    return "\n".join([aligned(rows, ruled_last=True), "", *notes, "    Not for clinical use."])


def aligned(rows: Sequence[Sequence[str]], *, ruled_last: bool = False) -> str:
    """Return rows of equal length as lines, with the first column left-aligned and the others right-aligned.

    A rule follows the first row. ruled_last: another one precedes the last row.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(1, rule)
    if ruled_last:
        lines.insert(len(lines) - 1, rule)
    return "\n".join(lines)


def totals_cells(totals: Totals) -> list[str]:
    """Return the five metrics as text, in the order of the leaderboards."""
    return [format(value, FORMATS[name]) for name, value in totals.as_dict().items()]


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write the evaluation: {"cases": ..., "failed": ..., "official": ..., "corrected": ...}. Raises OutputError."""
    write_text(path, json.dumps(evaluation.as_dict(), indent=2) + "\n")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write one row per scored case and convention, with volumes and the signed volume error. Raises OutputError."""
    text = io.StringIO()
    fields = ["case", "convention", *CaseMetrics.__dataclass_fields__]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for name, case in evaluation.cases.items():
        for convention, metrics in (("official", case.official), ("corrected", case.corrected)):
            row = asdict(metrics) | {"missing": str(metrics.missing).lower()}
            writer.writerow({"case": name, "convention": convention, **row})
    write_text(path, text.getvalue())
