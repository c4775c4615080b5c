"""Small cohorts for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pantherseg.io import write_volume
from pantherseg.volume import Grid, Volume

GRID = Grid((12, 40, 48), (4.0, 2.0, 2.0))
HOSTILE = "<script>alert(1)</script> \"'&amp; größe Ω"


def image(seed: int = 0, grid: Grid = GRID) -> Volume:
    return Volume(np.random.default_rng(seed).normal(100, 20, grid.shape).astype(np.float32), grid)


def tumour(first: int = 4, last: int = 8, *, grid: Grid = GRID, label: int = 1, kind: type = np.uint8) -> Volume:
    array = np.zeros(grid.shape, kind)
    array[first:last, 10:20, 20:30] = label
    return Volume(array, grid)


MODEL = {
    "role": "member",
    "path": "weights/demo/task1",
    "folds": ["0", "1"],
    "checkpoint": "checkpoint_final.pth",
    "orientation": "LPS",
    "step": 0.5,
    "mirroring": False,
    "sha256": {"0": "0" * 64, "1": "1" * 64},
}


def run_report(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": 1,
        "input": "case.mha",
        "mask": "case.mha",
        "pantherseg": "0.1.0",
        "not_for_clinical_use": True,
        "recipe": "task1",
        "device": "cpu",
        "precision": "float32",
        "models": [MODEL],
        "tumour_ml": 1.0,
        "confidence": confidence(None, None),
        "box": {"start_zyx": [0, 0, 0], "stop_zyx": [12, 40, 48]},
        "pancreas": None,
        "events": [],
        "seconds": {"localizer": 1.5, "members": 10.25, "mask": 0.25},
        "peak_memory_mb": 400,
    }
    return content | changes


PANCREAS = {
    "ml": 61.25,
    "left_out_ml": 2.5,
    "centre_xyz_mm": [-12.5, 30.0, 4.25],
    "box": {"start_zyx": [2, 5, 7], "stop_zyx": [8, 16, 25]},
}


def confidence(pairwise: float | None, expected: float | None) -> dict[str, Any]:
    return {"pairwise_dice": pairwise, "mean_entropy": 0.4, "fold_volumes_ml": [3.1, 4.2], "expected_dice": expected}


class Cohort:
    """Folders of images, masks and references."""

    def __init__(self, folder: Path) -> None:
        self.images, self.masks, self.references = (folder / kind for kind in ("images", "masks", "references"))

    def add(
        self,
        name: str,
        mask: Volume | None = None,
        reference: Volume | None = None,
        report: dict[str, Any] | None = None,
        suffix: str = ".mha",
    ) -> None:
        """Write a case. Where there is no mask, the case has none."""
        write_volume(image(), self.images / f"{name}{suffix}")
        if mask is not None:
            write_volume(mask, self.masks / f"{name}{suffix}")
        if reference is not None:
            write_volume(reference, self.references / f"{name}{suffix}")
        if report is not None:
            self.masks.mkdir(exist_ok=True)
            (self.masks / f"{name}.json").write_text(json.dumps(report))


def mixed(folder: Path) -> Cohort:
    """Cases of each kind: good, bad, uncertain, hostile, empty, without a mask, and one that cannot be read."""
    cohort = Cohort(folder)
    events = [{"code": "empty_mask_rescued", "message": "no tumour was found; <b>the most probable</b> was marked"}]
    cohort.add("good", tumour(), tumour(), run_report(confidence=confidence(0.9, 0.85), pancreas=PANCREAS))
    cohort.add("poor", tumour(4, 6), tumour(5, 9), run_report(confidence=confidence(0.5, 0.45), events=events))
    cohort.add("uncertain", tumour(), None, run_report(confidence=confidence(0.6, 0.55)))
    cohort.add(HOSTILE.replace("/", "_"), tumour(), tumour(5, 8), run_report(recipe="</script><i>recipe"))
    cohort.add("empty", tumour(0, 0), tumour(), run_report())
    cohort.add("x" * 200, tumour(), None, None)
    cohort.add("without")
    cohort.add("damaged", tumour())
    (cohort.masks / "damaged.mha").write_bytes(b"no volume")
    return cohort
