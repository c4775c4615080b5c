"""Fixtures that several test modules use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

RealData = Callable[[str], Path]


@pytest.fixture
def real_data() -> RealData:
    """Return the path of a real volume by its name in the data folder; skip the test where it is absent.

    The folder is the environment variable PANTHERSEG_TEST_DATA, else `shared/data` beside the checkout.
    """
    folder = os.environ.get("PANTHERSEG_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data"

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"no real data: {path} is not there (PANTHERSEG_TEST_DATA names the folder)")
        return path

    return find
