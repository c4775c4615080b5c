"""Arrays on the host (numpy) or on a device (torch) by the same functions: those of the array API standard.

https://data-apis.org/array-api
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of numpy or torch, on any device.
Array = Any


def namespace(array: Array) -> Any:
    """Return the module whose functions take an array."""
    if isinstance(array, np.ndarray):
        return np
    from array_api_compat import array_namespace  # where there are torch's arrays, there is this package

    return array_namespace(array)


def like(array: Array, values: NDArray[Any]) -> Array:
    """Return values of the host as the array that another one is like, on the same device."""
    if isinstance(array, np.ndarray):
        return values
    return namespace(array).asarray(values, device=array.device)


def zeros_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Return zeros on another array's device."""
    xp = namespace(array)
    return xp.zeros(shape, dtype=getattr(xp, dtype), device=array.device)


def as_type(array: Array, dtype: str, *, copy: bool = False) -> Array:
    """Return an array with another dtype; itself where it has that already, unless a copy is asked for."""
    xp = namespace(array)
    return xp.astype(array, getattr(xp, dtype), copy=copy)


def on_device_of(array: Array, other: Array) -> Array:
    """Return the other array, moved to where an array of the same library lies."""
    return other if other.device == array.device else other.to(array.device)


def to_host(array: Array) -> NDArray[Any]:
    """Return an array as one of numpy, in the host's memory."""
    if isinstance(array, np.ndarray):
        return array
    values: NDArray[Any] = array.cpu().numpy()
    return values
