"""Writes phantoms to a folder with the names and the layout of the PANTHER training data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pantherseg.io import write_volume
from pantherseg.phantom.acquisition import Modality, Size, make_phantom

# The first patient number of PANTHER.
FIRST_PATIENT = 10000
SCAN = "0001"


def case_id(seed: int, *, task: int) -> str:
    """Return the case id of a seed, which is unique: `10000_0001` for Task 1, `10303` for Task 2 (10000 + seed)."""
    number = f"{FIRST_PATIENT + seed:05d}"
    return f"{number}_{SCAN}" if task == 1 else number


def write_dataset(
    folder: Path,
    *,
    task: int,
    cases: int,
    seed: int,
    size: Size = "full",
    modality: Modality = "mri",
    organs: bool = False,
    on_case: Callable[[str], object] | None = None,
) -> list[str]:
    """Write phantoms as a data set and return the case ids in order. Case i is the phantom of `seed + i`.

    Images are written to imagesTr/<case>_0000.mha, labels (1 tumour, 2 pancreas) to labelsTr/<case>.mha and, with
    `organs`, organ labels to organsTr/<case>.mha. `on_case` is called with each case id once its files are written. Two
    data sets have no patient in common if their ranges of seeds do not overlap.

    Raises OutputError if a file cannot be written, and ValueError for an invalid argument.
    """
    if cases < 1:
        raise ValueError(f"a data set needs at least 1 case, got {cases}")
    names = []
    for number in range(seed, seed + cases):
        phantom = make_phantom(number, task=task, size=size, modality=modality)
        name = case_id(number, task=task)
        write_volume(phantom.image, folder / "imagesTr" / f"{name}_0000.mha")
        write_volume(phantom.labels, folder / "labelsTr" / f"{name}.mha")
        if organs:
            write_volume(phantom.organs, folder / "organsTr" / f"{name}.mha")
        names.append(name)
        if on_case is not None:
            on_case(name)
    return names
