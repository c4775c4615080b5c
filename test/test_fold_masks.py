"""The folds' masks of a label, which are kept as bits, and how well they agree."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from conftest import dice
from pantherseg.inference import fold_masks
from pantherseg.inference.fold_masks import Agreement, FoldMasks

# Few different values, so that many logits are equal; both zeros, and the largest and smallest numbers.
VALUES = [0.0, -0.0, 1.0, -1.0, 1.001, 6e-8, -6e-8, 65504.0, -65504.0]
FOLDS = st.integers(2, 4).flatmap(
    lambda classes: st.lists(
        arrays.arrays(np.float16, (classes, 3, 2, 5), elements=st.sampled_from(VALUES)), min_size=1, max_size=4
    )
)


def masks_of(folds: list[NDArray[np.float16]], label: int) -> list[NDArray[np.bool_]]:
    return [fold.argmax(axis=0) == label for fold in folds]


@settings(max_examples=100, deadline=None)
@given(folds=FOLDS, on_device=st.booleans(), data=st.data())
def test_counts_what_argmax_counts(folds: list[NDArray[np.float16]], on_device: bool, data: st.DataObject) -> None:
    label = data.draw(st.integers(1, len(folds[0]) - 1))
    kept = FoldMasks(label)
    for fold in folds:
        given_fold = torch.from_numpy(fold.copy()) if on_device else fold.copy()
        kept.add(given_fold)
        given_fold += 1  # as the sum over folds changes the first one
    masks = masks_of(folds, label)
    agreement = kept.agreement()
    assert agreement.voxels == tuple(int(mask.sum()) for mask in masks)
    pairs = [dice(a, b) for a, b in combinations(masks, 2) if a.any() or b.any()]
    assert agreement.pairwise_dice == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_slabs_and_voxel_orders_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    folds = [rng.normal(size=(3, 7, 5, 9)).astype(np.float16) for _ in range(3)]
    agreements = []
    for size in (1, 1000, 1 << 20):
        monkeypatch.setattr(fold_masks, "SLAB_BYTES", size)
        for turned in (False, True):
            kept = FoldMasks(1)
            for fold in folds:
                kept.add(fold.transpose(0, 1, 3, 2) if turned else fold)
            agreements.append(kept.agreement())
    assert len(set(agreements)) == 1


def test_folds_that_mark_nothing_disagree_with_those_that_do() -> None:
    nothing, something = np.zeros((2, 1, 1, 4), np.float16), np.zeros((2, 1, 1, 4), np.float16)
    something[1, ..., :2] = 1
    kept = FoldMasks(1)
    kept.add(nothing)
    assert kept.agreement() == Agreement((0,), None), "there is no other fold"
    kept.add(nothing)
    assert kept.agreement() == Agreement((0, 0), None), "no fold marks anything"
    kept.add(something)
    assert kept.agreement() == Agreement((0, 0, 2), 0.0)
    kept.add(something)
    assert kept.agreement() == Agreement((0, 0, 2, 2), pytest.approx(1 / 5)), "one of five pairs agrees"
