"""`pantherseg evaluate`: score masks against reference masks."""

from __future__ import annotations

from pathlib import Path

import click

from pantherseg import evaluation
from pantherseg.cli.options import PATH, check_not_an_input


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
    (corrected).
    """
    for target in (json_file, csv_file):
        check_not_an_input(target, predictions, references, other)
    result = evaluation.evaluate(predictions, references)
    click.echo(evaluation.evaluation_table(result))
    if leaderboard:
        click.echo("\n" + evaluation.leaderboard_table(result.official, task=leaderboard, name=predictions.name))
    if other:
        comparison = evaluation.compare(result, evaluation.evaluate(other, references))
        click.echo("\n" + evaluation.comparison_table(comparison, name_a=str(predictions), name_b=str(other)))
    if json_file:
        evaluation.write_json(result, json_file)
    if csv_file:
        evaluation.write_csv(result, csv_file)
