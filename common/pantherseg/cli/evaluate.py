"""`pantherseg evaluate`: score masks against reference masks."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pantherseg import evaluation
from pantherseg.cli.options import PATH, check_not_an_input
from pantherseg.errors import first_few

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
def evaluate(
    predictions: Path,
    references: Path,
    json_file: Path | None,
    csv_file: Path | None,
    leaderboard: str | None,
    other: Path | None,
) -> None:
    """Score masks against reference masks.

    PRED and REF are files or folders; label 1 is the tumour in both. Prints the five metrics of the challenge for each
    case and in total, as the challenge's evaluator computes them (official), and with the axes in the right order
    (corrected). A case that cannot be scored does not stop the others.
    """
    for target in (json_file, csv_file):
        check_not_an_input(target, predictions, references, other)
    result = evaluation.evaluate(predictions, references)
    click.echo(evaluation.evaluation_table(result))
    if leaderboard:
        click.echo("\n" + evaluation.leaderboard_table(result.official, task=leaderboard, name=predictions.name))
    if json_file:
        evaluation.write_json(result, json_file)
    if csv_file:
        evaluation.write_csv(result, csv_file)
    results = [result]
    if other:
        results.append(evaluation.evaluate(other, references))
        comparison = evaluation.compare(*results)
        click.echo("\n" + evaluation.comparison_table(comparison, name_a=str(predictions), name_b=str(other)))
    if failed := dict.fromkeys(name for each in results for name in each.failed):
        every = {name for each in results for name in (*each.cases, *each.failed)}
        names = first_few(failed)
        logger.error(
            "error: %d of %d cases could not be scored and are in no total: %s", len(failed), len(every), names
        )
        raise SystemExit(1)
