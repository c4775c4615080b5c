"""STAPLE against SimpleITK's filter, and against the algorithm of its paper voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pantherseg.fusion import Fusion, MeanProbability, Staple, Vote
from pantherseg.fusion.staple import CONVERGED, MAX_ITERATIONS, START, posteriors
from test_fusion import Member

# The median Task 2 crop, and a Task 1 volume of median size, (z, y, x).
CROP, VOLUME = (61, 108, 159), (72, 258, 318)

Masks = NDArray[np.bool_]
masks = st.integers(1, 5).flatmap(
    lambda raters: st.lists(st.integers(0, 2**raters - 1), min_size=1, max_size=40).map(
        lambda patterns: (np.array(patterns)[None, :] >> np.arange(raters)[:, None]) & 1 == 1
    )
)


def by_patterns(marks: Masks) -> NDArray[np.float64]:
    """Return STAPLE's probability of each voxel. marks: (rater, ...)."""
    patterns = sum(rater.astype(np.int64) << number for number, rater in enumerate(marks))
    found: NDArray[np.float64] = posteriors(np.bincount(np.ravel(patterns), minlength=2 ** len(marks)))[patterns]
    return found


def by_voxels(marks: Masks, start: float | NDArray[np.float64] = START) -> NDArray[np.float64]:
    """Return the same by Warfield's equations in float64, each sum over all voxels. marks: (rater, ...)."""
    decisions = marks.reshape(len(marks), -1)
    prior = decisions.mean()
    p, q = (np.broadcast_to(start, len(marks)) for _ in range(2))
    for _ in range(MAX_ITERATIONS):
        a, b = np.full(decisions.shape[1], prior), np.full(decisions.shape[1], 1 - prior)
        for rater, marked in enumerate(decisions):
            a *= np.where(marked, p[rater], 1 - p[rater])
            b *= np.where(marked, 1 - q[rater], q[rater])
        w = a / (a + b)
        new_p = np.array([w[marked].sum() / w.sum() for marked in decisions])
        new_q = np.array([(1 - w)[~marked].sum() / (1 - w).sum() for marked in decisions])
        change = max(np.abs(new_p - p).max(), np.abs(new_q - q).max())
        p, q = new_p, new_q
        if change <= CONVERGED:
            break
    found: NDArray[np.float64] = w.reshape(marks.shape[1:])
    return found


def by_simpleitk(marks: Masks) -> NDArray[np.float64]:
    filter_ = sitk.STAPLEImageFilter()
    filter_.SetForegroundValue(1)
    found: NDArray[np.float64] = sitk.GetArrayFromImage(
        filter_.Execute([sitk.GetImageFromArray(rater.astype(np.uint8)) for rater in marks])
    )
    return found


def tumours(shape: tuple[int, int, int], raters: int, seed: int) -> Masks:
    """Return marks of a tumour by raters of different quality: balls that lie apart, far-off spots, and noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape, dtype=np.float32)
    marks = []
    for quality in range(raters):
        centre = np.array(shape) / 2 + rng.normal(scale=1 + quality, size=3)
        radius = 9 + rng.normal()
        distance = sum(((axis - c) * mm) ** 2 for axis, c, mm in zip((z, y, x), centre, (3, 1, 1), strict=True))
        spot = (slice(2, 5), slice(5 * quality, 5 * quality + 4), slice(3, 9))
        marked = distance < radius**2
        marked[spot] |= bool(quality % 2)
        marks.append(marked ^ (rng.random(shape) < 1e-5))
    return np.stack(marks)


@settings(max_examples=40, deadline=None)
@given(marks=masks)
@example(marks=np.array([0, 1, 2, 4, 5, 6, 7, 11])[None, :] >> np.arange(4)[:, None] & 1 == 1)
def test_equals_the_equations_of_the_paper(marks: Masks) -> None:
    found = by_patterns(marks)
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
    assume(marks.any() and not marks.all())
    expected = by_voxels(marks)
    # Where members split evenly, the equations have several solutions, and rounding chooses one.
    assume(np.allclose(expected, by_voxels(marks, START - 1e-9 * np.arange(len(marks))), rtol=0, atol=1e-6))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(marks=masks, data=st.data())
def test_the_order_of_members_and_voxels_does_not_matter(marks: Masks, data: st.DataObject) -> None:
    raters = data.draw(st.permutations(range(len(marks))))
    voxels = data.draw(st.permutations(range(marks.shape[1])))
    np.testing.assert_array_equal(by_patterns(marks[raters][:, voxels]), by_patterns(marks)[voxels])


def test_an_even_split_is_not_decided_by_rounding() -> None:
    here, there = np.array([True, False, False]), np.array([False, True, False])
    for camps in ([here, here, there, there], [here, there], [here, there, there, here, here, there]):
        found = by_patterns(np.stack(camps))
        assert found[0] == found[1]
        assert found[2] < found[0]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "raters"), [(CROP, 2), (CROP, 3), (CROP, 5), (VOLUME, 2), (VOLUME, 5)])
def test_a_full_crop_is_that_of_the_paper_and_of_simpleitk(shape: tuple[int, int, int], raters: int) -> None:
    marks = tumours(shape, raters, seed=raters)
    found = by_patterns(marks)
    assert 100 < (found >= 0.5).sum() < found.size / 10
    np.testing.assert_allclose(found, by_voxels(marks), rtol=0, atol=1e-9)
    reference = by_simpleitk(marks)
    np.testing.assert_array_equal(found >= 0.5, reference >= 0.5)
    if raters > 2:  # SimpleITK's filter ends earlier, which for two raters, whose iterations go slowly, can be seen
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-4)


def test_background_around_the_same_marks_lowers_the_prior() -> None:
    marks = np.zeros((3, 1, 30, 30), bool)
    marks[0, :, 4:14, 4:14] = marks[1, :, 6:16, 4:14] = marks[2, :, 4:12, 6:18] = True
    wide = np.pad(marks, [(0, 0), (0, 0), (40, 40), (40, 40)])
    near, far = by_patterns(marks), by_patterns(wide)[:, 40:-40, 40:-40]
    assert (far[0, 0, 0], near[0, 0, 0]) == pytest.approx((by_voxels(wide).min(), by_voxels(marks).min()), rel=1e-6)
    assert far[0, 0, 0] < near[0, 0, 0] / 10
    np.testing.assert_allclose(far, by_simpleitk(wide)[:, 40:-40, 40:-40], rtol=0, atol=1e-5)


@pytest.mark.fault("models", "with STAPLE, {id}", "what all members mark, without NaN")
@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        pytest.param(np.zeros((3, 4), bool), 0.0, id="no member marks anything"),
        pytest.param(np.ones((3, 4), bool), 1.0, id="all members mark everything"),
    ],
)
def test_members_who_agree_about_every_voxel(marked: Masks, expected: float) -> None:
    np.testing.assert_array_equal(by_patterns(marked), np.full(4, expected))


def test_a_member_who_marks_nothing_does_not_empty_the_mask() -> None:
    marks = tumours((8, 40, 40), 3, seed=1)
    marks[2] = False
    assert (by_patterns(marks) >= 0.5).any()
    np.testing.assert_array_equal(by_patterns(marks) >= 0.5, by_simpleitk(marks) >= 0.5)


def members_with(marks: Masks, probability: float = 0.8) -> list[Member]:
    """Return members of two classes that give what they mark a probability, and the rest 0.1."""
    values = np.where(marks, probability, 0.1)
    logits = np.stack([np.log(1 - values), np.log(values)], axis=1).astype(np.float32)
    return [Member(one) for one in logits]


@pytest.mark.parametrize("consensus", [0.1, 0.5, 0.99])
def test_the_fusion_marks_where_the_consensus_is_reached(consensus: float) -> None:
    marks = tumours((8, 40, 40), 3, seed=2)
    fused = Staple(consensus=consensus).fuse(members_with(marks))
    np.testing.assert_array_equal(fused.mask(1), by_patterns(marks) >= consensus)
    np.testing.assert_array_equal(fused.labels(), fused.mask(1))
    mean = MeanProbability().fuse(members_with(marks)).probability(1)
    np.testing.assert_allclose(fused.probability(1), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fusion", [Vote(), Staple()])
def test_a_member_marks_from_its_own_threshold_on(fusion: Fusion) -> None:
    marks = tumours((8, 40, 40), 3, seed=3)
    expected = fusion.fuse(members_with(marks)).mask(1)
    assert expected.any()
    unsure = members_with(marks, probability=0.3)
    assert not fusion.fuse(unsure).mask(1).any()
    for member in unsure:
        member.threshold = 0.25
    np.testing.assert_array_equal(fusion.fuse(unsure).mask(1), expected)
    unsure[0].threshold = 0.05
    assert not np.array_equal(fusion.fuse(unsure).mask(1), expected)
