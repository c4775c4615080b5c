"""The errors that users see, and how they come from one process to another."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from pantherseg.errors import PantherSegError


def kinds(kind: type[PantherSegError] = PantherSegError) -> Iterator[type[PantherSegError]]:
    """Yield a class of errors and all that are derived from it."""
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds(derived)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_an_error_of_another_process_says_the_same(kind: type[PantherSegError]) -> None:
    for error in (kind(Path("x"), expected="a", found="b", hint="c"), kind("x", "this is wrong"), kind("x").at("y")):
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(same) is kind
            assert (str(same), vars(same)) == (str(error), vars(error))
