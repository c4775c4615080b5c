"""What a report says about all cases together."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pantherseg.evaluation.metrics import Totals, totals
from pantherseg.report.cases import Case
from pantherseg.results import CaseReport

# Fewer cases than this are seen at a glance in the table.
MIN_CASES_OF_A_HISTOGRAM = 5
DICE_EDGES = tuple(step / 10 for step in range(11))
# In ml, for volumes from that of a few voxels to that of a whole abdomen; each about twice the one before.
VOLUME_EDGES = (0.0, *(digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5)), 1e4)


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: the cases with low <= value < high; the highest edge belongs to the last bar."""

    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Histogram:
    """The distribution of a figure over the cases that have it."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    lowest: float
    median: float
    highest: float

    @property
    def cases(self) -> int:
        """How many cases have this figure."""
        return sum(bar.cases for bar in self.bars)

    @property
    def tallest(self) -> int:
        """The most cases of a bar."""
        return max(bar.cases for bar in self.bars)


@dataclass(frozen=True)
class Summary:
    """What is said about all cases.

    missing, failed, scored: numbers of cases without a mask, with a problem, and with metrics. events: for each code in
    words, the number of cases. recipes, devices, versions, models: as the cases' reports name them, in
    order of frequency. official, corrected: None without references.
    """

    cases: int
    missing: int
    failed: int
    scored: int
    official: Totals | None
    corrected: Totals | None
    histograms: tuple[Histogram, ...]
    events: tuple[tuple[str, int], ...]
    recipes: tuple[str, ...]
    devices: tuple[str, ...]
    versions: tuple[str, ...]
    models: tuple[str, ...]
    median_ml: float | None
    median_seconds: float | None

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Summary:
        """Return the summary of cases."""
        scores = [case.scores for case in cases if case.scores]
        codes = [{event.code for event in case.run.events} for case in cases if case.run]
        events = Counter(code.in_words for found in codes for code in found)
        volumes = [case.tumour_ml for case in cases if case.tumour_ml is not None]
        seconds = [case.seconds for case in cases if case.seconds is not None]
        return cls(
            cases=len(cases),
            missing=sum(case.missing for case in cases),
            failed=sum(bool(case.problems) for case in cases),
            scored=len(scores),
            official=totals([s.official for s in scores]) if scores else None,
            corrected=totals([s.corrected for s in scores]) if scores else None,
            histograms=_histograms(cases),
            events=tuple(events.most_common()),
            recipes=_named(cases, lambda run: [run.recipe]),
            devices=_named(cases, lambda run: [f"{run.device}, {run.precision}"]),
            versions=_named(cases, lambda run: [run.pantherseg]),
            models=_named(cases, lambda run: [model.path for model in run.models]),
            median_ml=statistics.median(volumes) if volumes else None,
            median_seconds=statistics.median(seconds) if seconds else None,
        )


@dataclass(frozen=True)
class Column:
    """A column of figures in the table of cases."""

    heading: str
    digits: int
    value: Callable[[Case], float | None]


COLUMNS = (
    Column("Dice", 3, lambda case: case.dice),
    Column("HD95 mm", 1, lambda case: case.scores.corrected.hd95_mm if case.scores else None),
    Column("Expected Dice", 3, lambda case: case.expected_dice),
    Column("Agreement of folds", 3, lambda case: case.agreement),
    Column("Volume ml", 2, lambda case: case.tumour_ml),
    Column("Reference ml", 2, lambda case: case.reference_ml),
    Column("Events", 0, lambda case: len(case.run.events) if case.run else None),
    Column("Seconds", 1, lambda case: case.seconds),
)


def known_columns(cases: Sequence[Case]) -> list[Column]:
    """Return the columns that have a figure for at least one case."""
    return [column for column in COLUMNS if any(column.value(case) is not None for case in cases)]


def histogram(title: str, unit: str, values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Return the histogram of at least one value, without the empty bars at its ends."""
    counts = Counter(min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2) for value in values)
    bars = tuple(Bar(edges[i], edges[i + 1], counts[i]) for i in range(min(counts), max(counts) + 1))
    return Histogram(title, unit, bars, min(values), statistics.median(values), max(values))


def _histograms(cases: Sequence[Case]) -> tuple[Histogram, ...]:
    figures: tuple[tuple[str, str, Callable[[Case], float | None], Sequence[float]], ...] = (
        ("Predicted volume", "ml", lambda case: case.tumour_ml, VOLUME_EDGES),
        ("Dice", "", lambda case: case.dice, DICE_EDGES),
        ("Expected Dice", "", lambda case: case.expected_dice, DICE_EDGES),
        ("Agreement of the folds", "", lambda case: case.agreement, DICE_EDGES),
    )
    known = [(t, u, [v for v in map(figure, cases) if v is not None], edges) for t, u, figure, edges in figures]
    return tuple(histogram(*each) for each in known if len(each[2]) >= MIN_CASES_OF_A_HISTOGRAM)


def _named(cases: Sequence[Case], names: Callable[[CaseReport], Sequence[str]]) -> tuple[str, ...]:
    """Return the different names in the cases' reports, the most frequent first."""
    counts = Counter(name for case in cases if case.run for name in names(case.run))
    return tuple(name for name, _ in counts.most_common())
