"""The result of a selection as text, as data, and as remarks in the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pantherseg import __version__
from pantherseg.evaluation import bootstrap
from pantherseg.evaluation.metrics import METRICS
from pantherseg.evaluation.tables import FORMATS, HEADINGS, aligned
from pantherseg.selection.candidates import Candidate
from pantherseg.selection.nested import MEAN_RANK, Difference, Nested
from pantherseg.selection.run import Outcome
from pantherseg.selection.search import mean_ranks

NOTES = (
    "Official convention, as the challenge ranks. Mean rank: of the positions on the five metrics among the rows.",
    "On unseen cases: by what was chosen without them, in nested cross-validation. Intervals: 95 %, by a bootstrap",
    "over cases.",
    "Not for clinical use.",
)


def described(candidate: Candidate, labels: Sequence[str]) -> str:
    """Return a candidate in words, such as `2 A + B, mean_probability, tumour at 0.45, at most 1 component`."""
    parts = [f"{candidate.counts[n]} {labels[n]}" if candidate.counts[n] > 1 else labels[n] for n in candidate.members]
    rule = candidate.rule
    words = [
        " + ".join(parts),
        rule.fusion,
        f"{'votes' if rule.fusion == 'vote' else 'tumour'} at {rule.probability:g}",
    ]
    if rule.components is not None and rule.components.max_count is not None:
        plural = "s" if rule.components.max_count > 1 else ""
        words.append(f"at most {rule.components.max_count} component{plural}")
    if rule.components is not None and rule.components.min_mm3:
        words.append(f"components of {rule.components.min_mm3:g} mm3 or more")
    return ", ".join(words)


def outcome_table(outcome: Outcome) -> str:
    """Return the members, the ensembles by size, the procedures and their differences as text."""
    cases, folds = len(outcome.cases), len(outcome.nested.folds)
    parts = [
        f"Members alone on {cases} cases, tumour where it is as probable as not",
        _table("member", outcome.labels, outcome.alone, outcome.seconds),
        f"Ensembles by size, with the post-processing that suits the best member; on unseen cases of {folds} folds",
        _sizes_table(outcome),
        f"On unseen cases of {folds} folds",
        _table("chosen by", list(outcome.nested.scores), list(outcome.nested.totals.values())),
        "Select minus the others on these cases",
        _differences_table(outcome.nested),
        f"Chosen on all cases: {described(outcome.selection.candidate, outcome.labels)}",
        "\n".join(NOTES),
    ]
    return "\n\n".join(parts)


def outcome_dict(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome for a JSON file."""
    ranks = mean_ranks(outcome.alone).tolist()
    return {
        "pantherseg": __version__,
        "not_for_clinical_use": True,
        "convention": "official",
        "cases": list(outcome.cases),
        "failed": dict(outcome.failed),
        "members": {
            member.label: {
                "model": member.model,
                "folder": str(member.folder),
                "seconds": seconds,
                "remarks": list(member.record.remarks),
                **dict(zip(METRICS, metrics.tolist(), strict=True)),
                MEAN_RANK: rank,
            }
            for member, seconds, metrics, rank in zip(
                outcome.members, outcome.seconds, outcome.alone, ranks, strict=True
            )
        },
        "sizes": [
            {"size": size, "members": described(candidate, outcome.labels), "seconds": seconds}
            | {"unseen": dict(zip(METRICS, metrics, strict=True))}
            for size, candidate, seconds, metrics in _sizes(outcome)
        ],
        "chosen": described(outcome.selection.candidate, outcome.labels),
        "chosen_seconds": _cost(outcome.selection.candidate, outcome.seconds),
        "intervals": bootstrap.settings(),
        "unseen": _nested_dict(outcome.nested, outcome.labels),
    }


def recipe_remarks(outcome: Outcome) -> list[str]:
    """Return what stands above the chosen recipe."""
    result, first = outcome.nested, next(iter(outcome.nested.scores))
    others = "; ".join(f"{name}: Dice {metrics[0]:.4f}" for name, metrics in result.totals.items() if name != first)
    cost = _cost(outcome.selection.candidate, outcome.seconds)
    return [
        f"Chosen by pantherseg select {__version__} on {len(outcome.cases)} cases: "
        f"{described(outcome.selection.candidate, outcome.labels)}.",
        f"The procedure on unseen cases of {len(result.folds)} folds: Dice {result.totals[first][0]:.4f} ({others}).",
        f"Its networks take {cost:.1f} s a case." if cost is not None else "The time of its networks was not recorded.",
        "Not for clinical use.",
    ]


def _sizes(outcome: Outcome) -> Iterable[tuple[int, Candidate, float | None, list[float]]]:
    """Yield the size, the ensemble, its seconds a case and its metrics on unseen cases."""
    by_size = outcome.nested.size_totals
    for size, candidate in enumerate(outcome.selection.path, start=1):
        unseen = by_size[min(size, len(by_size)) - 1]
        yield size, candidate, _cost(candidate, outcome.seconds), unseen.tolist()


def _sizes_table(outcome: Outcome) -> str:
    rows = [["members", "size", "s a case", *HEADINGS.values()]]
    for size, candidate, seconds, metrics in _sizes(outcome):
        members = described(candidate, outcome.labels).split(", ")[0]
        rows.append([members, str(size), _seconds(seconds), *_cells(metrics)])
    return aligned(rows)


def _table(head: str, names: Sequence[str], metrics: Any, seconds: Sequence[float | None] | None = None) -> str:
    """Return a row of five metrics and the mean rank for each name."""
    ranks = mean_ranks(np.asarray(metrics))
    rows = [[head, *(["s a case"] if seconds else []), *HEADINGS.values(), "mean rank"]]
    for number, (name, values, rank) in enumerate(zip(names, metrics, ranks, strict=True)):
        rows.append([name, *([_seconds(seconds[number])] if seconds else []), *_cells(values), f"{rank:.1f}"])
    return aligned(rows)


def _differences_table(result: Nested) -> str:
    rows = [["against", *HEADINGS.values(), "mean rank"]]
    for other, differences in result.differences().items():
        cells = [_difference(one, FORMATS.get(metric, ".1f")) for metric, one in differences.items()]
        rows.append([other, *cells])
    return aligned(rows)


def _nested_dict(result: Nested, labels: Sequence[str]) -> dict[str, Any]:
    ranks = result.mean_ranks
    return {
        "outer_folds": len(result.folds),
        "procedures": {
            name: {
                **dict(zip(METRICS, metrics.tolist(), strict=True)),
                MEAN_RANK: ranks[name],
                "chosen": [described(candidate, labels) for candidate in result.chosen[name]],
            }
            for name, metrics in result.totals.items()
        },
        "select_minus": {
            other: {metric: one.as_dict() for metric, one in differences.items()}
            for other, differences in result.differences().items()
        },
    }


def _cost(candidate: Candidate, seconds: Sequence[float | None]) -> float | None:
    """Return the seconds a case of an ensemble's networks, None unless all are known. Weights cost nothing."""
    known = [seconds[number] for number in candidate.members]
    return sum(value for value in known if value is not None) if None not in known else None


def _cells(metrics: Iterable[float]) -> list[str]:
    return [format(value, form) for value, form in zip(metrics, FORMATS.values(), strict=True)]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _difference(one: Difference, form: str) -> str:
    low, high = one.interval
    return f"{one.value:+{form}} [{low:+{form}}, {high:+{form}}]"
