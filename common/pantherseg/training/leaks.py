"""Whether a fold is validated on patients on whom its weights were trained before, in a stage from which it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pantherseg.datasets.raw import RawCase, RawDataset
from pantherseg.datasets.splits import SPLITS, Splits, read_splits
from pantherseg.errors import InputError, first_few
from pantherseg.training.graph import TrainingFile
from pantherseg.training.steps import starts_of

# The splits of a stage, and what is known about its cases.
SplitCases = tuple[Splits, Mapping[str, RawCase]]


def check_starts(graph: TrainingFile, name: str, splits_of: Callable[[str], SplitCases | None]) -> None:
    """Check that no fold of a stage starts from weights that were trained on its validation patients.

    All starts count: that of the stage, that of the start, and so on. splits_of: returns the splits of a stage, None
    where they are not known. Raises InputError.
    """
    if graph.stage[name].start_stage is None or (own := splits_of(name)) is None:
        return
    splits, cases = own
    for fold in graph.stage[name].used_folds:
        validated = {cases[case].patient for case in splits[fold]["val"]}
        for start, start_fold in starts_of(graph, name, fold):
            other = splits_of(start)
            if other is None:
                continue
            trained = {other[1][case].patient for case in other[0][start_fold]["train"] if not other[1][case].pseudo}
            if both := sorted(validated & trained):
                raise InputError(
                    f"fold {fold} of stage '{name}'",
                    expected=f"no validation on patients on whom fold {start_fold} of stage '{start}' was trained, "
                    "from which it starts",
                    found=f"{len(both)} of them, {first_few(both)}",
                    hint=f"give both stages splits that agree, with --splits {name}=FILE --splits {start}=FILE",
                )


def read_split_dataset(folder: Path) -> SplitCases | None:
    """Return the splits of a raw data set and its cases, None if it is not there. Raises InputError."""
    if not (folder / SPLITS).is_file():
        return None
    return read_splits(folder / SPLITS), RawDataset.open(folder).cases
