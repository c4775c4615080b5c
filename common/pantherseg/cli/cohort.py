"""`pantherseg cohort`: many cases from a manifest into one table, here or on a Ray cluster."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from pantherseg.batch import Wanted
from pantherseg.cli.options import (
    ANONYMOUS,
    AS_JSON,
    DEVICE,
    MEMBERS,
    MODE,
    PATH,
    RECIPE,
    STABLE_UIDS,
    TASK,
    check_dicom_options,
    chosen_recipe,
    formats_in,
    names_in,
)
from pantherseg.errors import OutputError, PantherSegError
from pantherseg.inference.backends import Mode
from pantherseg.recipe import load_recipe
from pantherseg.results import DicomOptions

logger = logging.getLogger(__name__)


@click.group()
def cohort() -> None:
    """Segment thousands of volumes, on one machine or on a Ray cluster.

    Paths may be those of a disk or of a store, such as s3://bucket/folder.
    """
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        expected, hint = "the packages pyarrow and fsspec", "pip install 'pantherseg[cohort]'"
        raise PantherSegError("cohort", expected=expected, found=str(error), hint=hint) from error


@cohort.command()
@click.argument("source", metavar="MANIFEST")
@click.argument("output")
@click.option("--task", type=TASK, help="Use the recipe of this task.")
@RECIPE
@click.option(
    "--model",
    type=PATH,
    help="Folder of models, on every machine  [default: the demo models, which were trained on phantoms only].",
)
@MODE
@DEVICE
@MEMBERS
@click.option(
    "--output-format",
    metavar="NAMES",
    help="Formats of the results, as for `pantherseg predict`  [default: the format of each volume, mha for DICOM].",
)
@click.option(
    "--save-probabilities", is_flag=True, help="Also write the tumour's probability before post-processing, <case>.npz."
)
@ANONYMOUS
@STABLE_UIDS
@click.option(
    "--address",
    metavar="local|auto|ADDRESS",
    help="Run on Ray: local starts it on this machine, auto finds the cluster of this machine, HOST:PORT and"
    " ray://HOST:PORT another  [default: in this process, without Ray].",
)
@click.option("--workers", type=click.IntRange(min=1), help="Workers on Ray.  [default: as many as fit]")
@click.option(
    "--cpus", type=click.IntRange(min=1), help="CPUs of each worker.  [default: 4, or all of a smaller machine]"
)
@click.option(
    "--gpus", type=click.IntRange(0, 1), help="GPUs of each worker.  [default: 1 if the cluster has any, else 0]"
)
@click.option("--redo", is_flag=True, help="Segment finished cases again.")
def run(
    source: str,
    output: str,
    task: str | None,
    recipe: Path | None,
    model: Path | None,
    mode: Mode,
    device: str,
    members: str | None,
    output_format: str | None,
    save_probabilities: bool,
    anonymous: bool,
    stable_uids: bool,
    address: str | None,
    workers: int | None,
    cpus: int | None,
    gpus: int | None,
    redo: bool,
) -> None:
    """Segment the cases of a manifest.

    MANIFEST is a CSV or Parquet file with the columns `case` and `input`, a folder of volumes, a volume, or a pattern
    such as 'scans/**/*.nii.gz'. The folder OUTPUT gets a mask and a report of each case in cases/, and results.parquet,
    a table with a row a case. Finished cases are skipped, so the same command goes on after an interruption, and tries
    failed cases again.
    """
    from pantherseg.cohort.ray_crew import Cluster
    from pantherseg.cohort.run import run_cohort
    from pantherseg.cohort.storage import absolute
    from pantherseg.cohort.worker import Job

    if address is None and (workers or cpus or gpus is not None):
        raise click.UsageError("--workers, --cpus and --gpus are for workers on Ray: give --address too")
    dicom = DicomOptions(anonymous=anonymous, stable_uids=stable_uids)
    wanted = Wanted(formats_in(output_format), dicom, save_probabilities)
    check_dicom_options(wanted)
    names = names_in(members)
    job = Job(
        recipe=load_recipe(chosen_recipe(task, recipe)),
        output=absolute(output),
        models=None if model is None else absolute(str(model)),
        device=device,
        mode=mode,
        members=None if names is None else tuple(names),
        wanted=wanted,
        redo=redo,
    )
    if run_cohort(source, job, None if address is None else Cluster(address, workers, cpus, gpus)):
        raise SystemExit(1)


@cohort.command()
@click.argument("output")
@AS_JSON
def status(output: str, as_json: bool) -> None:
    """Say how far a cohort is.

    OUTPUT is the folder of `pantherseg cohort run`. Prints how many cases are done, failed and waiting, the rate, the
    time left, and why cases failed.
    """
    from pantherseg.cohort.status import status_of

    found = status_of(output)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))


@cohort.command()
@click.argument("output")
@click.argument("page", type=PATH)
@click.option("--cases", type=click.IntRange(min=1), default=100, show_default=True, help="How many are shown at most.")
def report(output: str, page: Path, cases: int) -> None:
    """Show the cases that need a look most.

    OUTPUT is the folder of `pantherseg cohort run`, and PAGE an .html file, as `pantherseg report` writes it: failed
    cases first, then those of which the networks are least certain.
    """
    from pantherseg.cohort.page import write_cohort_page

    if page.suffix.lower() != ".html":
        raise click.UsageError(f"PAGE: expected a name that ends with .html, found {page.name}")
    write_cohort_page(output, page, cases=cases)


@cohort.command()
@click.argument("source")
@click.argument("manifest", metavar="MANIFEST")
def manifest(source: str, manifest: str) -> None:
    """Write a manifest of a folder or a pattern.

    SOURCE is a folder of volumes or a pattern such as 'scans/*/t1.nii.gz', and MANIFEST a new .csv or .parquet file.
    Cases are called by their files; give those of one name other names before `cohort run`.
    """
    from pantherseg.cohort.manifest import list_cases, write_manifest
    from pantherseg.cohort.storage import exists

    if exists(manifest):
        problem, hint = "there is a manifest already, which may have been edited", "remove it, or name another file"
        raise OutputError(manifest, problem, hint=hint)
    cases = list_cases(source)
    write_manifest(cases, manifest)
    logger.info("%s: %d cases", manifest, len(cases))
