"""Members' logits become one map."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from pantherseg import fusion as fuse
from pantherseg.errors import ModelError
from pantherseg.fusion import mean_logits

SHAPE = (3, 4, 5)


@dataclass
class Member:
    """A member whose logits are at hand; it notes the slabs that it was asked for."""

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
    """The number of slabs in which a map is made."""
    if request.param == "whole":
        return 1
    monkeypatch.setattr(fuse, "SLAB_BYTES", 1)
    return SHAPE[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.usefixtures("slabs")
def test_the_mean_of_logits(number: int, dtype: type) -> None:
    maps = members(number, dtype=dtype)
    expected = np.mean([member.values for member in maps], axis=0, dtype=np.float64)
    before = [member.values.copy() for member in maps]
    fused = mean_logits(maps)
    labels = fused.labels()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(axis=0))
    for label in range(3):
        probability = fused.probability(label)
        assert probability.dtype == np.float32
        assert np.allclose(probability, special.softmax(expected, axis=0)[label], rtol=0, atol=1e-6)
    for member, values in zip(maps, before, strict=True):
        np.testing.assert_array_equal(member.values, values)


@pytest.mark.usefixtures("slabs")
def test_probability_is_the_softmax_also_of_large_logits() -> None:
    member = members(1, scale=200)[0]
    fused = mean_logits([member])
    expected = special.softmax(member.values.astype(np.float64), axis=0)
    for label in range(3):
        assert np.allclose(fused.probability(label), expected[label], rtol=0, atol=1e-6)
    assert np.allclose(sum(fused.probability(label) for label in range(3)), 1, atol=1e-6)


def test_of_equal_logits_the_first_class_counts() -> None:
    assert not mean_logits([Member(np.zeros((3, *SHAPE), np.float32))]).labels().any()


def test_members_are_asked_for_one_slab_after_the_other(slabs: int) -> None:
    maps = members(3)
    fused = mean_logits(maps)
    assert [member.asked for member in maps] == [[], [], []], "nothing is computed before it is needed"
    fused.labels()
    expected = [(z, z + 1) for z in range(slabs)] if slabs > 1 else [(0, 3)]
    assert [member.asked for member in maps] == [expected] * 3


def test_members_with_other_classes_are_an_error() -> None:
    with pytest.raises(ModelError, match="members with 3 classes each, found one with 2"):
        mean_logits([members(1)[0], members(1, classes=2)[0]])
