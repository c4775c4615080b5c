"""Fusing the logits of members into one label map."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from pantherseg import fusion
from pantherseg.errors import ModelError
from pantherseg.fusion import MeanLogits

SHAPE = (3, 4, 5)


@dataclass
class Member:
    """A member with given logits that records which slabs were asked for."""

    values: NDArray[np.floating]
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
    monkeypatch.setattr(fusion, "SLAB_BYTES", 1)
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
