"""Fusing the logits of members into one prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from pantherseg.errors import ModelError
from pantherseg.fusion import Fusion, MeanLogits, MeanProbability, Vote
from pantherseg.fusion import members as fusion_members

SHAPE = (3, 4, 5)


@dataclass
class Member:
    """A member with given logits that records which slabs were asked for."""

    values: NDArray[np.floating]
    weight: float = 1.0
    threshold: float | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def classes(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self.values.shape[1:]
        return depth, height, width

    def slab(self, start: int, stop: int) -> NDArray[np.floating]:
        self.asked.append((start, stop))
        return self.values[:, start:stop]


def members(number: int, classes: int = 3, *, scale: float = 10, dtype: type = np.float32) -> list[Member]:
    rng = np.random.default_rng(number)
    return [Member(rng.normal(scale=scale, size=(classes, *SHAPE)).astype(dtype)) for _ in range(number)]


@pytest.fixture(params=["whole", "slice by slice"])
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of slabs in which a label map is computed."""
    if request.param == "whole":
        return 1
    monkeypatch.setattr(fusion_members, "SLAB_BYTES", 1)
    return SHAPE[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.usefixtures("slabs")
def test_labels_and_probabilities_are_those_of_the_mean_logits(number: int, dtype: type) -> None:
    all_members = members(number, dtype=dtype)
    expected = np.asarray(np.mean([member.values for member in all_members], axis=0, dtype=np.float64))
    before = [member.values.copy() for member in all_members]
    fused = MeanLogits().fuse(all_members)
    labels = fused.labels()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(axis=0))
    for label in range(3):
        np.testing.assert_array_equal(fused.mask(label), labels == label)
        probability = fused.probability(label)
        assert probability.dtype == np.float32
        assert np.allclose(probability, special.softmax(expected, axis=0)[label], rtol=0, atol=1e-6)
    for member, values in zip(all_members, before, strict=True):
        np.testing.assert_array_equal(member.values, values)


@pytest.mark.usefixtures("slabs")
def test_probability_is_the_softmax_of_large_logits_too() -> None:
    member = members(1, scale=200)[0]
    fused = MeanLogits().fuse([member])
    expected = np.asarray(special.softmax(member.values.astype(np.float64), axis=0))
    assert np.allclose([fused.probability(label) for label in range(3)], expected, rtol=0, atol=1e-6)


def test_takes_the_first_class_of_equal_logits() -> None:
    assert not MeanLogits().fuse([Member(np.zeros((3, *SHAPE), np.float32))]).labels().any()


def test_asks_members_for_one_slab_after_the_other(slabs: int) -> None:
    all_members = members(3)
    fused = MeanLogits().fuse(all_members)
    assert [member.asked for member in all_members] == [[], [], []], "nothing is computed before it is asked for"
    fused.labels()
    expected = [(z, z + 1) for z in range(slabs)] if slabs > 1 else [(0, 3)]
    assert [member.asked for member in all_members] == [expected] * 3


def test_refuses_members_with_different_classes() -> None:
    with pytest.raises(ModelError, match="members with 3 classes each, found one with 2"):
        MeanLogits().fuse([members(1)[0], members(1, classes=2)[0]])


def probabilities(all_members: list[Member]) -> NDArray[np.float64]:
    """Return each member's softmax, (member, class, z, y, x)."""
    return np.stack([special.softmax(member.values.astype(np.float64), axis=0) for member in all_members])


def weighted(all_members: list[Member], *weights: float) -> list[Member]:
    return [Member(member.values, weight) for member, weight in zip(all_members, weights, strict=True)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (2.0, 1.0, 0.5), (30.0, 10.0, 20.0)])
@pytest.mark.usefixtures("slabs")
def test_labels_and_probabilities_are_those_of_the_mean_probability(weights: tuple[float, ...], dtype: type) -> None:
    all_members = weighted(members(len(weights), scale=2, dtype=dtype), *weights)
    expected = np.average(probabilities(all_members), axis=0, weights=weights)
    fused = MeanProbability().fuse(all_members)
    for label in range(3):
        assert np.allclose(fused.probability(label), expected[label], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(fused.mask(label), expected.argmax(axis=0) == label)
        assert np.allclose(fused.probability(label), expected[label], rtol=0, atol=1e-6), "the one that was kept"
        assert fused.probability(label).dtype == np.float32
    np.testing.assert_array_equal(fused.labels(), expected.argmax(axis=0))


@pytest.mark.usefixtures("slabs")
def test_weights_of_mean_logits_count_a_member_several_times() -> None:
    first, second = members(2)
    counted = MeanLogits().fuse([first, first, first, second])
    for weights in ((3.0, 1.0), (0.75, 0.25)):
        fused = MeanLogits().fuse(weighted([first, second], *weights))
        np.testing.assert_array_equal(fused.labels(), counted.labels())
        assert np.allclose(fused.probability(1), counted.probability(1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("slabs")
def test_members_with_different_classes_are_compared_in_one_label() -> None:
    three, two = members(1, scale=2)[0], members(2, classes=2, scale=2)[1]
    expected = (special.softmax(three.values, axis=0)[1] + special.softmax(two.values, axis=0)[1]) / 2
    fused = MeanProbability().fuse([three, two])
    np.testing.assert_array_equal(fused.mask(1), expected > 0.5)
    assert np.allclose(fused.probability(1), expected, rtol=0, atol=1e-6)
    both = (three.values.argmax(axis=0) == 1) & (two.values.argmax(axis=0) == 1)
    np.testing.assert_array_equal(Vote().fuse([three, two]).mask(1), both)


@pytest.mark.parametrize("fusion", [MeanProbability(), Vote()])
def test_members_with_different_classes_have_no_label_map(fusion: Fusion) -> None:
    fused = fusion.fuse([members(1)[0], members(1, classes=2)[0]])
    with pytest.raises(ModelError, match="members with 3 classes each, found one with 2"):
        fused.labels()


@pytest.mark.parametrize("threshold", [None, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (1.0, 1.0), (3.0, 1.0, 1.0), (0.1, 0.2, 0.3)])
@pytest.mark.usefixtures("slabs")
def test_a_label_needs_more_than_half_of_the_votes(weights: tuple[float, ...], threshold: float | None) -> None:
    all_members = weighted(members(len(weights), scale=2), *weights)
    each = probabilities(all_members)
    if threshold is None:
        marks = np.stack([member.values.argmax(axis=0) == np.arange(3)[:, None, None, None] for member in all_members])
    else:
        marks = each >= threshold
    votes = np.einsum("m,mczyx->czyx", np.array(weights), marks)
    expected = votes > sum(weights) / 2 + 1e-9
    fused = Vote(probability=threshold).fuse(all_members)
    for label in range(3):
        np.testing.assert_array_equal(fused.mask(label), expected[label])
        assert np.allclose(fused.probability(label), np.average(each, axis=0, weights=weights)[label], atol=1e-6)
    labels = fused.labels()
    np.testing.assert_array_equal(labels, np.where(expected[1], 1, np.where(expected[2], 2, 0)))


def test_an_even_vote_is_not_enough() -> None:
    sure, unsure = np.zeros((2, *SHAPE), np.float32), np.zeros((2, *SHAPE), np.float32)
    sure[1], unsure[0] = 9, 9
    for weights, expected in (
        ((1.0, 1.0), False),
        ((1.0, 0.99), True),
        ((0.1 + 0.2, 0.3), False),
        ((0.3, 0.1 + 0.2), False),
    ):
        fused = Vote().fuse([Member(sure, weights[0]), Member(unsure, weights[1])])
        assert fused.mask(1).all() == fused.mask(1).any() == expected
