"""The published systems against nnU-Net's own tools on the same trained folds: `python -m bench.systems_parity`.

Systems A, C and E: the mask of each recipe, without its rescue, against that of nnU-Net's own predictor on the voxels
in which the members look, with the baseline's steps written once more with SciPy. System C, Task 1: one process with
the mean of the logits against five processes of nnU-Net's command and the majority of their labels, as its container
does.

The folds are those of the demo models, in the layouts of the published weights; the volumes are phantoms that no model
has seen. Prints tables and writes bench/results/systems-parity.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from scipy import ndimage

from bench.processes import machine, run
from bench.published_layouts import C_TASK1, SYSTEMS, System
from pantherseg.evaluation import evaluate
from pantherseg.files import write_text
from pantherseg.io import read_labels, write_volume
from pantherseg.localize import Located, localize
from pantherseg.logs import show_log
from pantherseg.model_sources.nnunet import CHECKPOINT, read_json
from pantherseg.models.find import ModelFolder, find_models
from pantherseg.paths import find_recipe
from pantherseg.phantom import make_phantom, write_dataset
from pantherseg.pipeline import segment
from pantherseg.recipe import Recipe, load_recipe
from pantherseg.session import Session
from pantherseg.volume import Box, Volume, uncrop

logger = logging.getLogger(__name__)

Size = Literal["full", "small"]

# Not among the seeds of the demo models and of other benchmarks.
FIRST_SEED = 9800
# Those of nnU-Net's networks.
COMPARED = tuple(
    system for system in SYSTEMS if system.recipe.startswith("system_") and system.checkpoint.endswith(".pth")
)
MIN_VOXELS, MIN_SHARE = 10, 0.15  # of the baseline
FOLDS = range(5)
# The ways whose time is measured.
PACKED, UNPACKED, FIVE = "one process, packed models", "one process", "five processes"
RESULTS = Path(__file__).parent / "results" / "systems-parity.json"
METRICS = ("dice", "surface_dice_5mm", "hd95_mm", "masd_mm", "volume_rmse_mm3")


def compare(system: System, cases: int, size: Size, work: Path) -> dict[str, Any]:
    """Return by case the voxels that differ between a recipe's mask and nnU-Net's, and the seconds of both."""
    root = models_of(system, work)
    recipe = load_recipe(find_recipe(Path(system.recipe))).with_rescue(rescue=False)
    session = Session(recipe, root, device="cpu", many_cases=True)
    predictor = nnunet_predictor(recipe, root)
    by_case = {}
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        image = make_phantom(seed, task=system.task, size=size).image
        volume = Volume(image.array.astype(np.float32), image.grid)
        began = time.monotonic()
        ours = segment(volume, session).mask.array.astype(bool)
        seconds = {"ours": round(time.monotonic() - began, 2)}
        located = _located(volume, session)
        began = time.monotonic()
        expected = _nnunet_mask(volume, recipe, predictor, located)
        seconds["nnunet"] = round(time.monotonic() - began, 2)
        by_case[str(seed)] = {
            "voxels": ours.size,
            "tumour_voxels": int(expected.sum()),
            "different": int((ours != expected).sum()),
            "seconds": seconds,
        }
        logger.info("%s, %d: %s", system, seed, by_case[str(seed)])
    return by_case


def models_of(system: System, work: Path) -> Path:
    """Return the folder of a system's models, which is written if it is not there."""
    root = work / "models" / system.recipe
    if not root.exists():
        system.write(root)
    return root


def nnunet_predictor(recipe: Recipe, root: Path) -> nnUNetPredictor:
    """Return nnU-Net's own predictor with all folds of the only member of a recipe."""
    (model,) = find_models(root, recipe).members
    assert isinstance(model, ModelFolder)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model.path), model.folds, model.checkpoint)
    return predictor


def _located(volume: Volume, session: Session) -> Located:
    settings, localizer = session.recipe.localizer, session.load().localizer
    if settings is None or localizer is None:
        return Located(None, ())
    return localize(volume, localizer, settings)


def _nnunet_mask(volume: Volume, recipe: Recipe, predictor: nnUNetPredictor, located: Located) -> NDArray[np.bool_]:
    """Return nnU-Net's tumour (z, y, x), of the voxels in which the recipe's members look."""
    cropped = recipe.localizer is not None and recipe.localizer.crop
    box = (located.box if cropped else None) or Box.whole(volume.grid.shape)
    crop = volume.crop(box)
    with contextlib.redirect_stdout(io.StringIO()):
        labels = predictor.predict_single_npy_array(crop.array[None], {"spacing": list(crop.grid.spacing)})
    mask = uncrop(labels == recipe.tumour_label, box, volume.grid.shape)
    return mask if cropped or recipe.localizer is None else _in_pancreas(mask, located.pancreas_on(volume.grid))


def _in_pancreas(mask: NDArray[np.bool_], pancreas: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the components (z, y, x) that the baseline keeps."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.zeros_like(mask)
    for number in range(1, count + 1):
        component = components == number
        if component.sum() >= MIN_VOXELS and pancreas[component].mean() >= MIN_SHARE:
            kept |= component
    return kept


def vote_against_mean(cases: int, timed: int, size: Size, work: Path) -> dict[str, Any]:
    """Return the five metrics of both ways of system C on Task 1, and the seconds of whole processes."""
    (system,) = (system for system in SYSTEMS if system.recipe == "system_c_task1")
    root, data = models_of(system, work), work / "voting"
    if not data.exists():
        write_dataset(data, task=1, cases=cases, seed=FIRST_SEED, size=size)
    images = sorted((data / "imagesTr").iterdir())
    seconds: dict[str, list[float]] = {name: [] for name in (PACKED, UNPACKED, FIVE)}
    packed = work / "packed"
    our_command("pack", root, packed, "--recipe", system.recipe, work=work)
    for image in images[:timed]:
        alone = work / "alone" / image.name
        alone.parent.mkdir(exist_ok=True)
        alone.symlink_to(image)
        for name, models in ((PACKED, packed), (UNPACKED, root)):
            words = ("predict", alone, work / "timed", "--recipe", system.recipe, "--model", models, "--device", "cpu")
            seconds[name].append(our_command(*words, "--redo", work=work))
        five = [nnunet_command(root / C_TASK1, alone.parent, work / f"fold{fold}", fold, work) for fold in FOLDS]
        seconds[FIVE].append(sum(five))
        alone.unlink()
    session = Session(load_recipe(find_recipe(Path(system.recipe))), root, device="cpu", many_cases=True)
    predictors = [_one_fold(root / C_TASK1, fold) for fold in FOLDS]
    for image in images:
        volume = Volume(read_labels(image).array.astype(np.float32), read_labels(image).grid)
        name = image.name.replace("_0000", "")
        write_volume(segment(volume, session).mask, work / "mean" / name)
        write_volume(Volume(_majority(volume, predictors), volume.grid), work / "vote" / name)
    scores = {name: evaluate(work / name, data / "labelsTr") for name in ("mean", "vote")}
    return {
        "cases": cases,
        "metrics": {
            name: {kind: getattr(result, kind).as_dict() for kind in ("official", "corrected")}
            for name, result in scores.items()
        },
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
    }


def our_command(*words: str | Path, work: Path) -> float:
    """Run a command of pantherseg, and return its seconds."""
    return run([sys.executable, "-m", "pantherseg", *map(str, words)], log=work / "ours.log").seconds


def nnunet_command(model: Path, images: Path, output: Path, fold: int, work: Path) -> float:
    """Run nnU-Net's command with one fold, and return its seconds."""
    script = Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder"
    options = [
        "-i",
        images,
        "-o",
        output,
        "-m",
        model,
        "-f",
        fold,
        "--disable_tta",
        "-device",
        "cpu",
        "-chk",
        CHECKPOINT,
    ]
    return run([str(word) for word in (script, *options)], log=work / "nnunet.log").seconds


def _one_fold(model: Path, fold: int) -> nnUNetPredictor:
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (fold,), CHECKPOINT)
    return predictor


def _majority(volume: Volume, predictors: list[nnUNetPredictor]) -> NDArray[np.uint8]:
    """Return where most of the folds have the tumour's label (z, y, x); of labels with equal votes the lowest wins."""
    votes = []
    with contextlib.redirect_stdout(io.StringIO()):
        for predictor in predictors:
            votes.append(predictor.predict_single_npy_array(volume.array[None], {"spacing": list(volume.grid.spacing)}))
    counts = np.stack([np.sum([vote == label for vote in votes], axis=0) for label in range(3)])
    mask: NDArray[np.uint8] = (counts.argmax(axis=0) == 1).astype(np.uint8)
    return mask


def tables(results: dict[str, Any]) -> str:
    """Return two Markdown tables."""
    lines = ["| recipe | phantoms | voxels | tumour voxels | different |", "|---|---|---|---|---|"]
    for recipe, by_case in results["parity"].items():
        sums = {key: sum(case[key] for case in by_case.values()) for key in ("voxels", "tumour_voxels", "different")}
        counts = f"{sums['voxels'] / 1e6:.1f} M | {sums['tumour_voxels']} | {sums['different']}"
        lines.append(f"| `{recipe}` | {len(by_case)} | {counts} |")
    if voting := results.get("voting"):
        lines += [
            "",
            f"| system C, Task 1 | {' | '.join(METRICS)} | seconds a case |",
            "|---" * (len(METRICS) + 2) + "|",
        ]
        for title, name, kind in (
            ("one process, mean logits", "mean", PACKED),
            ("the same, packing nnU-Net's folds first", "mean", UNPACKED),
            ("five processes, label voting", "vote", FIVE),
        ):
            official = voting["metrics"][name]["official"]
            seconds = voting["seconds"][kind]
            values = " | ".join(f"{official[metric]:.4g}" for metric in METRICS)
            lines.append(f"| {title} | {values} | {np.mean(seconds):.1f} |" if seconds else f"| {title} | {values} | |")
    return "\n".join(lines)


def _write(results: dict[str, Any], size: Size) -> None:
    """Write the results so far, as a recipe may take minutes."""
    results |= {"first_seed": FIRST_SEED, "size": size, "machine": machine()}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Compare, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", choices=[str(system) for system in COMPARED], help="(all)")
    parser.add_argument("--cases", type=int, default=5, help="phantoms of each recipe (%(default)s)")
    parser.add_argument(
        "--voting", type=int, default=20, help="phantoms for system C's fusions; 0 for none (%(default)s)"
    )
    parser.add_argument("--timed", type=int, default=3, help="of these, timed as whole processes (%(default)s)")
    parser.add_argument("--size", choices=("full", "small"), default="small", help="of the phantoms (%(default)s)")
    options = parser.parse_args()
    show_log()
    results: dict[str, Any] = read_json(RESULTS) if RESULTS.is_file() else {"parity": {}}
    with tempfile.TemporaryDirectory(prefix="pantherseg-bench-") as name:
        work = Path(name)
        for system in COMPARED:
            if options.recipes is None or str(system) in options.recipes:
                results["parity"][system.recipe] = compare(system, options.cases, options.size, work)
                _write(results, options.size)
        if options.voting:
            results["voting"] = vote_against_mean(options.voting, options.timed, options.size, work)
            _write(results, options.size)
    print(tables(results))


if __name__ == "__main__":
    main()
