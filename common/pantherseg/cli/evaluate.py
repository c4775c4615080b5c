"""`pantherseg evaluate`: score masks against reference masks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from pantherseg import evaluation
from pantherseg.cli.options import PATH, check_outputs
from pantherseg.errors import first_few
from pantherseg.evaluation import Evaluation

logger = logging.getLogger(__name__)


@click.command()
@click.argument("predictions", metavar="PRED", type=PATH)
@click.argument("references", metavar="REF", type=PATH)
@click.option("--json", "json_file", type=PATH, help="Write all figures to this file.")
@click.option("--csv", "csv_file", type=PATH, help="Write one row per case and convention to this file.")
@click.option(
    "--leaderboard", type=click.Choice(["task1", "task2"]), help="Compare with the leaderboard of the test phase."
)
@click.option("--compare", "other", metavar="PRED_B", type=PATH, help="Compare with these masks, case by case.")
@click.option("--plot", type=PATH, help="With --compare: draw the differences of all cases to this PNG file.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Cases that are scored at once.  [default: one on each CPU]"
)
def evaluate(
    predictions: Path,
    references: Path,
    json_file: Path | None,
    csv_file: Path | None,
    leaderboard: str | None,
    other: Path | None,
    plot: Path | None,
    workers: int | None,
) -> None:
    """Score masks against reference masks.

    PRED and REF are files or folders; label 1 is the tumour in both. Prints the five metrics of the challenge for each
    case and in total, as the challenge's evaluator computes them (official), and with the axes in the right order
    (corrected), with 95 % intervals; then how many lesions were found. A case that cannot be scored does not stop the
    others.
    """
    if plot and not other:
        raise click.UsageError("--plot draws a comparison: give --compare too")
    if plot and plot.suffix.lower() != ".png":
        raise click.UsageError(f"--plot: expected a name that ends with .png, found {plot.name}")
    check_outputs(json_file, csv_file, plot, inputs=(predictions, references, other))
    result = _evaluated(predictions, references, workers)
    click.echo(evaluation.evaluation_table(result))
    click.echo("\n" + evaluation.lesion_table(result))
    results, more = [result], dict[str, Any]()
    if leaderboard:
        click.echo("\n" + evaluation.leaderboard_table(result.official, task=leaderboard, name=predictions.name))
        more["leaderboard"] = evaluation.leaderboard_dict(result.official, task=leaderboard)
    if other:
        results.append(_evaluated(other, references, workers))
        comparison = evaluation.compare(*results)
        click.echo("\n" + evaluation.comparison_table(comparison, name_a=str(predictions), name_b=str(other)))
        more["comparison"] = comparison.as_dict()
        if plot:
            evaluation.draw_differences(comparison, plot, name_a=str(predictions), name_b=str(other))
    if json_file:
        evaluation.write_json(result, json_file, more=more)
    if csv_file:
        evaluation.write_csv(result, csv_file)
    _end_with_failures(results)


def _evaluated(predictions: Path, references: Path, workers: int | None) -> Evaluation:
    with tqdm(unit="case", disable=None, leave=False) as bar:

        def on_case(_: int, cases: int) -> None:
            bar.total = cases
            bar.update()

        return evaluation.evaluate(predictions, references, workers=workers, on_case=on_case)


def _end_with_failures(results: list[Evaluation]) -> None:
    """End with exit code 1 if a case could not be scored."""
    failed = dict.fromkeys(name for each in results for name in each.failed)
    if not failed:
        return
    every = {name for each in results for name in (*each.cases, *each.failed)}
    logger.error(
        "error: %d of %d cases could not be scored and are in no total: %s", len(failed), len(every), first_few(failed)
    )
    raise SystemExit(1)
