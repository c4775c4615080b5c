"""Arrays on the host (numpy) or on a device (torch) by the same functions: those of the array API standard.

https://data-apis.org/array-api
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pantherseg.errors import DeviceMemoryError
from pantherseg.machine.memory import MB, is_in_memory

# The bits that float16 lacks of float32's, and those of them that lie between two of its numbers.
TIE_BITS, TIE = 0x1FFF, 0x1000

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
    """Return zeros on another array's device; beside an array in a file in a file, too."""
    if isinstance(array, np.memmap):
        return zeros_in_file(shape, dtype)
    xp = namespace(array)
    return xp.zeros(shape, dtype=getattr(xp, dtype), device=array.device)


def zeros_in_file(shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
    """Return zeros in a temporary file without a name, which ends with the array. Raises DeviceMemoryError."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    expected = f"{math.ceil(size / MB)} MB on a disk to sum logits in"
    try:
        if is_in_memory(Path(tempfile.gettempdir())):
            raise DeviceMemoryError("temporary folder", expected=expected, found="one that is in memory")
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would be found by a signal
            return np.memmap(file, dtype, shape=shape)
    except OSError as error:
        found = error.strerror or str(error)
        raise DeviceMemoryError("temporary folder", expected=expected, found=found) from error


def wait_for(array: Array) -> None:
    """Wait until an array has been computed: a device works in the background until one of its values is read."""
    if not isinstance(array, np.ndarray):
        float(array.reshape(-1)[0])


def dtype_name(array: Array) -> str:
    """Return the name of an array's dtype, such as float16."""
    return str(array.dtype).rpartition(".")[2]


def as_type(array: Array, dtype: str, *, copy: bool = False) -> Array:
    """Return an array with another dtype; itself where it has that already, unless a copy is asked for.

    The same numbers everywhere: torch would go from float64 to float16 by way of float32, and so round twice.
    """
    xp = namespace(array)
    if dtype == "float16" and array.dtype == xp.float64 and xp is not np:
        array = _ready_for_half(array)
    return xp.astype(array, getattr(xp, dtype), copy=copy)


def _ready_for_half(values: Array) -> Array:
    """Return a float64 tensor in float32, so that rounding it on to float16 is as good as rounding once.

    Where float32's rounding made a tie between two numbers of float16, the tie goes back to where it came from. Below
    float16's normal numbers (6e-5) ties are not looked for.
    """
    import torch

    single = values.float()
    made = (single.view(torch.int32) & TIE_BITS) == TIE
    came_from = torch.where(values > single, torch.inf, -torch.inf).float()
    return torch.where(made & (single != values), torch.nextafter(single, came_from), single)


def on_device_of(array: Array, other: Array) -> Array:
    """Return the other array, of whichever library, moved to where an array lies."""
    if isinstance(array, np.ndarray):
        return to_host(other)
    return like(array, other) if isinstance(other, np.ndarray) else other.to(array.device)


def to_host(array: Array) -> NDArray[Any]:
    """Return an array as one of numpy, beside which `zeros_like` makes others in the host's memory."""
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    values: NDArray[Any] = array.cpu().numpy()
    return values
