"""What the networks say about how sure they are of a case."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import dice
from pantherseg.confidence.estimate import estimate, mean_entropy
from pantherseg.fusion import FusedLogits, MeanLogits
from pantherseg.inference.backends.openvino_backend import OpenVinoBackend
from pantherseg.inference.fold_masks import Agreement
from pantherseg.inference.predictor import Logits, Predictor
from pantherseg.models.bundle import Bundle
from pantherseg.preprocessing.intensity import Unchanged
from pantherseg.preprocessing.preprocess import Preprocessing
from pantherseg.preprocessing.resample import Resampling
from pantherseg.volume import Grid, Volume

SPACING = (3.0, 1.2, 1.0)
LINEAR = Resampling("resample_data_or_seg_to_shape", order=1, force_separate_z=False)


def logits_of(seed: int, *, scale: float = 3.0, agreement: Agreement | None = None) -> Logits:
    """Return random logits of a volume of 6x8x10 voxels, on a coarser grid of the network."""
    preprocessing = Preprocessing(
        spacing=(4.0, 2.0, 2.0), transpose=(0, 2, 1), normalization=Unchanged(), images=LINEAR, logits=LINEAR
    )
    volume = np.ones((6, 8, 10), np.float32)
    volume[:1] = 0  # the network does not see this slice
    prepared = preprocessing.run(volume, SPACING)
    values = np.random.default_rng(seed).normal(scale=scale, size=(3, *prepared.data.shape[1:])).astype(np.float16)
    return Logits(values, prepared.back, (), "float32", ("0",), agreement=agreement)


def entropy_of(probability: NDArray[np.float32]) -> float:
    """Return the mean entropy in bits by math.log2, one value after the other."""
    values = [float(p) for p in probability]
    return sum(-sum(q * math.log2(q) for q in (p, 1 - p) if q > 0) for p in values) / len(values)


@settings(max_examples=20, deadline=None)
@given(
    members=st.integers(1, 2), scale=st.sampled_from([0.1, 3.0, 60.0]), first=st.integers(0, 5), count=st.integers(1, 9)
)
def test_entropy_is_that_of_the_fused_probability_in_the_mask(
    members: int, scale: float, first: int, count: int
) -> None:
    logits = [logits_of(seed, scale=scale) for seed in range(members)]
    mask = np.zeros((6, 8, 10), bool)
    mask[first:].reshape(-1)[:: max(1, 37 - count)] = True
    found = mean_entropy(logits, mask, fusion=MeanLogits(), label=1)
    probability = FusedLogits(tuple(logits)).probability(1)
    assert found == pytest.approx(entropy_of(probability[mask]), abs=1e-6)
    assert found is not None
    assert 0 <= found <= 1


def test_an_empty_mask_has_no_entropy() -> None:
    mask = np.zeros((6, 8, 10), bool)
    assert mean_entropy([logits_of(0)], mask, fusion=MeanLogits(), label=1) is None


def test_folds_are_compared_within_each_member() -> None:
    grid = Grid((6, 8, 10), SPACING)
    mask = np.ones(grid.shape, bool)
    agreements = (Agreement((4, 8), 0.5), Agreement((1,), None), Agreement((0, 2, 4), 0.3))
    members = [logits_of(0, agreement=agreement) for agreement in agreements]
    found = estimate(members, mask, fusion=MeanLogits(), label=1, grid=grid)
    assert found.pairwise_dice == pytest.approx(0.4), "the mean of the members with several folds"
    seen = 5 * 8 * 10 * math.prod(SPACING)
    voxel_ml = seen / math.prod(members[0].values.shape[1:]) / 1000
    assert found.fold_volumes_ml == pytest.approx([voxel_ml * n for n in (4, 8, 1, 0, 2, 4)], abs=1e-3)
    assert found.expected_dice is None
    only = estimate(members[1:2], mask, fusion=MeanLogits(), label=1, grid=grid)
    assert only.pairwise_dice is None, "one fold cannot disagree with itself"


@pytest.mark.slow
def test_masks_of_folds_leave_the_logits_as_they_are(demo: Bundle, pancreas: Volume) -> None:
    plain = Predictor(demo, OpenVinoBackend())
    compared = replace(plain, compared_label=1)
    prepared = plain.prepare(pancreas)
    without, found = plain.logits(prepared), compared.logits(prepared)
    np.testing.assert_array_equal(found.values, without.values)
    assert without.agreement is None
    folds = [replace(plain, bundle=replace(demo, folds=(fold,))).logits(prepared).values for fold in demo.folds]
    first, second = (np.asarray(fold).argmax(axis=0) == 1 for fold in folds)
    assert found.agreement is not None
    assert found.agreement.voxels == (first.sum(), second.sum())
    assert found.agreement.pairwise_dice == pytest.approx(dice(first, second))
    assert 0 < found.agreement.pairwise_dice < 1
