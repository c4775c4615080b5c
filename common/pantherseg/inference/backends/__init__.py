"""What runs a bundle's networks: OpenVINO on CPUs, torch on GPUs and where there is no OpenVINO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pantherseg.arrays import Array
from pantherseg.errors import DeviceError, LostDeviceError
from pantherseg.events import Event, EventCode
from pantherseg.inference.accumulate import Network
from pantherseg.models.bundle import Bundle

Mode = Literal["exact", "fast"]

# Made by NVIDIA's driver, natively and under WSL: without one, torch need not be imported to look for a GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
CUDA_NEEDS = ("torch", "dynamic_network_architectures", "array_api_compat")


class Backend(Protocol):
    """A device and a precision, as facts: what they can run, how large it is, how much room there is.

    events: what a user should know about them; memory_name: what an error calls the memory; roomier_event: the event
    for sums in the place with more room. `inference.placement` decides by these facts.
    """

    device: str
    precision: str
    mode: Mode
    events: tuple[Event, ...]
    memory_name: str
    roomier_event: EventCode

    def network(self, bundle: Bundle, fold: str, upcoming: str | None = None, *, keep: bool = False) -> Network:
        """Return the network of one fold. It may end the one before, unless that one is kept. Raises ModelError.

        upcoming: the fold that will be asked for next, which may be read meanwhile; keep: keep the network in memory
        for the next case.
        """
        ...

    def make_room(self, bundle: Bundle) -> None:
        """Free what is of no use for the networks of this bundle."""
        ...

    def keeps(self, bundle: Bundle) -> bool:
        """Return whether networks of this bundle are kept in memory."""
        ...

    def release_networks(self) -> None:
        """Free all networks that are kept."""
        ...

    def network_bytes(self, bundle: Bundle) -> int:
        """Return about what a network takes, its features included."""
        ...

    def free_bytes(self) -> int:
        """Return what this process may still take of the memory in which networks run."""
        ...

    def place(self, data: NDArray[np.float32]) -> Array | None:
        """Return a prepared volume (1, z, y, x) where networks run, None where there is no room after all."""
        ...

    def place_with_more_room(self, data: NDArray[np.float32]) -> Array:
        """Return a prepared volume (1, z, y, x) where sums have more room. Raises DeviceMemoryError without room."""
        ...

    def in_bfloat16(self) -> Backend | None:
        """Return the same device in bfloat16, None where it has none or computes in half precision already."""
        ...

    def explain(self, error: Exception) -> LostDeviceError | None:
        """Return what an error says of the device, None where it says nothing of it."""
        ...


class VerifiedFolds:
    """The folds whose files this process has compared with their checksums: each is compared once."""

    def __init__(self) -> None:
        self._known: set[tuple[Path, int, int, int]] = set()

    def check(self, bundle: Bundle, fold: str) -> None:
        """Check a fold's content unless this very file was checked before. Raises ModelError."""
        path = bundle.weights_path(fold)
        status = path.stat()
        key = path, status.st_ino, status.st_size, status.st_mtime_ns
        if key not in self._known:
            bundle.check_content(fold)
            self._known.add(key)


def choose_backend(device: str = "auto", mode: Mode = "exact", *, device_memory_mb: int | None = None) -> Backend:
    """Return the backend for a device (`auto`, `cpu` or `cuda`). Raises DeviceError where it does not answer.

    mode: `exact` gives nnU-Net's own masks on that kind of device, `fast` the best speed with masks that hardly differ;
    device_memory_mb: how much of a GPU's memory may be used; without it all that is free.
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
        events = (Event(EventCode.NO_CUDA, f"there seems to be a GPU, but {problem}; the CPU was used"),)
    if find_spec("openvino") is not None:
        from pantherseg.inference.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(mode, events)
    from pantherseg.inference.backends.torch_backend import TorchBackend

    return TorchBackend("cpu", mode, events)
