"""What runs a bundle's networks: OpenVINO on CPUs, torch on GPUs and where there is no OpenVINO."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from pantherseg.bundle import Bundle
from pantherseg.errors import DeviceError, Event
from pantherseg.inference.accumulate import Network

Mode = Literal["exact", "fast"]

# Made by NVIDIA's driver, natively and under WSL: without one, torch need not be imported to look for a GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
CUDA_NEEDS = ("torch", "nnunetv2")


class Backend(Protocol):
    """A device and a precision. events: what a user should know about them."""

    device: str
    precision: str
    events: tuple[Event, ...]

    def network(self, bundle: Bundle, fold: str) -> Network:
        """Return the network of one fold, which may end the one before. Raises ModelError."""
        ...


def choose_backend(device: str = "auto", mode: Mode = "exact") -> Backend:
    """Return the backend for a device (`auto`, `cpu` or `cuda`). Raises DeviceError where it does not answer.

    `exact` gives nnU-Net's own masks on that kind of device, `fast` the best speed with masks that hardly differ.
    """
    events: tuple[Event, ...] = ()
    if device == "cuda" or (device == "auto" and any(Path(file).exists() for file in GPU_FILES)):
        missing = [name for name in CUDA_NEEDS if find_spec(name) is None]
        if not missing:
            from pantherseg.inference.backends.on_torch import TorchBackend, cuda_answers

            if cuda_answers():
                return TorchBackend("cuda", mode)
        found = f"no {' and '.join(missing)}, which would use it" if missing else "none that answers"
        if device == "cuda":
            raise DeviceError("device", expected="a CUDA device", found=found, hint="use --device cpu")
        events = (Event("no_cuda", f"there seems to be a GPU, but {found}; the CPU was used"),)
    if find_spec("openvino") is not None:
        from pantherseg.inference.backends.on_openvino import OpenVinoBackend

        return OpenVinoBackend(mode, events)
    from pantherseg.inference.backends.on_torch import TorchBackend

    return TorchBackend("cpu", mode, events)
