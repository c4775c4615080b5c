"""Members' logits become one map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pantherseg.errors import ModelError
from pantherseg.fuse import mean_logits


def members(number: int, classes: int = 3) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(number)
    return [rng.normal(scale=10, size=(classes, 3, 4, 5)).astype(np.float32) for _ in range(number)]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_mean_of_logits(number: int) -> None:
    maps = members(number)
    expected = np.mean(maps, axis=0, dtype=np.float64)
    fused = mean_logits(iter([array.copy() for array in maps]))
    assert fused.dtype == np.float32
    assert np.allclose(fused, expected, rtol=1e-6, atol=1e-6)


def test_members_are_asked_for_one_after_the_other() -> None:
    asked = []

    def lazily() -> Iterator[NDArray[np.float32]]:
        for number, logits in enumerate(members(3)):
            asked.append(number)
            yield logits

    assert mean_logits(lazily()).shape == (3, 3, 4, 5)
    assert asked == [0, 1, 2]


def test_members_with_other_classes_are_an_error() -> None:
    with pytest.raises(ModelError, match="members with 3 classes each, found one with 2"):
        mean_logits(iter([members(1)[0], members(1, classes=2)[0]]))
