"""Judges the expected Dice on phantoms: `python -m bench.confidence [--tasks 1 2] [--cases 40] [--work DIR]`.

Makes two sets of phantoms a task that no model has seen, and segments them with the demo models. From the first set
`pantherseg calibrate` makes weights/demo/calibration.json. On the second, the expected Dice is compared with the true
one. Every second phantom is made harder, so that there are poor masks to tell from good ones. With a folder, cases that
are done are kept. Prints tables, writes bench/results/confidence.json and docs/images/confidence.png.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pantherseg.case import CaseOutput, run_case
from pantherseg.io import write_volume
from pantherseg.labels import BACKGROUND
from pantherseg.logs import show_log
from pantherseg.paths import DEMO_WEIGHTS, task_recipe
from pantherseg.phantom import case_id, make_phantom
from pantherseg.recipe import load_recipe
from pantherseg.session import Session
from pantherseg.volume import Volume

logger = logging.getLogger(__name__)

# Not among the seeds of weights/demo/make.sh, test/make_samples.py, and the other benchmarks.
FIRST_SEEDS = {"fit": 7000, "judge": 7200}
# A harder phantom: noise in shares of the pancreas's intensity, and how many slices are averaged.
NOISE = (0.05, 0.4)
SLICES = (1, 2, 3)


def harder(image: NDArray[np.int16], labels: NDArray[np.uint8], seed: int) -> NDArray[np.int16]:
    """Return an image (z, y, x) with more noise and thicker slices on the same grid."""
    rng = np.random.default_rng([seed, 1])
    thick = int(rng.choice(SLICES))
    signal = image.astype(np.float32)
    for start in range(0, len(signal), thick):
        signal[start : start + thick] = signal[start : start + thick].mean(axis=0)
    sigma = np.float32(rng.uniform(*NOISE) * float(image[labels > BACKGROUND].mean()))
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    measured = np.hypot(real, sigma * rng.standard_normal(signal.shape, dtype=np.float32))
    limited: NDArray[np.int16] = np.clip(np.rint(measured), 0, np.iinfo(np.int16).max).astype(np.int16)
    return limited


def predict_case(session: Session, task: int, seed: int, folder: Path) -> None:
    """Make one phantom, and write its labels, mask and report below a folder, unless they are there."""
    name = case_id(seed, task=task)
    image, output = (
        folder / f"{name}.mha",
        CaseOutput(folder / "masks" / f"{name}.mha", folder / "masks" / f"{name}.json"),
    )
    if output.report.is_file():
        return
    phantom = make_phantom(seed, task=task)
    array = harder(phantom.image.array, phantom.labels.array, seed) if seed % 2 else phantom.image.array
    write_volume(Volume(array, phantom.image.grid), image)
    write_volume(phantom.labels, folder / "labels" / f"{name}.mha")
    run_case(image, session, output)
    image.unlink()  # full-size images of all cases take gigabytes


def main() -> None:
    """Measure both tasks, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--work", type=Path, help="folder in which masks are kept")
    options = parser.parse_args()
    show_log()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-bench-")))
        for task in options.tasks:
            session = Session(load_recipe(task_recipe(task)), DEMO_WEIGHTS, device="cpu", many_cases=True)
            for number in range(options.cases):
                for kind, first in FIRST_SEEDS.items():
                    predict_case(session, task, first + number, work / f"task{task}-{kind}")


if __name__ == "__main__":
    main()
