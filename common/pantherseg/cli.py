"""The command line: `pantherseg predict | pack | weights | evaluate | check | sbom | phantom | train | report`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pantherseg import __version__
from pantherseg.logs import say_error, show_log

if TYPE_CHECKING:
    from pantherseg.grand_challenge.verdict import Verdict

# Usage is checked by click (exit code 2); everything else about a path is said by the library (exit code 1).
PATH = click.Path(path_type=Path, readable=False)


class OneLineErrors(click.Group):
    """A group of commands whose errors are one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            say_error(error)
            ctx.exit(1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Pancreatic-tumour masks from abdominal MR volumes. Not for clinical use."""
    show_log()


@main.command()
@click.argument("source", metavar="INPUT", type=PATH)
@click.argument("output", type=PATH)
@click.option("--task", type=click.Choice(["1", "2"]), help="Use this task's recipe.")
@click.option("--recipe", type=PATH, help="Use this recipe.")
@click.option("--model", type=PATH, help="Folder of models; without it the demo weights, which know only phantoms.")
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: nnU-Net's own masks; fast: in bfloat16 where the CPU has it, on a GPU as exact.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--device-memory", metavar="MB", type=click.IntRange(min=1), help="Keep no more than so much on a GPU.")
@click.option("--time-budget", metavar="S", type=click.FloatRange(min=0, min_open=True), help="Seconds for a volume.")
@click.option("--rescue", is_flag=True, help="Fill an empty mask with the most probable component.")
def predict(
    source: Path,
    output: Path,
    task: str | None,
    recipe: Path | None,
    model: Path | None,
    mode: Any,
    device: str,
    device_memory: int | None,
    time_budget: float | None,
    rescue: bool,
) -> None:
    """Segment INPUT, a volume or a folder of volumes, into the folder OUTPUT.

    OUTPUT gets a mask in each volume's own format and <case>.json with what happened on the way.
    """
    if (task is None) == (recipe is None):
        raise click.UsageError("give either --task or --recipe")
    if device_memory and device == "cpu":
        raise click.UsageError("--device-memory: it is for GPUs")
    if time_budget is not None and not math.isfinite(time_budget):
        raise click.UsageError("--time-budget: expected seconds")
    from pantherseg.commands.predict import predict_all
    from pantherseg.paths import DEMO_WEIGHTS, task_recipe

    path = recipe or task_recipe(int(task or 0))
    failed = predict_all(
        source,
        output,
        recipe=path,
        model=model or DEMO_WEIGHTS,
        device=device,
        mode=mode,
        rescue=rescue,
        device_memory_mb=device_memory,
        time_budget_s=time_budget,
    )
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("source", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", metavar="NAME", help="Which checkpoints  [default: checkpoint_final.pth].")
@click.option("--task", type=click.Choice(["1", "2"]), help="Pack every model of this task's recipe.")
@click.option("--recipe", type=PATH, help="Pack every model of this recipe.")
def pack(source: Path, bundle: Path, checkpoint: str | None, task: str | None, recipe: Path | None) -> None:
    """Pack SOURCE, an nnU-Net model folder, into the new folder BUNDLE: half the bytes, and no torch to run it.

    With a recipe, SOURCE is a folder of models, and each that the recipe names becomes BUNDLE/<role>.
    """
    if task and recipe:
        raise click.UsageError("give --task or --recipe")
    if checkpoint and (task or recipe):
        raise click.UsageError("--checkpoint: the recipe names it")
    from pantherseg.commands.pack import pack_source

    for line in pack_source(source, bundle, checkpoint=checkpoint, task=task, recipe=recipe):
        click.echo(line)


@main.group()
def weights() -> None:
    """Published weights: which there are, and how they get here."""


PLACE = click.option("--to", "root", metavar="DIR", type=PATH, help="Folder of models  [default: weights/own].")


@weights.command("list")
@PLACE
def list_weights(root: Path | None) -> None:
    """Print a table of the published weights that are known, and which of them are here."""
    from pantherseg.commands.weights import table

    click.echo(table(root))


@weights.command()
@click.argument("name")
@PLACE
@click.option("--file", "files", metavar="NAME", multiple=True, help="This file of the Zenodo record; may be repeated.")
@click.option("--zenodo", metavar="URL", help="Where the records are  [default: https://zenodo.org/api/records].")
def fetch(name: str, root: Path | None, files: tuple[str, ...], zenodo: str | None) -> None:
    """Download the weights NAME, check them, and place them as DIR/<role>, packed, where every command takes them from.

    After an end at any time the same command goes on from there.
    """
    from pantherseg.commands.weights import fetch_named

    for line in fetch_named(name, root, files=files, zenodo=zenodo):
        click.echo(line)


@weights.command()
@click.argument("name", required=False)
@PLACE
def verify(name: str | None, root: Path | None) -> None:
    """Compare what lies in DIR with its checksums: a line each, exit code 1 if one is damaged."""
    from pantherseg.commands.weights import verify_all

    sound = True
    for line, good in verify_all(name, root):
        click.echo(f"{'ok     ' if good else 'DAMAGED'}  {line}")
        sound &= good
    if not sound:
        raise SystemExit(1)


@main.command()
@click.argument("predictions", metavar="PRED", type=PATH)
@click.argument("references", metavar="REF", type=PATH)
@click.option("--json", "json_file", type=PATH, help="Write all figures to this file.")
@click.option("--csv", "csv_file", type=PATH, help="Write a row a case and convention to this file.")
@click.option("--leaderboard", type=click.Choice(["task1", "task2"]), help="Place the result among the test phase's.")
@click.option("--compare", "other", metavar="PRED_B", type=PATH, help="Compare with other masks, case by case.")
def evaluate(
    predictions: Path,
    references: Path,
    json_file: Path | None,
    csv_file: Path | None,
    leaderboard: str | None,
    other: Path | None,
) -> None:
    """Score the masks in PRED against the references in REF (label 1 = tumour), files or folders.

    Prints the challenge's five metrics for each case and in total, as its evaluator computes them (official) and with
    the axes in order (corrected).
    """
    from pantherseg import evaluation

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


@main.group()
def check() -> None:
    """Check what goes to the platform, and what comes from it: a line a rule, exit code 1 if one is broken."""


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
ONE_TASK = click.option("--task", type=click.Choice(["1", "2"]), required=True)


@check.command("job")
@click.argument("folder", type=PATH)
@ONE_TASK
@AS_JSON
def check_job(folder: Path, task: str, as_json: bool) -> None:
    """Check that a job FOLDER, laid out as the platform's /input, has the task's volume."""
    from pantherseg.commands.check import job

    _show(job(folder, task), as_json)


@check.command("output")
@click.argument("folder", type=PATH)
@ONE_TASK
@click.option("--job", type=PATH, help="The job folder that it answers, to compare the grids.")
@AS_JSON
def check_output(folder: Path, task: str, job: Path | None, as_json: bool) -> None:
    """Check an output FOLDER, laid out as the platform's /output."""
    from pantherseg.commands.check import output

    _show(output(folder, task, job=job), as_json)


@check.command("image")
@click.argument("image", metavar="PATH_OR_TAG")
@AS_JSON
def check_image(image: str, as_json: bool) -> None:
    """Check a container image: an archive of `docker save`, or the tag of an image of Docker's engine."""
    from pantherseg.grand_challenge.check_image import check_image

    _show(check_image(image), as_json)


@check.command("model")
@click.argument("path", type=PATH)
@click.option("--task", type=click.Choice(["1", "2"]), help="For this task's recipe.")
@click.option("--recipe", type=PATH, help="For this recipe.")
@AS_JSON
def check_model(path: Path, task: str | None, recipe: Path | None, as_json: bool) -> None:
    """Check a model archive (PATH is a .tar.gz), or a folder of models before it is packed."""
    if (task is None) == (recipe is None):
        raise click.UsageError("give either --task or --recipe")
    from pantherseg.commands.check import model

    _show(model(path, task=task, recipe=recipe), as_json)


def _show(verdicts: Sequence[Verdict], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([verdict.as_dict() for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            click.echo(f"{'ok    ' if verdict.kept else 'BROKEN'}  {verdict.as_line()}")
    if not all(verdict.kept for verdict in verdicts):
        raise SystemExit(1)


@main.command()
@click.option("--name", default="pantherseg", show_default=True, help="What the list is called, such as the image.")
@click.option("--image-id", metavar="ID", help="Docker's id of the image, to be named in the list.")
def sbom(name: str, image_id: str | None) -> None:
    """Print what is installed where this runs, Python's and Debian's packages, as CycloneDX (JSON)."""
    from pantherseg.sbom import contents

    click.echo(contents(name, image_id=image_id))


@main.command()
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--task", type=click.Choice(["1", "2"]), required=True)
@click.option("--cases", type=click.IntRange(min=1), required=True, help="Number of volumes.")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Case i is the phantom of seed + i.")
@click.option("--size", type=click.Choice(["full", "small"]), default="full", show_default=True)
@click.option("--organs", is_flag=True, help="Write organ labels too, numbered as MRSegmentator's first seven.")
def phantom(output: Path, task: str, cases: int, seed: int, size: Any, organs: bool) -> None:
    """Make synthetic abdominal MR volumes with a pancreatic tumour, laid out and named as PANTHER's training data."""
    from tqdm import tqdm

    from pantherseg.phantom import write_dataset

    with tqdm(total=cases, unit="case", disable=None) as bar:
        write_dataset(
            output, task=int(task), cases=cases, seed=seed, size=size, organs=organs, on_case=lambda _: bar.update()
        )


@main.command()
@click.argument("recipe", type=PATH)
@click.argument("data", type=PATH)
@click.argument("output", type=PATH)
@click.option("--start", type=PATH, help="Model folder to fine-tune: fold k starts from its fold k.")
@click.option("--work", type=PATH, help="Keep nnU-Net's own folders here; without it they are temporary.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def train(recipe: Path, data: Path, output: Path, start: Path | None, work: Path | None, device: str) -> None:
    """Train the model of a training RECIPE on the data set folder DATA into the model folder OUTPUT.

    DATA is laid out as PANTHER's: imagesTr/<case>_0000.mha and labelsTr/<case>.mha.
    """
    from pantherseg.commands.train import train_model

    train_model(recipe, data, output, start=start, work=work, device=device)


@main.command()
@click.argument("image", type=PATH)
@click.argument("mask", type=PATH)
@click.argument("output", metavar="PNG", type=PATH)
@click.option("--reference", type=PATH, help="Draw this mask beside, label 1 = tumour.")
def report(image: Path, mask: Path, output: Path, reference: Path | None) -> None:
    """Draw IMAGE, the tumour MASK found in it and its reference to a picture."""
    from pantherseg.io import case_name, read_image, read_labels
    from pantherseg.report import draw_case

    volume, _ = read_image(image)
    truth = None if reference is None else read_labels(reference)
    draw_case(volume, read_labels(mask), truth, output, title=case_name(image))
