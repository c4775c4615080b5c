"""Members' logits -> one map of logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pantherseg.errors import ModelError


def mean_logits(members: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean of logits (class, z, y, x), holding no more than two members' at a time.

    Raises ModelError where members do not have the same classes.
    """
    total = next(members)
    count = 1
    for logits in members:
        if logits.shape != total.shape:
            raise ModelError(
                "fusion", expected=f"members with {len(total)} classes each", found=f"one with {len(logits)}"
            )
        total += logits
        count += 1
    return total if count == 1 else total / np.float32(count)
