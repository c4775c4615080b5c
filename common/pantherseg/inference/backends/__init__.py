"""What runs a bundle's networks: OpenVINO on CPUs, torch on GPUs and where there is no OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array
from pantherseg.errors import DeviceError, LostDeviceError
from pantherseg.events import Event
from pantherseg.inference.accumulate import Network, sweep_bytes
from pantherseg.models.bundle import Bundle

Mode = Literal["exact", "fast"]

# Made by NVIDIA's driver, natively and under WSL: without one, torch need not be imported to look for a GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
CUDA_NEEDS = ("torch", "dynamic_network_architectures", "array_api_compat")


@dataclass(frozen=True, eq=False)
class Placement:
    """A place to sum a volume's tiles, and what runs the networks for that.

    data: the prepared volume (1, z, y, x) in that place; events: what there was too little memory for.
    """

    data: Array
    backend: Backend
    events: tuple[Event, ...] = ()


class Backend(Protocol):
    """A device and a precision. events: what a user should know about them."""

    device: str
    precision: str
    mode: Mode
    events: tuple[Event, ...]

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None) -> Network:
        """Return the network of one fold, which may end the one before. Raises ModelError.

        upcoming: the fold that will be asked for next, which may be read meanwhile.
        """
        ...

    def placements(self, data: NDArray[np.float32], bundle: Bundle) -> Iterator[Placement]:
        """Yield the places for a prepared volume (1, z, y, x) that seem to have enough memory, the best one first.

        The next one is for when there was too little at the one before. Raises DeviceMemoryError where none has enough
        for the network itself.
        """
        ...

    def explained(self, error: Exception) -> LostDeviceError | None:
        """Return what an error says of the device, None where it says nothing of it."""
        ...


def sum_bytes(data: NDArray[np.float32], bundle: Bundle) -> int:
    """Return what summing the tiles of a prepared volume (1, z, y, x) takes, beside the networks."""
    manifest = bundle.manifest
    return sweep_bytes(data.shape[1:], manifest.patch, classes=manifest.classes, folds=len(bundle.folds))


def choose_backend(device: str = "auto", mode: Mode = "exact", *, device_memory_mb: int | None = None) -> Backend:
    """Return the backend for a device (`auto`, `cpu` or `cuda`). Raises DeviceError where it does not answer.

    `exact` gives nnU-Net's own masks on that kind of device, `fast` the best speed with masks that hardly differ.
    device_memory_mb: how much of a GPU's memory may be used, all that is free without it.
    """
    events: tuple[Event, ...] = ()
    if device == "cuda" or (device == "auto" and any(Path(file).exists() for file in GPU_FILES)):
        missing = [name for name in CUDA_NEEDS if find_spec(name) is None]
        problem = f"no {' and '.join(missing)}, which would use it" if missing else ""
        if not missing:
            from pantherseg.inference.backends.torch_backend import TorchBackend, cuda_problem

            problem = cuda_problem()
            if not problem:
                return TorchBackend("cuda", mode, device_memory_mb=device_memory_mb)
        if device == "cuda":
            raise DeviceError("device", expected="a CUDA device", found=problem, hint="use --device cpu")
        events = (Event("no_cuda", f"there seems to be a GPU, but {problem}; the CPU was used"),)
    if find_spec("openvino") is not None:
        from pantherseg.inference.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(mode, events)
    from pantherseg.inference.backends.torch_backend import TorchBackend

    return TorchBackend("cpu", mode, events)
