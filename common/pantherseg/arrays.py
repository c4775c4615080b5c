"""The same functions for arrays on the host (numpy) and on a device (torch), by the array API standard.

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

from pantherseg.errors import DeviceMemoryError, os_reason
from pantherseg.machine.memory import MB, is_in_memory

# The bits of a float32's mantissa that float16 does not have, and their value halfway between two float16 numbers.
EXTRA_BITS, HALFWAY = 0x1FFF, 0x1000

# An array of numpy or torch, on any device.
Array = Any


def namespace(array: Array) -> Any:
    """Return the module with the functions for an array."""
    if isinstance(array, np.ndarray):
        return np
    from array_api_compat import array_namespace  # installed wherever torch is

    return array_namespace(array)


def like(array: Array, values: NDArray[Any]) -> Array:
    """Return values as an array of the same library and on the same device as `array`."""
    if isinstance(array, np.ndarray):
        return values
    return namespace(array).asarray(values, device=array.device)


def zeros_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Return zeros on the device of `array`, or in a temporary file if `array` is in a file."""
    if isinstance(array, np.memmap):
        return zeros_in_file(shape, dtype)
    xp = namespace(array)
    return xp.zeros(shape, dtype=getattr(xp, dtype), device=array.device)


def zeros_in_file(shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
    """Return zeros in an unnamed temporary file, which is removed with the array. Raises DeviceMemoryError."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    expected = f"{math.ceil(size / MB)} MB of disk space for logits"
    try:
        if is_in_memory(Path(tempfile.gettempdir())):
            found, hint = "a folder that is kept in memory", "set TMPDIR to a folder on a disk"
            raise DeviceMemoryError("temporary folder", expected=expected, found=found, hint=hint)
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # otherwise a full disk would raise a signal on writing
            return np.memmap(file, dtype, shape=shape)
    except OSError as error:
        found = os_reason(error)
        raise DeviceMemoryError("temporary folder", expected=expected, found=found) from error


def wait_for(array: Array) -> None:
    """Wait until an array has been computed: a device works in the background until one of its values is read."""
    if not isinstance(array, np.ndarray):
        float(array.reshape(-1)[0])


def dtype_name(array: Array) -> str:
    """Return the name of an array's dtype, such as float16."""
    return str(array.dtype).rpartition(".")[2]


def as_type(array: Array, dtype: str, *, copy: bool = False) -> Array:
    """Return an array with another dtype, the array itself if it already has that dtype and no copy is wanted.

    numpy and torch give the same values: from float64 to float16 torch alone would round twice, by way of float32.
    """
    xp = namespace(array)
    if dtype == "float16" and array.dtype == xp.float64 and xp is not np:
        array = _float32_for_float16(array)
    return xp.astype(array, getattr(xp, dtype), copy=copy)


def _float32_for_float16(values: Array) -> Array:
    """Return a float64 tensor as float32 such that rounding to float16 gives what rounding once would give.

    Where rounding to float32 ended exactly halfway between two float16 numbers, the result is moved back by one step
    towards the original value. Subnormal float16 numbers (below 6e-5) are not corrected.
    """
    import torch

    single = values.float()
    is_halfway = (single.view(torch.int32) & EXTRA_BITS) == HALFWAY
    towards = torch.where(values > single, torch.inf, -torch.inf).float()
    return torch.where(is_halfway & (single != values), torch.nextafter(single, towards), single)


def on_device_of(array: Array, other: Array) -> Array:
    """Return `other`, an array of numpy or torch, as an array like `array` on its device."""
    if isinstance(array, np.ndarray):
        return to_host(other)
    return like(array, other) if isinstance(other, np.ndarray) else other.to(array.device)


def to_host(array: Array) -> NDArray[Any]:
    """Return an array as a plain numpy array; `zeros_like` of it allocates memory, never a file."""
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    values: NDArray[Any] = array.cpu().numpy()
    return values
