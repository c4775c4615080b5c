"""Folders of probabilities and reference masks for tests of the selection: tiny volumes with a known best ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pantherseg.io import write_volume
from pantherseg.io.probabilities import write_probability
from pantherseg.selection.cases import Case, Scorer, read_cases
from pantherseg.selection.members import find_references
from pantherseg.volume import Grid, Volume

SHAPE = (6, 16, 18)
GRID = Grid(SHAPE, (2.0, 1.0, 1.5), (-3.0, 4.0, 5.0))
SURE, LIKELY = 0.9, 0.8

Array = NDArray[np.float32]
Makes = Callable[[int], Array]


def tumour(case: int) -> NDArray[np.bool_]:
    """Return the tumour of a case: a box that moves from case to case."""
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2 + case % 3 : 7 + case % 3, 2 + case % 4 : 7 + case % 4] = True
    return mask


def spot(z: int, y: int, x: int, size: int = 2) -> NDArray[np.bool_]:
    """Return a box away from the tumour, of some voxels along y and x."""
    mask = np.zeros(SHAPE, bool)
    mask[z : z + 1, y : y + size, x : x + size] = True
    return mask


def probabilities(sure: NDArray[np.bool_], likely: NDArray[np.bool_] | None = None) -> Array:
    """Return probabilities that are high in a mask, and a little lower in another one."""
    values = np.where(sure, SURE, 0).astype(np.float32)
    return values if likely is None else np.maximum(values, np.where(likely, LIKELY, 0)).astype(np.float32)


def beside(case: int, dz: int, dx: int = 0) -> NDArray[np.bool_]:
    """Return what touches the tumour of a case: it as it lies some voxels further along z and x."""
    return np.roll(tumour(case), (dz, dx), axis=(0, 2))


# Each sees the tumour and something that touches it. Only the first two see different things, so that they complement
# each other; the third is like the first, only worse; the last sees the opposite.
MEMBERS: dict[str, Makes] = {
    "a": lambda case: probabilities(tumour(case), beside(case, 1)),
    "b": lambda case: probabilities(tumour(case), beside(case, -1) | beside(case, -1, -1)),
    "c": lambda case: probabilities(tumour(case), beside(case, 1) | beside(case, 1, 1)),
    "bad": lambda case: probabilities(~tumour(case)),
}


def name_of(case: int) -> str:
    """Return the name of a case, which is its patient's."""
    return str(20000 + case)


def write_references(folder: Path, cases: int) -> Path:
    """Write the reference masks, in which the pancreas is around the tumour."""
    for case in range(cases):
        mask = np.where(tumour(case), 1, 2 * (np.indices(SHAPE)[0] == 2)).astype(np.uint8)
        write_volume(Volume(mask, GRID), folder / f"{name_of(case)}.mha")
    return folder


def write_members(root: Path, members: Mapping[str, Makes], cases: int | Sequence[int]) -> list[tuple[str, Path]]:
    """Write the probabilities of members, and return their names and folders."""
    numbers = range(cases) if isinstance(cases, int) else cases
    for member, makes in members.items():
        for case in numbers:
            write_probability(Volume(makes(case), GRID), root / member / f"{name_of(case)}.npz")
    return [(member, root / member) for member in members]


def scorer_of(root: Path, members: Mapping[str, Makes], cases: int) -> Scorer:
    """Return a scorer of the members' probabilities of some cases."""
    references = find_references(write_references(root / "references", cases))
    folders = write_members(root, members, cases)
    files = [{name: folder / f"{name}.npz" for name in references} for _, folder in folders]
    found, failed = read_cases(references, files)
    assert failed == {}
    return Scorer(tuple(found))


def whole_mask(case: Case, mask: NDArray[np.bool_], box_start: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return a mask of the box that is kept of a case as one of the volume."""
    whole = np.zeros(SHAPE, bool)
    whole[tuple(slice(start, start + size) for start, size in zip(box_start, mask.shape, strict=True))] = mask
    return whole
