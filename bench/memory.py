"""Compares the memory that networks use on a CPU with its estimate, and runs a large case under a memory limit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import planned
from bench.processes import run
from bench.small_networks import BINARY, THREE, VERSIONS
from pantherseg.io import write_volume
from pantherseg.machine.memory import MB
from pantherseg.model_sources.lightning import FINAL, write_checkpoint
from pantherseg.model_sources.lightning_plans import LightningPlans, write_plans
from pantherseg.models.find import ModelFolder, open_model_folder
from pantherseg.networks import build_network
from pantherseg.packing.pack import pack
from pantherseg.paths import DEMO_WEIGHTS, ROOT
from pantherseg.phantom import make_phantom
from pantherseg.training.graph import load_training_file
from pantherseg.volume import Grid, Volume

NETWORKS = {
    "plain, T2": ("PlainConvUNet", planned.T2),
    "plain, T1": ("PlainConvUNet", planned.T1),
    "residual M, T1 at 1 mm": ("ResEncM", planned.T1_1MM),
    "residual L, T1 at 1 mm": ("ResEncL", planned.T1_1MM),
}
# Networks that are not nnU-Net's, by their training file.
OWN_NETWORKS = {"attention U-Net, system B": "system_b", "SegFormer3D, system D": "system_d"}
SHORT_NETWORKS = ("plain, T2",)
LARGE_NETWORK = "residual L, T1 at 1 mm"
# Prints the precision, the estimated memory of a network in MB, and the memory used, as limited by RLIMIT_DATA.
PROBE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from pantherseg.models.bundle import open_bundle
from pantherseg.inference.backends import choose_backend

def used():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmData"))

def watch():
    while True:
        peaks.append(used())
        time.sleep(0.01)

bundle, backend = open_bundle(Path(sys.argv[1]), folds=[0]), choose_backend("cpu", sys.argv[2])
before, peaks = used(), []
threading.Thread(target=watch, daemon=True).start()
backend.network(bundle, bundle.folds[0])(np.zeros((1, 1, *bundle.manifest.patch), np.float32))
peaks.append(used())
print(json.dumps([backend.precision, backend.network_bytes(bundle) >> 20, max(peaks) - before]))
"""
# The platform's smallest machine has 8 GB, of which a process may use all but one.
LIMIT_MB = 7 << 10
# As many voxels as the largest training volume of Task 1, with a typical field of view.
LARGE = Grid((96, 400, 498), (3.0, 0.9, 0.9))
RECIPE = """schema = 1
name = "memory"
time_budget_s = 14400
[sockets]
input = "image"
output = "mask"
[[members]]
model = "model"
step = 1.0
"""


def measure(work: Path, *, full: bool) -> dict[str, Any]:
    """Return the estimated and the used memory of each network in each mode, and the run of the large case."""
    work.mkdir(parents=True)
    results: dict[str, Any] = {"networks": {"demo, T1": _probe(DEMO_WEIGHTS / "task1")}}
    for name, folder in _folders(work, full=full):
        pack(folder, work / "models" / "model")
        shutil.rmtree(folder.path)  # several GB
        results["networks"][name] = _probe(work / "models" / "model")
        if name == LARGE_NETWORK:
            results["large"] = _large(work)
        shutil.rmtree(work / "models")
    return results


def _folders(work: Path, *, full: bool) -> Iterator[tuple[str, ModelFolder]]:
    """Yield untrained models by the name of their network."""
    for name, (planner, data) in NETWORKS.items():
        if full or name in SHORT_NETWORKS:
            folds = 5 if name == LARGE_NETWORK else 1
            plans = planned.make_plans(planner, data, work / "plans")
            yield name, planned.make_folder(plans, work / "folder", folds=folds)
    if full:
        for name, system in OWN_NETWORKS.items():
            yield name, _own(system, work / "folder")


def _own(system: str, folder: Path) -> ModelFolder:
    """Write a results folder of our own trainer with the untrained network of a training file."""
    stage = load_training_file(ROOT / "Task1" / "training" / f"{system}.toml").stage["task1"]
    assert stage.lightning is not None
    plan, labels = stage.lightning.plan, BINARY if stage.labels == "tumour" else THREE
    plans = LightningPlans(
        task="task1",
        architecture=plan.network,
        labels=labels,
        spacing_zyx=plan.spacing,
        patch_size_zyx=plan.patch_size,
        normalization=plan.normalization,
        orientation="LPS",
        trained_with=VERSIONS,
    )
    write_plans(folder, plans)
    torch.manual_seed(0)
    network = build_network(folder, plans.network, classes=len(labels), trainable=True)
    write_checkpoint(folder / "fold_0" / FINAL, network.state_dict(), plans, "0")
    return open_model_folder(folder, checkpoint=FINAL)


def _probe(bundle: Path) -> list[dict[str, Any]]:
    results = []
    for mode in ("exact", "fast"):
        command = [sys.executable, "-c", PROBE, str(bundle), mode]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results.append(dict(zip(("precision", "expected_mb", "taken_mb"), json.loads(printed), strict=True)))
    return results


def _large(work: Path) -> dict[str, Any]:
    image, recipe, masks = work / "image.mha", work / "recipe.toml", work / "masks"
    phantom = make_phantom(0, task=1).image
    repeats = [-(-size // given) for size, given in zip(LARGE.shape, phantom.grid.shape, strict=True)]
    larger = np.tile(phantom.array, repeats)[tuple(slice(size) for size in LARGE.shape)]
    write_volume(Volume(np.ascontiguousarray(larger), LARGE), image)
    recipe.write_text(RECIPE)
    command: list[str | Path] = ["prlimit", f"--data={LIMIT_MB * MB}", sys.executable, "-m", "pantherseg", "predict"]
    settings: list[str | Path] = ["--recipe", recipe, "--model", work / "models", "--device", "cpu"]
    measured = run([*command, image, masks, *settings], log=work / "large.log")
    report = json.loads((masks / "image.json").read_text())
    events = [event["message"] for event in report["events"]]
    return {"voxels": larger.size, "limit_mb": LIMIT_MB, **measured.as_dict(), "events": events}


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table with one row per network and precision, and the run of the large case."""
    lines = ["| network | precision | estimated | used | ratio |", "|---|---|---|---|---|"]
    for name, precisions in results["networks"].items():
        for row in precisions:
            estimated, used = row["expected_mb"], row["taken_mb"]
            lines.append(f"| {name} | {row['precision']} | {estimated} MB | {used} MB | {estimated / used:.2f} |")
    if large := results.get("large"):
        voxels, limit = large["voxels"] / 1e6, large["limit_mb"]
        lines += ["", f"{LARGE_NETWORK}, five folds, {voxels:.1f} M voxels, limit {limit} MB:"]
        lines += [f"- {large['seconds'] / 60:.0f} minutes, resident at most {large['peak_mb']:.0f} MB"]
        lines += [f"- {event}" for event in large["events"]]
    return "\n".join(lines)
