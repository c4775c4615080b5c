"""The tables and the picture of `bench.confidence`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.confidence.figures import risks

COLOURS = {"plain": "#0072b2", "harder": "#d55e00", "curve": "#0072b2", "other": "#777777", "best": "#009e73"}
JUDGED = ("mean_absolute_error", "pearson", "spearman", "aurc", "aurc_random", "aurc_best")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw expected against true Dice, and the risk-coverage curves, one row a task."""
    from matplotlib.figure import Figure

    tasks = {task: result for task, result in results.items() if task.startswith("task")}
    figure = Figure(figsize=(9, 4.2 * len(tasks)), dpi=110, layout="constrained")
    for row, (task, result) in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks.items(), strict=True):
        cases = list(result["cases"].values())
        expected, true = (np.array([case[key] for case in cases]) for key in ("expected", "true"))
        scatter, curves = row
        for kind, marker in (("plain", "o"), ("harder", "^")):
            of_kind = [case["kind"] == kind for case in cases]
            scatter.scatter(
                expected[of_kind], true[of_kind],
                marker=marker, color=COLOURS[kind], alpha=0.75, label=f"{kind} phantoms",
            )  # fmt: skip
        scatter.plot([0, 1], [0, 1], color=COLOURS["other"], linestyle=":", label="as expected")
        scatter.plot(
            *([one[key] for one in result["bins"]] for key in ("expected", "true")),
            color="black", marker="s", markersize=4, linewidth=1, label="means of bins",
        )  # fmt: skip
        scatter.set(
            title=f"Task {task[-1]}: {len(cases)} phantoms that were not fitted",
            xlabel="expected Dice", ylabel="true Dice", xlim=(-0.03, 1), ylim=(-0.03, 1), aspect="equal",
        )  # fmt: skip
        scatter.legend(loc="upper left", frameon=False)
        coverage = np.arange(1, len(cases) + 1) / len(cases)
        for label, order, colour, style in (
            ("by expected Dice", expected, COLOURS["curve"], "-"),
            ("by true Dice (best possible)", true, COLOURS["best"], "--"),
            ("in any order", np.zeros(len(cases)), COLOURS["other"], ":"),
        ):
            risk = risks(order, true)
            curves.plot(coverage, risk, color=colour, linestyle=style, label=f"{label}: {risk.mean():.3f}")
        curves.set(
            title="Risk-coverage, with the area under the curve",
            xlabel="share of cases kept, the surest first", ylabel="mean of 1 - Dice", xlim=(0, 1), ylim=(0, None),
        )  # fmt: skip
        curves.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def tables(results: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    tasks = {f"Task {task[-1]}": result for task, result in results.items() if task.startswith("task")}
    lines = [
        "| | cases | mean absolute error | Pearson | Spearman | AURC | any order | best possible |",
        "|---" * 8 + "|",
    ]
    for task, result in tasks.items():
        for kind, judged in result["judged"].items():
            cases = sum(kind in ("all", case["kind"]) for case in result["cases"].values())
            lines.append(f"| {task}, {kind} | {cases} | {' | '.join(f'{judged[key]:.3f}' for key in JUDGED)} |")
    lines += ["", "| expected Dice | " + " | ".join(f"{task}: cases | expected | true" for task in tasks) + " |"]
    lines.append("|---" * (1 + 3 * len(tasks)) + "|")
    for low in sorted({one["low"] for result in tasks.values() for one in result["bins"]}):
        cells = []
        for result in tasks.values():
            found = [one for one in result["bins"] if one["low"] == low]
            cells += [f"{one['cases']} | {one['expected']:.2f} | {one['true']:.2f}" for one in found] or ["0 | | "]
        lines.append(f"| {low:.1f} to {low + 0.2:.1f} | {' | '.join(cells)} |")
    lines += ["", "| mean absolute error of | " + " | ".join(f"{task}: left out | second set" for task in tasks) + " |"]
    lines.append("|---" * (1 + 2 * len(tasks)) + "|")
    for label in next(iter(tasks.values()))["candidates"]:
        cells = [f"{value:.3f}" for result in tasks.values() for value in result["candidates"][label].values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "| AURC of the order by | " + " | ".join(tasks) + " |", "|---" * (1 + len(tasks)) + "|"]
    for label in next(iter(tasks.values()))["aurc_by"]:
        cells = [f"{result['aurc_by'][label]:.3f}" for result in tasks.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
