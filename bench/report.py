"""The page of many cases: `python -m bench.report [--cases 2 50 1000] [--phantoms 50] [--work DIR]`.

Makes phantoms of Task 1 and masks that differ from their labels, and writes a report of each number of cases, which
repeat the phantoms. Prints how long that takes and how much memory, the size of the file, and in headless Chromium how
long it takes to open the file and to draw the first case, and then to open the viewer (WebGL in software). Writes
bench/results/report.json. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from bench.browser import chromium
from bench.processes import machine, run
from pantherseg.files import write_text
from pantherseg.io import write_volume
from pantherseg.labels import TUMOUR, tumour_of
from pantherseg.phantom import make_phantom
from pantherseg.volume import Volume

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 9500
TASK = 1
OPENINGS = 5
# Resolves with the milliseconds since the page was asked for, when the pictures of the first case are on the screen.
DRAWN = """async () => {
  const article = document.querySelector("article");
  article.scrollIntoView();
  while (!article.querySelector(".current svg")) await new Promise(requestAnimationFrame);
  await Promise.all([...article.querySelectorAll("image")].map((image) => image.decode()));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now();
}"""


def make_phantoms(folder: Path, count: int) -> list[str]:
    """Write images, labels, masks that differ from the labels, and reports of the masks; return the names."""
    names = []
    for number in tqdm(range(count), unit="phantom", disable=None):
        random = np.random.default_rng(number)
        phantom = make_phantom(FIRST_SEED + number, task=TASK, size="full")
        tumour = tumour_of(phantom.labels.array)
        moved = np.roll(tumour, random.integers(-3, 4, 3), (0, 1, 2))
        mask = ndimage.binary_dilation(moved) if number % 2 else moved
        name = f"phantom{number:03d}.mha"
        write_volume(phantom.image, folder / "images" / name)
        write_volume(phantom.labels, folder / "references" / name)
        write_volume(Volume(mask.astype(np.uint8) * TUMOUR, phantom.labels.grid), folder / "masks" / name)
        write_text(folder / "masks" / f"phantom{number:03d}.json", json.dumps(_run_report(random)))
        names.append(name)
    return names


def _run_report(random: np.random.Generator) -> dict[str, Any]:
    agreement = float(random.uniform(0.5, 0.95))
    return {
        "pantherseg": "bench",
        "recipe": "task1",
        "device": "cpu",
        "precision": "float32",
        "models": [{"path": "weights/demo/task1", "folds": list("01234")}],
        "events": [{"code": "components_dropped", "message": "2 of 3 components were dropped"}],
        "seconds": {"localizer": 2.0, "members": float(random.uniform(8, 20)), "mask": 0.3},
        "peak_memory_mb": 400,
        "confidence": {
            "pairwise_dice": agreement,
            "mean_entropy": 1 - agreement,
            "fold_volumes_ml": random.uniform(4, 9, 5).tolist(),
            "expected_dice": agreement - 0.05,
        },
    }


def link_cases(phantoms: Path, names: list[str], cases: int, folder: Path) -> None:
    """Make a cohort of links to the phantoms, each as often as needed."""
    for number in range(cases):
        source = Path(names[number % len(names)])
        for kind in ("images", "references", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"case{number:04d}.mha").symlink_to((phantoms / kind / source).resolve())
        report = folder / "masks" / f"case{number:04d}.json"
        report.symlink_to((phantoms / "masks" / source.with_suffix(".json")).resolve())


def measure_opening(page_file: Path) -> dict[str, float]:
    """Return the seconds until the page is loaded, its first case drawn, and the viewer open: medians."""
    from playwright.sync_api import sync_playwright

    loaded, drawn, viewer = [], [], []
    for _ in range(OPENINGS):
        with sync_playwright() as playwright, chromium(playwright) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(page_file.as_uri(), timeout=120_000)
            drawn.append(page.evaluate(DRAWN) / 1000)
            loaded.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            began = time.monotonic()
            page.locator(".open-viewer").first.click()
            page.locator("#viewer .views button").first.wait_for(timeout=120_000)
            viewer.append(time.monotonic() - began)
    figures = {"load_s": loaded, "first_case_drawn_s": drawn, "viewer_open_s": viewer}
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


def measure(cases: int, phantoms: Path, names: list[str], work: Path) -> dict[str, Any]:
    """Return the figures of one report."""
    cohort, page_file = work / f"cohort{cases}", work / f"report{cases}.html"
    link_cases(phantoms, names, cases, cohort)
    command = [sys.executable, "-m", "pantherseg", "report", str(cohort / "images"), str(cohort / "masks")]
    writing = run(
        [*command, str(page_file), "--references", str(cohort / "references")], log=work / f"report{cases}.log"
    )
    return {
        "cases": cases,
        "write_s": round(writing.seconds, 1),
        "write_s_a_case": round(writing.seconds / cases, 2),
        "peak_mb": round(writing.peak_mb),
        "file_mb": round(page_file.stat().st_size / 1e6, 1),
        **measure_opening(page_file),
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[2, 50, 1000])
    parser.add_argument("--phantoms", type=int, default=50)
    parser.add_argument("--work", type=Path, help="keep the files in this folder")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pantherseg-report-")))
        names = make_phantoms(work / "phantoms", options.phantoms)
        rows = [measure(cases, work / "phantoms", names, work) for cases in options.cases]
    write_text(RESULTS / "report.json", json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(
        "| cases | seconds to write | a case | peak MB | file MB | seconds to load | first case drawn | viewer open |"
    )
    print("|---" * 8 + "|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")


if __name__ == "__main__":
    main()
