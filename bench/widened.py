"""Trained networks of nnU-Net's size, as whole processes: `python -m bench.widened [--work DIR] [--repeats N]`.

The demo models are small, and larger ones would take days to train here. Copying each of their channels four times
gives networks with 32 to 128 features and the same masks up to rounding, so that the masks, the tiles that `fast`
leaves out and the time of convolutions are all real. An unseen phantom of each task is segmented by our modes and by
`nnUNetv2_predict --disable_tta`, in turn. Prints a table and writes bench/results/widened.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bench import planned
from bench.fast import as_it_is
from bench.parity import dice, member_input
from bench.processes import Run, machine
from bench.side_by_side import FOLDS, Bench
from bench.unpack import unpack
from pantherseg.files import write_text
from pantherseg.io import read_labels, write_volume
from pantherseg.labels import tumour_of
from pantherseg.model_sources.nnunet import read_configuration
from pantherseg.models.bundle import Bundle, open_bundle
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.packing.pack import pack
from pantherseg.paths import DEMO_WEIGHTS
from pantherseg.phantom import make_phantom

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "widened.json"
# Not among the seeds of weights/demo/make.sh, of the tests and of other benchmarks.
SEED = 9400
FACTOR = 4
NNUNET = "nnUNetv2_predict --disable_tta"


def widen(bundle: Bundle, folder: Path) -> ModelFolder:
    """Write the folds of a bundle as an nnU-Net folder whose networks have each channel several times."""
    unpack(bundle, folder)
    plans = json.loads((folder / "plans.json").read_text())
    for configuration in plans["configurations"].values():
        arguments = configuration["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [FACTOR * features for features in arguments["features_per_stage"]]
    (folder / "plans.json").write_text(json.dumps(plans))
    checkpoint = bundle.manifest.checkpoint
    network = read_configuration(folder, bundle.manifest.provenance.record["configuration"]).network()
    for path in folder.glob(f"fold_*/{checkpoint}"):
        content = torch.load(path, weights_only=False)
        content["network_weights"] = _widened(content["network_weights"], network)
        torch.save(content | {"trainer_name": "nnUNetTrainer"}, path)
    return open_model_folder(folder, checkpoint=checkpoint)


def _widened(values: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return weights for a wider network, in which the copies of a channel share its weight."""
    inputs = {}
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            inputs[f"{name}.weight"] = 0 if isinstance(module, _ConvTransposeNd) else 1
    wide = {}
    for name, target in network.state_dict().items():
        value = values[name]
        for axis, (size, wanted) in enumerate(zip(value.shape, target.shape, strict=True)):
            copies = wanted // size
            value = value.repeat_interleave(copies, dim=axis) / (copies if inputs.get(name) == axis else 1)
        wide[name] = value.contiguous()
    return wide


def measure(task: int, work: Path, repeats: int) -> dict[str, Any]:
    """Compare seconds and masks on one phantom."""
    folder = work / "results" / planned.DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    bench = Bench(work, folder, work / "bundles", work / "images" / "case_0000.mha", "cpu")
    pack(widen(open_bundle(DEMO_WEIGHTS / f"task{task}"), folder), bench.bundles / "model")
    volume = member_input(as_it_is(make_phantom(SEED, task=task)), task)
    write_volume(volume, bench.image)
    runs: dict[str, list[Run]] = {"exact": [], "fast": [], NNUNET: []}
    for _ in range(repeats):
        for mode in ("exact", "fast"):
            runs[mode].append(bench.ours(mode))
        runs[NNUNET].append(bench.command(*range(FOLDS)))
    exact, fast = (
        tumour_of(read_labels(work / f"masks-{mode}-{FOLDS}-False/case_0000.mha").array) for mode in ("exact", "fast")
    )
    expected = tumour_of(read_labels(work / "nnunet-0-1-2-3-4" / "case.mha").array)
    reports = {mode: bench.report(mode) for mode in ("exact", "fast")}
    return {
        "shape": volume.grid.shape,
        "precision": {mode: report["precision"] for mode, report in reports.items()},
        "tile_share": reports["fast"]["models"][0]["tile_share"],
        "tumour_voxels": int(expected.sum()),
        "differ": {"exact": int((exact != expected).sum()), "fast": int((fast != expected).sum())},
        "dice_fast": round(dice(fast, exact), 6),
        "seconds": {name: round(statistics.median(run.seconds for run in some), 1) for name, some in runs.items()},
        "peak_mb": {name: round(max(run.peak_mb for run in some)) for name, some in runs.items()},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each task and mode."""
    lines = [
        "| | volume | mode | tiles run | ratio | seconds | tumour voxels that differ | peak MB |",
        "|---" * 8 + "|",
    ]
    for task, row in results.items():
        theirs, their_mb = row["seconds"][NNUNET], row["peak_mb"][NNUNET]
        for mode in ("exact", "fast"):
            share = row["tile_share"] if mode == "fast" else 1
            seconds = row["seconds"][mode]
            lines.append(
                f"| {task} | {'x'.join(map(str, row['shape']))} | `{mode}`, {row['precision'][mode]} | {share:.0%} "
                f"| {theirs / seconds:.1f}x faster | {seconds} against {theirs} "
                f"| {row['differ'][mode]} of {row['tumour_voxels']} | {row['peak_mb'][mode]} against {their_mb} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.widened", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="an empty folder for all files")
    parser.add_argument("--repeats", type=int, default=1, help="how often each process runs; the median counts")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        results = {f"Task {task}": measure(task, work / f"task{task}", options.repeats) for task in (1, 2)}
    load = [round(value, 1) for value in os.getloadavg()]
    write_text(RESULTS, json.dumps({"machine": machine(), "load_average": load, "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
