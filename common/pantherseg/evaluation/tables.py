"""Scores as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pantherseg.errors import printable
from pantherseg.evaluation.lesions import MIN_OVERLAP
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


SURFACE = ("surface_dice_5mm", "hd95_mm", "masd_mm")


def evaluation_table(evaluation: Evaluation) -> str:
    """Return a table of all cases and the totals, with the surface metrics in both conventions."""
    heading = ["case", "Dice", "volume error mm3"]
    heading += [f"{HEADINGS[m]}{mark}" for mark in ("*", "") for m in SURFACE]
    rows = [heading]
    for name, case in evaluation.cases.items():
        shown = printable(name)
        row = [f"{shown} (missing)" if case.missing else f"{shown} (empty)" if case.empty else shown]
        row += [f"{case.official.dice:.4f}", f"{case.official.volume_error_mm3:+.0f}"]
        row += [format(getattr(m, k), FORMATS[k]) for m in (case.official, case.corrected) for k in SURFACE]
        rows.append(row)
    rows += [[f"{printable(name)} (failed)", *["-"] * (len(heading) - 1)] for name in evaluation.failed]
    totals = _total_rows(evaluation)
    notes = [f"*   official: {CONVENTIONS['official']}", f"    corrected: {CONVENTIONS['corrected']}"]
    if len(totals) > 1:
        notes.append("    95 %: percentile bootstrap over cases; for cases of another kind it says nothing")
    if evaluation.missing:
        notes.append(f"    missing: no prediction, scored as an empty mask ({len(evaluation.missing)} cases)")
    if evaluation.empty:
        notes.append(f"    empty: no tumour in the prediction, or nothing else ({len(evaluation.empty)} cases)")
    if evaluation.failed:
        notes.append("    failed: could not be scored, and is not in the totals")
        notes += [f"    {printable(name)}: {reason}" for name, reason in evaluation.failed.items()]
    return "\n".join([aligned([*rows, *totals], footer=len(totals)), "", *notes, "    Not for clinical use."])


def _total_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return the row of the totals, and one for each bound of their intervals if there are any."""
    scored, failed = len(evaluation.cases), len(evaluation.failed)
    name = f"{scored} of {scored + failed} cases" if failed else f"{scored} cases"

    def row(name: str, official: Mapping[str, float], corrected: Mapping[str, float]) -> list[str]:
        cells = [name, f"{official['dice']:.4f}", f"RMSE {official['volume_rmse_mm3']:.0f}"]
        return cells + [format(figures[m], FORMATS[m]) for figures in (official, corrected) for m in SURFACE]

    rows = [row(name, evaluation.official.as_dict(), evaluation.corrected.as_dict())]
    official, corrected = evaluation.official_interval, evaluation.corrected_interval
    if official and corrected:
        for bound, name in enumerate(("95 % from", "to")):
            rows.append(row(name, *({m: i[bound] for m, i in each.items()} for each in (official, corrected))))
    return rows


def lesion_table(evaluation: Evaluation) -> str:
    """Return how many lesions were found, and how many marked where there is none, by volume and in all."""
    rows = [["lesions of ml", "reference", "found", "sensitivity", "predicted", "false positives", "a case"]]
    for each in (*evaluation.detection_by_volume, evaluation.detection):
        name = f"{each.from_ml:g} to {each.to_ml:g}" if each.to_ml else f"{each.from_ml:g} and more"
        if each is evaluation.detection:
            name = f"all in {len(evaluation.cases)} cases"
        rate = "-" if each.sensitivity is None else f"{each.sensitivity:.3f}"
        row = [name, str(each.reference), str(each.found), rate, str(each.predicted), str(each.false_positives)]
        rows.append([*row, f"{each.false_positives_per_case:.2f}"])
    footer = 1
    if interval := evaluation.detection_interval:
        for bound, name in enumerate(("95 % from", "to")):
            sensitivity, rate = (f"{interval[key][bound]:.3f}" for key in ("sensitivity", "false_positives_per_case"))
            rows.append([name, "", "", sensitivity, "", "", rate])
        footer = 3
    overlap = f"{MIN_OVERLAP * 100:g} %"
    notes = [
        "Lesions are components with 26 neighbours; the bounds are the volumes of balls of 1, 2 and 4 cm.",
        f"found: the prediction covers at least {overlap} of it; false positive: less than {overlap} of it lies in the",
        "reference, by the volume of the prediction.",
    ]
    return "\n".join([aligned(rows, footer=footer), *notes])


def aligned(rows: Sequence[Sequence[str]], *, footer: int = 0) -> str:
    """Return rows of equal length as lines, with the first column left-aligned and the others right-aligned.

    A rule follows the first row. footer: how many of the last rows another rule precedes.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(1, rule)
    if footer:
        lines.insert(len(lines) - footer, rule)
    return "\n".join(lines)


def totals_cells(totals: Totals) -> list[str]:
    """Return the five metrics as text, in the order of the leaderboards."""
    return [format(value, FORMATS[name]) for name, value in totals.as_dict().items()]


def write_json(evaluation: Evaluation, path: Path, *, more: Mapping[str, Any] | None = None) -> None:
    """Write the evaluation: {"cases": ..., "failed": ..., "official": ..., ...}. Raises OutputError.

    more: further results by name, such as a comparison with another evaluation.
    """
    write_text(path, json.dumps(evaluation.as_dict() | dict(more or {}), indent=2) + "\n")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write one row per scored case and convention, with volumes and counts of lesions. Raises OutputError."""
    text = io.StringIO()
    counts = ["empty", "lesions", "lesions_found", "lesions_predicted", "false_positives"]
    fields = ["case", "convention", *CaseMetrics.__dataclass_fields__, *counts]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for name, case in evaluation.cases.items():
        lesions = evaluation.lesions[name]
        for convention, metrics in (("official", case.official), ("corrected", case.corrected)):
            row = {"case": name, "convention": convention, **asdict(metrics)}
            row |= {"missing": str(case.missing).lower(), "empty": str(case.empty).lower()}
            row |= {"lesions": len(lesions.reference), "lesions_found": lesions.found}
            row |= {"lesions_predicted": len(lesions.predicted), "false_positives": lesions.false_positives}
            writer.writerow(row)
    write_text(path, text.getvalue())
