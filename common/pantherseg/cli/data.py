"""`pantherseg data`: import, check, split and crop data sets for training."""

from __future__ import annotations

import logging
from pathlib import Path

import click
from click.core import ParameterSource
from tqdm import tqdm

from pantherseg.cli.options import AS_JSON, DEVICE, PATH, TASK, chosen_recipe, print_verdicts
from pantherseg.datasets.check import check_dataset
from pantherseg.datasets.importing import REPORT, Source, import_data
from pantherseg.datasets.layouts import LAYOUTS
from pantherseg.datasets.raw import RawDataset
from pantherseg.datasets.splits import FOLDS, SEED, split_dataset
from pantherseg.labels import LABEL_MAPS, LabelMapName
from pantherseg.orientation import DEFAULT_ORIENTATION, ORIENTATIONS, Orientation
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.recipe import load_recipe

logger = logging.getLogger(__name__)

ID = click.option(
    "--id", "dataset_id", type=click.IntRange(1, 999), required=True, help="nnU-Net's number of the new data set."
)
NAME = click.option("--name", required=True, help="Name of the new data set.")


def _sources(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[Source]:
    """Return the sources of LAYOUT=FOLDER; another form and an unknown layout are usage errors."""
    sources = []
    for value in values:
        layout, _, folder = value.partition("=")
        if layout not in LAYOUTS or not folder:
            raise click.BadParameter(
                f"expected LAYOUT=FOLDER with one of the layouts {', '.join(LAYOUTS)}, found {value!r}"
            )
        sources.append(Source(layout, Path(folder)))
    return sources


@click.group()
def data() -> None:
    """Import, check, split and crop data sets for training.

    They are kept as raw nnU-Net data sets, Dataset<id>_<name>, on which nnU-Net's own commands work too.
    """


@data.command("import")
@click.argument("raw", type=PATH)
@ID
@NAME
@click.option(
    "--from",
    "sources",
    metavar="LAYOUT=FOLDER",
    multiple=True,
    required=True,
    callback=_sources,
    help="What to import; may be given several times.",
)
@click.option(
    "--labels",
    type=click.Choice(list(LABEL_MAPS)),
    default="tumour+pancreas",
    show_default=True,
    help="Labels of the new data set.",
)
@click.option(
    "--orientation",
    type=click.Choice(ORIENTATIONS),
    metavar="CODE",
    default=DEFAULT_ORIENTATION,
    show_default=True,
    help="Turn all volumes to this orientation.",
)
@click.option("--require-tumour", is_flag=True, help="Refuse cases without a tumour.")
@click.option("--strict", is_flag=True, help="Import nothing if any case is refused.")
@click.pass_context
def import_(
    context: click.Context,
    raw: Path,
    dataset_id: int,
    name: str,
    sources: list[Source],
    labels: LabelMapName,
    orientation: Orientation,
    require_tumour: bool,
    strict: bool,
) -> None:
    """Import published data sets.

    The folder RAW gets the data set. Layouts: panther, panther-unlabelled, msd (Task07_Pancreas), panorama, raw (an
    nnU-Net data set) and panther-organs (phantoms). Every case is checked. Cases that cannot be used are listed in
    import.json. Images that are stored as they are needed are linked, so their folder must stay where it is. A single
    raw data set passes its splits_final.json on.
    """
    _check_usage(context, sources, labels, require_tumour)
    with tqdm(unit="case", disable=None) as bar:
        report = import_data(
            sources,
            raw,
            dataset_id,
            name,
            labels=labels,
            orientation=orientation,
            require_tumour=require_tumour,
            strict=strict,
            keep_splits=True,
            on_case=lambda _: bar.update(),
        )
    counts = len(report.imported), len(report.linked), len(report.refused)
    logger.info("%s: %d cases imported (%d images linked), %d refused", report.dataset, *counts)
    if report.refused:
        logger.warning("see %s for the refused cases", report.dataset / REPORT)


def _check_usage(context: click.Context, sources: list[Source], labels: LabelMapName, require_tumour: bool) -> None:
    """Raise UsageError for options that have no effect with the others."""
    if require_tumour and labels == "organs":
        raise click.UsageError("--require-tumour needs labels with a tumour, and --labels organs has none")
    if not any(LAYOUTS[source.layout].labelled for source in sources):
        for name, option in (("labels", "--labels"), ("require_tumour", "--require-tumour")):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{option} has no effect on images without labels")


@data.command()
@click.argument("dataset", type=PATH)
@AS_JSON
def check(dataset: Path, as_json: bool) -> None:
    """Check a raw data set and all of its volumes.

    Prints one line for each rule; the exit code is 1 if any is broken.
    """
    with tqdm(unit="case", disable=None) as bar:
        verdicts = check_dataset(dataset, on_case=lambda _: bar.update())
    print_verdicts(verdicts, as_json)


@data.command()
@click.argument("dataset", type=PATH)
@click.option("--folds", type=click.IntRange(min=2), help=f"Number of folds.  [default: {FOLDS}, or those of --given]")
@click.option("--seed", type=click.IntRange(min=0), help=f"Seed of the shuffling.  [default: {SEED}]")
@click.option("--given", type=PATH, help="Use the splits of this file, in the form of splits_final.json.")
def split(dataset: Path, folds: int | None, seed: int | None, given: Path | None) -> None:
    """Split a raw data set into folds, patient by patient.

    Writes splits_final.json in the folder DATASET, once: the same for every model that is trained on it.
    """
    if given is not None and seed is not None:
        raise click.UsageError("--given brings its own folds: leave out --seed")
    splits = split_dataset(
        RawDataset.open(dataset),
        folds=folds,
        seed=SEED if seed is None else seed,
        given=given,
    )
    sizes = ", ".join(f"{len(fold['train'])}+{len(fold['val'])}" for fold in splits)
    logger.info("%s: %d folds of training + validation cases: %s", dataset, len(splits), sizes)


@data.command()
@click.argument("dataset", type=PATH)
@click.argument("raw", type=PATH)
@ID
@NAME
@click.option("--task", type=TASK, help="Use the localizer of this task's recipe.")
@click.option("--recipe", type=PATH, help="Use the localizer of this recipe.")
@click.option("--model", type=PATH, help="Folder of models  [default: the demo models, for phantoms only].")
@DEVICE
def crop(
    dataset: Path,
    raw: Path,
    dataset_id: int,
    name: str,
    task: str | None,
    recipe: Path | None,
    model: Path | None,
    device: str,
) -> None:
    """Cut the cases of a raw data set to the region around the pancreas.

    The folder RAW gets the new data set. The region is found by the localizer of a recipe, with its margin, as when a
    case is segmented. The new data set gets the splits_final.json of the old one, if there is one.
    """
    from pantherseg.datasets.crops import crop_dataset, load_localizer  # imports what runs networks

    settings = load_recipe(chosen_recipe(task, recipe))
    source = RawDataset.open(dataset)
    localizer, wanted = load_localizer(settings, model or DEMO_WEIGHTS, device=device)
    with tqdm(total=len(source.cases), unit="case", disable=None) as bar:
        new = crop_dataset(
            source,
            raw,
            dataset_id,
            name,
            localizer=localizer,
            settings=wanted,
            keep_splits=True,
            on_case=lambda _: bar.update(),
        )
    for case, known in new.cases.items():
        if known.remark:
            logger.warning("%s: %s", case, known.remark)
    logger.info("%s: %d cases", new.folder, len(new.cases))
