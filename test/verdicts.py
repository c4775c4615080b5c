"""What tests ask of the verdicts of a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pantherseg.verdict import Verdict


def upload_fault(done: str) -> pytest.MarkDecorator:
    """Return the mark of an upload that the platform would refuse."""
    return pytest.mark.fault("outputs", done, "the rule that it breaks, before the upload")


def upload_case(done: str, *values: object) -> Any:
    """Return the parameters of a test as a row of the table of faults: an upload that the platform would refuse."""
    return pytest.param(*values, marks=upload_fault(done), id=done)


def broken(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return what was found for each broken rule."""
    return {verdict.rule: verdict.found for verdict in verdicts if not verdict.kept}


def only_fault(verdicts: Sequence[Verdict], rule: str) -> str:
    """Return what was found, in one line, where exactly one rule is broken: the one that begins with `rule`."""
    faults = broken(verdicts)
    assert [name[: len(rule)] for name in faults] == [rule], faults
    (found,) = faults.values()
    assert len(found.splitlines()) == 1
    return found
