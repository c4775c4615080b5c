"""Differences between arms over repetitions, with intervals, and the tables of docs/experiments.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.study.questions import QUESTIONS, Contrast
from pantherseg.evaluation.bootstrap import CONFIDENCE, mean_samples, percentile_interval
from pantherseg.evaluation.metrics import METRICS
from pantherseg.evaluation.tables import FORMATS, HEADINGS
from pantherseg.files import write_text
from pantherseg.paths import ROOT
from pantherseg.selection.nested import MEAN_RANK

PAGE = ROOT / "docs" / "experiments.md"
# The lines of the page between which the tables of a question are.
BEGIN, END = "<!-- tables of {}: python -m bench.study tables -->", "<!-- end of the tables of {} -->"
NAMES = {**HEADINGS, MEAN_RANK: "mean rank"}
DECIMALS = {**FORMATS, MEAN_RANK: ".2f"}
# Differences that are smaller are taken for rounding.
SMALLEST = 1e-9


def differences(repetitions: Sequence[Mapping[str, Any]], contrast: Contrast, metric: str) -> dict[str, Any]:
    """Return B minus A in a metric over repetitions, each of which counts once.

    bootstrap: as of the metrics, here over repetitions; too narrow for five of them. t: Student's interval of the mean.
    better: in how many repetitions B is better; shown: 1 if both intervals are on the better side of 0, -1 if both are
    on the worse one, 0 otherwise.
    """
    a, b = ([float(one["arms"][arm][metric]) for one in repetitions] for arm in (contrast.a, contrast.b))
    values = np.subtract(b, a)
    gain = values if METRICS.get(metric, False) else -values
    bootstrap = percentile_interval(mean_samples(values[:, None]))
    half = 0.0
    if len(values) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    bounds = np.array([*bootstrap, mean - half, mean + half]) * (1 if METRICS.get(metric, False) else -1)
    shown = 0 if len(values) < 2 else int((bounds > SMALLEST).all()) - int((bounds < -SMALLEST).all())
    return {
        "b": contrast.b,
        "a": contrast.a,
        "metric": metric,
        "mean_a": float(np.mean(a)),
        "mean_b": float(np.mean(b)),
        "values": values.tolist(),
        "mean": mean,
        "bootstrap": bootstrap,
        "t": (mean - half, mean + half),
        "better": int((gain > SMALLEST).sum()),
        "shown": shown,
    }


def analysed(question: str, repetitions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the differences of all contrasts of a question, the primary ones marked."""
    return [
        differences(repetitions, contrast, metric)
        | {"primary": number < QUESTIONS[question].primary and metric in contrast.metrics}
        for number, contrast in enumerate(QUESTIONS[question].contrasts)
        for metric in (*contrast.metrics, *contrast.also)
    ]


def tables(question: str, result: Mapping[str, Any]) -> str:
    """Return the two tables of a question: the arms, and their differences."""
    repetitions, size = result["repetitions"], result["size"]
    minutes = [one["minutes"] for one in repetitions]
    lines = [
        f"Size `{size}`, {len(repetitions)} repetitions of {np.mean(minutes):.1f} minutes of training each "
        f"on {result['device']} ({result['machine']['cpu']}); networks that questions share are counted in each.",
        "",
        *_arms_table(question, repetitions),
        "",
        "| B | A | metric | A | B | B - A | bootstrap 95 % | t 95 % | B better in | shown |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(one, len(repetitions)) for one in analysed(question, repetitions)),
    ]
    return "\n".join(lines)


def insert(question: str, text: str, page: Path = PAGE) -> None:
    """Replace the tables of a question on the page. Raises ValueError if the page has no place for them."""
    begin, end = BEGIN.format(question), END.format(question)
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, also, tail = rest.partition(end)
    if not (found and also):
        raise ValueError(f"{page}: expected the lines {begin!r} and {end!r}")
    write_text(page, f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def _arms_table(question: str, repetitions: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = QUESTIONS[question].counts
    head = ["arm", *HEADINGS.values(), *counts]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm in repetitions[0]["arms"]:
        every = [one["arms"][arm] for one in repetitions]
        cells = [format(np.mean([one[name] for one in every]), FORMATS[name]) for name in METRICS]
        for count, whole in counts.items():
            part, of = (sum(int(one.get(name, 0)) for one in every) for name in (count, whole))
            cells.append(f"{part} of {of}" if count in every[0] else "")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return rows


def _row(one: Mapping[str, Any], repetitions: int) -> str:
    form = DECIMALS[one["metric"]]
    intervals = [f"{low:+{form}} to {high:+{form}}" for low, high in (one["bootstrap"], one["t"])]
    shown = {1: "B is better", 0: "no difference shown", -1: "A is better"}[one["shown"]]
    metric = f"**{NAMES[one['metric']]}**" if one["primary"] else NAMES[one["metric"]]
    means = [format(one[name], form) for name in ("mean_a", "mean_b")]
    cells = [
        one["b"],
        one["a"],
        metric,
        *means,
        f"{one['mean']:+{form}}",
        *intervals,
        f"{one['better']} of {repetitions}",
        shown,
    ]
    return f"| {' | '.join(cells)} |"
