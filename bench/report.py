"""The page of many cases: `python -m bench.report [--cases 2 50 1000] [--phantoms 50] [--work DIR] [--picture PNG]`.

Makes phantoms of Task 1 and masks that differ from their labels, and writes a report of each number of cases, which
repeat the phantoms. Prints how long that takes and how much memory, the size of the file, and in headless Chromium how
long it takes until the first case is drawn and the file loaded, and then to open the viewer (WebGL in software). Writes
bench/results/report.json. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from bench.browser import chromium
from bench.processes import Run, machine, run
from pantherseg import __version__
from pantherseg.events import Event, EventCode
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.phantom import make_phantom
from pantherseg.results import SCHEMA, CaseReport, Confidence, ModelUse, VoxelBox
from pantherseg.volume import Volume

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 9500
TASK = 1
OPENINGS = 5
PATIENCE_MS = 120_000
SCREEN: ViewportSize = {"width": 1280, "height": 900}
PICTURED_CASES, PICTURE = 8, (1000, 703)
# Resolves with the milliseconds since the page was asked for, when the pictures of the first case are on the screen.
DRAWN = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  while (!document.querySelector("article")) await frame();
  const article = document.querySelector("article");
  article.scrollIntoView();
  while (!article.querySelector(".current svg")) await frame();
  await Promise.all([...article.querySelectorAll("image")].map((image) => image.decode()));
  await frame();
  await frame();
  return performance.now();
}"""


def make_phantoms(folder: Path, count: int) -> list[str]:
    """Write images, labels, masks that differ from the labels, and their reports, unless they exist; return names."""
    names = []
    for number in tqdm(range(count), unit="phantom", disable=None):
        name = f"phantom{number:03d}.mha"
        names.append(name)
        if (folder / "masks" / name).exists():
            continue
        random = np.random.default_rng(number)
        phantom = make_phantom(FIRST_SEED + number, task=TASK, size="full")
        tumour = tumour_of(phantom.labels.array)
        moved = np.roll(tumour, random.integers(-3, 4, 3), (0, 1, 2))
        mask = ndimage.binary_dilation(moved) if number % 2 else moved
        write_volume(phantom.image, folder / "images" / name)
        write_volume(phantom.labels, folder / "references" / name)
        volume = Volume(mask.astype(np.uint8) * TUMOUR, phantom.labels.grid)
        write_text(folder / "masks" / f"phantom{number:03d}.json", _run_report(name, volume, random).as_text())
        write_volume(volume, folder / "masks" / name)
    return names


def _run_report(name: str, mask: Volume, random: np.random.Generator) -> CaseReport:
    agreement = float(random.uniform(0.5, 0.95))
    folds = tuple("01234")
    model = ModelUse(
        role="member",
        path="weights/demo/task1",
        folds=folds,
        checkpoint="checkpoint_final.pth",
        orientation="LPS",
        step=0.5,
        mirroring=False,
        sha256=dict.fromkeys(folds, "0" * 64),
    )
    return CaseReport(
        schema=SCHEMA,
        input=name,
        mask=name,
        pantherseg=__version__,
        not_for_clinical_use=True,
        recipe="task1",
        device="cpu",
        precision="float32",
        models=(model,),
        tumour_ml=float(mask.array.sum()) * mask.grid.voxel_mm3 / 1000,
        confidence=Confidence(
            pairwise_dice=agreement,
            mean_entropy=1 - agreement,
            fold_volumes_ml=tuple(random.uniform(4, 9, len(folds)).tolist()),
            expected_dice=agreement - 0.05,
        ),
        box=VoxelBox(start_zyx=(0, 0, 0), stop_zyx=mask.grid.shape),
        pancreas=None,
        events=(Event(EventCode.COMPONENTS_DROPPED, "20 mm3 in small components were dropped"),),
        peak_memory_mb=400,
        seconds={"members": float(random.uniform(8, 20)), "mask": 0.3},
    )


def link_cases(phantoms: Path, names: list[str], cases: int, folder: Path) -> None:
    """Make a cohort of links to the phantoms, each as often as needed."""
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(cases):
        source = Path(names[number % len(names)])
        for kind in ("images", "references", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"case{number:04d}.mha").symlink_to((phantoms / kind / source).resolve())
        report = folder / "masks" / f"case{number:04d}.json"
        report.symlink_to((phantoms / "masks" / source.with_suffix(".json")).resolve())


def measure_opening(page_file: Path) -> dict[str, float]:
    """Return the seconds until the first case is drawn and the page loaded (medians), and until the viewer is open."""
    from playwright.sync_api import sync_playwright

    figures: dict[str, list[float]] = {"first_case_drawn_s": [], "load_s": [], "viewer_s": [], "second_viewer_s": []}
    with sync_playwright() as playwright:
        for _ in range(OPENINGS):
            # As most people see it, without WebGL in software, which slows down everything.
            with chromium(playwright, flags=()) as browser:
                page = browser.new_page(viewport=SCREEN)
                page.goto(page_file.as_uri(), timeout=PATIENCE_MS, wait_until="commit")
                figures["first_case_drawn_s"].append(page.evaluate(DRAWN) / 1000)
                page.wait_for_load_state("load", timeout=PATIENCE_MS)
                loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
                figures["load_s"].append(loaded / 1000)
        with chromium(playwright) as browser:
            page = browser.new_page(viewport=SCREEN)
            page.goto(page_file.as_uri(), timeout=PATIENCE_MS)
            for name in ("viewer_s", "second_viewer_s"):
                began = time.monotonic()
                page.locator(".open-viewer").first.click()
                page.locator("#viewer .views button").first.wait_for(timeout=PATIENCE_MS)
                figures[name].append(time.monotonic() - began)
                page.keyboard.press("Escape")
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


def write_page(cases: int, phantoms: Path, names: list[str], work: Path) -> Run:
    """Write `report<cases>.html`."""
    cohort, page_file = work / f"cohort{cases}", work / f"report{cases}.html"
    link_cases(phantoms, names, cases, cohort)
    command = [sys.executable, "-m", "pantherseg", "report", str(cohort / "images"), str(cohort / "masks")]
    return run([*command, str(page_file), "--references", str(cohort / "references")], log=work / f"report{cases}.log")


def measure(cases: int, phantoms: Path, names: list[str], work: Path) -> dict[str, Any]:
    """Return the figures of one report."""
    writing, page_file = write_page(cases, phantoms, names, work), work / f"report{cases}.html"
    return {
        "cases": cases,
        "write_s": round(writing.seconds, 1),
        "write_s_a_case": round(writing.seconds / cases, 2),
        "peak_mb": round(writing.peak_mb),
        "file_mb": round(page_file.stat().st_size / 1e6, 1),
        **measure_opening(page_file),
    }


def take_picture(page_file: Path, target: Path) -> None:
    """Save a picture of the first case of a report."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, chromium(playwright, flags=()) as browser:
        page = browser.new_page(viewport=SCREEN)
        page.goto(page_file.as_uri(), timeout=PATIENCE_MS)
        page.evaluate(DRAWN)
        shot = Image.open(io.BytesIO(page.screenshot()))
    target.parent.mkdir(parents=True, exist_ok=True)
    shot.resize(PICTURE, Image.Resampling.LANCZOS).quantize(256, kmeans=8).save(target, optimize=True)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[2, 50, 1000])
    parser.add_argument("--phantoms", type=int, default=50)
    parser.add_argument("--work", type=Path, help="keep the files in this folder, and use its phantoms")
    parser.add_argument("--picture", type=Path, help="measure nothing, and save a picture of a page to this file")
    options = parser.parse_args()
    load = [round(value, 1) for value in os.getloadavg()]
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-report-")))
        names = make_phantoms(work / "phantoms", options.phantoms)
        if options.picture:
            write_page(PICTURED_CASES, work / "phantoms", names, work)
            take_picture(work / f"report{PICTURED_CASES}.html", options.picture)
            return
        rows = [measure(cases, work / "phantoms", names, work) for cases in options.cases]
    write_text(
        RESULTS / "report.json", json.dumps({"machine": machine(), "load_average": load, "rows": rows}, indent=2) + "\n"
    )
    print(f"load of the machine at the beginning: {load}")
    print("| cases | written, s | a case, s | peak MB | file MB | first case, s | loaded, s | viewer, s | again, s |")
    print("|---" * 9 + "|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")


if __name__ == "__main__":
    main()
